"""`python -m tasks.engines.launch ENDPOINT`: become the server of an endpoint. Run by the supervisor."""

from __future__ import annotations

import os
import sys

from configs.schema import DeployTurbomind
from tasks import endpoints


def command(endpoint: endpoints.Endpoint) -> list[str]:
    """The server's command line."""
    if isinstance(endpoint.options, DeployTurbomind):
        from tasks.engines.turbomind import serve_command

        return serve_command(endpoint)
    return [sys.executable, "-P", "-m", "tasks.engines.server", endpoint.name]


def main() -> None:
    words = command(endpoints.one(sys.argv[1]))
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
