"""`python -m tasks.engines.launch ENDPOINT`: become the server of an endpoint. Run by the supervisor."""

from __future__ import annotations

import os
import sys

from configs.schema import DeployTurbomind
from tasks import endpoints


def main() -> None:
    endpoint = endpoints.one(sys.argv[1])
    words = command(endpoint)
    if isinstance(endpoint.options, DeployTurbomind):
        from lmdeploy.cli import run

        sys.argv = words  # in this process: on a command line everybody could read the API keys
        run()
    else:
        os.execv(words[0], words)


def command(endpoint: endpoints.Endpoint) -> list[str]:
    """The server's words: for the reference server a command line, for LMDeploy the arguments of its program."""
    if isinstance(endpoint.options, DeployTurbomind):
        from tasks.engines.turbomind import serve_command

        return serve_command(endpoint)
    return [sys.executable, "-P", "-m", "tasks.engines.server", endpoint.name]


if __name__ == "__main__":
    main()
