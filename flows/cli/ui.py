"""`lmflows ui`: the Prefect server and its page over this machine's runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from flows.cli.terminal import say


def ui(port: Annotated[int, typer.Option(min=1, max=65535)] = 4200) -> None:
    """Run the Prefect server and its UI over this machine's runs, until Ctrl-C."""
    from flows.run import environment

    environment.prepare()
    # the page asks the server that it came from: Prefect's own default is port 4200 of this
    # machine, whatever the port or tunnel
    os.environ.setdefault("PREFECT_SERVER_UI_API_URL", "/api")
    say(f"runs: http://127.0.0.1:{port}/runs")
    server = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", *server])
