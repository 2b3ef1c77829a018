"""`lmflows status`, `stop` and `logs`: the endpoints on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from configs.errors import EndpointError
from flows.cli.terminal import say, say_err, show_rows

EndpointName = Annotated[
    str | None, typer.Argument(help="an endpoint's name; not needed if there is one")
]


def status(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """List the endpoints on this machine, and whether they run."""
    from tasks.serving import endpoints, supervisor

    rows = []
    for endpoint in endpoints.list_all():
        state, pid = supervisor.state(endpoint)
        rows.append(
            {
                "name": endpoint.name,
                "state": state,
                "url": f"{endpoint.url}/v1",
                "model": endpoint.model_name,
                "engine": endpoint.engine.name,
                "artifact": endpoint.artifact.short,
                "pid": pid or "",
                "since": f"{endpoint.since:%Y-%m-%d %H:%M} UTC",
            }
        )
    show_rows(rows, as_json, "no endpoint is deployed")


def stop(
    name: EndpointName = None,
    every: Annotated[bool, typer.Option("--all", help="stop every endpoint")] = False,
) -> None:
    """Take an endpoint down and free its port."""
    from tasks.serving import endpoints, supervisor

    for endpoint in endpoints.list_all() if every else [endpoints.get(name)]:
        supervisor.stop(endpoint)
        for problem in endpoint.withdraw():
            say_err(
                f"a store believes that {endpoint.name} still runs, until `lmflows registry gc"
                f" --forget` says that it does not: {problem}"
            )
        endpoint.forget()
        say(f"stopped {endpoint.name}; port {endpoint.options.port} is free")


def logs(name: EndpointName = None, lines: Annotated[int, typer.Option("-n", min=1)] = 40) -> None:
    """Show the last lines of an endpoint's server log."""
    from tasks.serving import endpoints

    log = endpoints.get(name).folder / endpoints.LOG
    if not log.exists():
        raise EndpointError(
            "has not written anything yet",
            where=str(log),
            hint="`lmflows status` tells whether it runs",
        )
    say("\n".join(log.read_text(errors="replace").splitlines()[-lines:]))
