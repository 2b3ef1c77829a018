"""The command line as a whole: which commands there are, and how they end. The only place where an
error becomes text and an exit status.

Exit status: 0 done, 1 a step or a server failed, 2 bad input (nothing was started), 3 the verdict
is not PASS, 130 interrupted.
"""

from __future__ import annotations

import sys

import typer
from typer.exceptions import TyperException

from configs.errors import LmflowsError
from flows.cli import (
    artifacts,
    bench,
    chat,
    compare,
    config,
    endpoints,
    engines,
    harness,
    registry,
    report,
    run,
    ui,
)
from flows.cli.commands import add_command
from flows.cli.signals import INTERRUPTED
from flows.cli.terminal import err, say_err

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Take a language model to a served, measured, reversible 4-bit endpoint on LMDeploy.",
)
app.add_typer(config.app, name="config")
app.add_typer(engines.app, name="engines")
app.add_typer(registry.app, name="registry")
# in the order in which `--help` lists them
add_command(app, run.run)
add_command(app, chat.chat)
add_command(app, endpoints.status)
add_command(app, endpoints.stop)
add_command(app, endpoints.logs)
add_command(app, artifacts.ls)
add_command(app, artifacts.show)
add_command(app, artifacts.verify)
add_command(app, report.report)
add_command(app, compare.compare)
add_command(app, bench.bench)
add_command(app, bench.bench_compare, "bench-compare")
add_command(app, harness.harness)
add_command(app, ui.ui)


def run_command_line() -> None:
    """Run the command that the words of the command line name, and exit. An expected error ends
    with its own status and no traceback."""
    try:
        status = app(standalone_mode=False)
        if status == INTERRUPTED:  # what Typer makes of a KeyboardInterrupt
            say_err("interrupted")
        sys.exit(status if isinstance(status, int) else 0)
    except (typer.Abort, KeyboardInterrupt):  # at a prompt, and between commands
        say_err("interrupted")
        sys.exit(INTERRUPTED)
    except LmflowsError as error:
        err.print(f"[red]error[/] {type(error).__name__}: ", end="", highlight=False)
        say_err(str(error))
        sys.exit(error.exit_status)
    except OSError as error:
        # a folder that may not be read, a full disk: the place is what the system names
        place = f" {error.filename}" if error.filename else ""
        say_err(
            f"error {type(error).__name__}:{place}: {error.strerror or error} -> check that it"
            " exists and may be read and written"
        )
        sys.exit(LmflowsError.exit_status)
    except TyperException as error:
        say_err(f"error: {error.format_message()}")
        sys.exit(error.exit_code)
