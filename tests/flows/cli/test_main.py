"""How `lmflows` starts: its first line comes before Prefect is imported, Ctrl-C ends it in one line
from the beginning, and commands that only read import nothing heavy."""

# covers flows/cli/app.py
# covers flows/cli/config.py
# covers flows/cli/run.py
# covers flows/cli/signals.py

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from artifacts.store.local import LocalStore
from configs import paths
from flows.cli import registry
from tests.support.patience import PATIENCE
from tests.support.places import judged

FIRST_LINE = "configs/demo.yaml: running the pipeline for smollm2-135m-instruct; starting Prefect\n"
HEAVY = (
    *("prefect", "torch", "transformers", "lmdeploy", "matplotlib", "numpy", "scipy", "boto3"),
    *("datasets", "huggingface_hub", "openai", "aiohttp", "fastapi"),
)
# runs the command line, and presses Ctrl-C when a module is about to be imported
INTERRUPTED_AT = """
import os, signal, sys, time

sys.argv[0] = "lmflows"
module = sys.argv.pop(1)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.write(1, b"%.3f CPU seconds" % time.process_time())
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from flows.cli.main import main
main()
"""
MODULES_OF = """
import json, sys
from flows.cli.main import main
try:
    main()
finally:
    print(json.dumps(list(sys.modules)), file=sys.stderr)
"""


def interrupted_at(
    module: str, *words: str, interrupt: signal.Handlers = signal.SIG_DFL
) -> subprocess.CompletedProcess[str]:
    # what runs in the background of a script inherits an ignored SIGINT; a person's program not
    return subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT, module, *words],
        cwd=paths.PROJECT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, interrupt),
    )


def test_the_first_line_of_a_run_comes_before_prefect_and_within_a_second(home: Path) -> None:
    """In a pipe, so it is flushed; counted in the process's own time, whatever else the machine
    does."""
    done = interrupted_at("prefect", "run", "configs/demo.yaml")
    assert done.stdout.startswith(FIRST_LINE)
    seconds = float(done.stdout.removeprefix(FIRST_LINE).split()[0])
    assert seconds < 1.5, "an idle machine takes half a second"
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("module", ["configs.errors", "typer", "pydantic", "rich.console"])
def test_ctrl_c_while_the_commands_are_imported_is_one_line(module: str, home: Path) -> None:
    done = interrupted_at(module, "run", "configs/demo.yaml")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
    assert FIRST_LINE not in done.stdout


def test_ctrl_c_while_a_command_works_is_one_line(home: Path) -> None:
    done = interrupted_at("tasks.serving.endpoints", "status")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_an_ignored_ctrl_c_stays_ignored(home: Path) -> None:
    """A shell starts what runs in the background so."""
    done = interrupted_at("typer", "config", "check", "configs/demo.yaml", interrupt=signal.SIG_IGN)
    assert (done.returncode, done.stderr) == (0, "")
    assert "a valid pipeline for smollm2-135m-instruct" in done.stdout


def test_at_a_terminal_a_line_moves_and_ctrl_c_gives_the_cursor_back(home: Path) -> None:
    mine, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED_AT, "prefect", "run", "configs/demo.yaml"],
        cwd=paths.PROJECT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        os.close(theirs)
        output = b""
        while data := _read(mine):
            output += data
        status = process.wait(PATIENCE)
    os.close(mine)
    text = output.decode().replace("\r\n", "\n")
    first, _, rest = text.partition("\n")
    assert (status, first + "\n") == (130, FIRST_LINE)
    assert "starting Prefect" in rest and text.endswith("interrupted\n")
    assert rest.rindex("\x1b[?25h") > rest.rindex("\x1b[?25l"), "the cursor stays hidden"


def _read(terminal: int) -> bytes:
    """What comes next from a terminal; nothing once all programs on it have ended."""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:
        return b""


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "run --help",
        "status",
        "ls",
        "show DIGEST",
        "registry ls",
        "registry show m/dev",
        "registry history m dev",
        "config check configs/demo.yaml",
        "engines ls",
        "report --help",
        "bench --help",
    ],
)
def test_what_only_reads_imports_nothing_heavy(words: str, home: Path) -> None:
    store = LocalStore(paths.default_store())
    model = judged(store)
    promoted = CliRunner().invoke(registry.app, ["promote", "m", model.candidate, "dev"])
    assert promoted.exit_code == 0, promoted.output
    paths.remember_store(str(store.root))
    done = subprocess.run(
        [sys.executable, "-c", MODULES_OF, *words.replace("DIGEST", model.candidate).split()],
        cwd=paths.PROJECT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stderr))
    assert "flows.cli.app" in imported
    assert imported & set(HEAVY) == set()
