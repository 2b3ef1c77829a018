"""The one way to start a child process: it is what was asked for, and it never outlives who started
it."""

# covers tasks/runner/guard.py

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from configs.paths import PROJECT, process_environment
from tasks.runner import guard
from tasks.runner.process import Streams, how_it_ended, kill_group, module_command, start
from tests.support.patience import PATIENCE
from tests.support.processes import all_gone

PIPE = subprocess.PIPE
NOWHERE = Streams(stdout=subprocess.DEVNULL)


def python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-c", code, *words]


def said(command: list[str], **options: object) -> str:
    child = start(command, Streams(stdout=PIPE), **options)  # type: ignore[arg-type]
    return child.communicate(timeout=PATIENCE)[0].decode()


# -- what it is


def test_it_runs_the_program_with_its_words_and_under_the_pid_that_is_given_back() -> None:
    code = "import os, sys; print(os.getpid(), os.getppid(), sys.argv[1:])"
    child = start(python(code, "a b", "", "$HOME"), Streams(stdout=PIPE))
    words = child.communicate(timeout=PATIENCE)[0].decode()
    assert words == f"{child.pid} {os.getpid()} ['a b', '', '$HOME']\n" and child.returncode == 0


def test_what_it_writes_goes_where_it_was_told_and_it_reads_nothing() -> None:
    code = (
        "import sys; print('in', repr(sys.stdin.read()), flush=True); print('x', file=sys.stderr)"
    )
    assert said(python(code)) == "in ''\nx\n"
    streams = Streams(stdout=PIPE, stderr=subprocess.DEVNULL, stdin=PIPE)
    assert (
        start(python(code), streams).communicate(b"words", timeout=PATIENCE)[0] == b"in 'words'\n"
    )


def test_it_has_this_environment_and_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    code = "import os; print(os.environ['OURS'], os.environ['ITS'])"
    assert said(python(code), environment={"ITS": "2"}) == "1 2\n"


def test_it_inherits_the_descriptors_that_it_is_given_and_no_others() -> None:
    reading, writing = os.pipe()
    code = "import os, sys; os.write(int(sys.argv[1]), b'through')"
    start(python(code, str(writing)), NOWHERE, pass_fds=[writing]).wait(PATIENCE)
    assert os.read(reading, 100) == b"through"
    assert start(python(code, str(writing)), NOWHERE).wait(PATIENCE) == 1
    os.close(reading)
    os.close(writing)


def test_signals_mean_what_they_mean_to_any_program() -> None:
    """A Python ignores SIGPIPE; a program that it starts must not."""
    ignored = next(
        line for line in said(["/bin/cat", "/proc/self/status"]).splitlines() if "SigIgn" in line
    )
    assert int(ignored.split()[1], 16) & sum(1 << (number - 1) for number in guard.IGNORED) == 0


def test_a_program_that_is_not_there_says_so(tmp_path: Path) -> None:
    child = start([tmp_path / "gone"], Streams(stdout=PIPE))
    assert child.communicate(timeout=PATIENCE)[0].decode() == (
        f"{tmp_path / 'gone'}: No such file or directory\n"
    )
    assert child.returncode == guard.CANNOT_RUN


def test_a_module_runs_from_the_checkout_and_not_from_the_folder_one_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    command = module_command("tasks.runner.child", "--help")
    assert "MODULE:NAME" in said(command, environment=process_environment())


@pytest.mark.parametrize("own", [True, False])
def test_it_leads_a_session_or_belongs_to_ours(own: bool) -> None:
    code = "import os; print(os.getsid(0) == os.getpgid(0) == os.getpid(), os.getpgid(0))"
    leads, group = said(python(code), own_session=own).split()
    assert leads == str(own) and (int(group) == os.getpgid(0)) == (not own)


# -- how it ends

STARTER = """
import subprocess, sys, time
from tasks.runner.process import Streams, start
from signal import Signals
child = start([sys.executable, "-c", sys.argv[1]], Streams(stdout=sys.stdout.fileno()),
              own_session=sys.argv[2] == "own", dies_by=Signals[sys.argv[3]])
time.sleep(600)
"""
SLEEPS = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"


def starter(code: str, session: str = "own", how: str = "SIGKILL") -> subprocess.Popen[bytes]:
    return subprocess.Popen(python(STARTER, code, session, how), stdout=PIPE, cwd=PROJECT)


@pytest.mark.parametrize("session", ["own", "joined"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_it_dies_with_its_starter_however_that_ends(how: signal.Signals, session: str) -> None:
    with starter(SLEEPS, session) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(how)
        parent.wait()
        assert all_gone([pid], 10)


def test_one_that_has_others_to_end_is_asked_to() -> None:
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: (print('asked'), sys.exit()));"
        " print('up', flush=True); time.sleep(600)"
    )
    with starter(code, how="SIGTERM") as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        parent.kill()
        assert parent.stdout.readline() == b"asked\n"


def test_it_dies_with_the_thread_that_started_it() -> None:
    """What the module's docstring says, because it surprises."""
    started: list[subprocess.Popen[bytes]] = []

    def begin() -> None:
        started.append(start(python(SLEEPS), Streams(stdout=PIPE)))
        assert started[0].stdout is not None
        started[0].stdout.readline()

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    with started[0] as child:
        assert child.wait(PATIENCE) == -signal.SIGKILL


def test_a_starter_that_is_gone_already_is_noticed() -> None:
    """It died between the fork and the wish to die with it."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", guard.__file__, "1", "9", *python("print('ran')")],
        capture_output=True,
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")


def test_killing_a_group_takes_all_of_it_and_returns_when_they_are_gone() -> None:
    code = (
        "import subprocess, sys, time;"
        " child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        " print(child.pid, flush=True); time.sleep(600)"
    )
    child = start(python(code), Streams(stdout=PIPE))
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    kill_group(child)
    assert child.returncode == -signal.SIGKILL and all_gone([grandchild], 0.1)
    kill_group(child)  # again: nothing to do
    child.stdout.close()


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (-6, "signal SIGABRT"),
        (139, "signal SIGSEGV"),
        (7, "exit status 7"),
        (0, "exit status 0"),
        (255, "exit status 255"),
    ],
)
def test_an_exit_status_in_words(returncode: int, words: str) -> None:
    assert how_it_ended(returncode) == words


# -- and there is no other way

WAYS = {"Popen", "run", "call", "check_call", "check_output", "getoutput", "getstatusoutput"}
# supervisord detaches itself: it is to outlive who starts it
ALLOWED = {"tasks/runner/process.py": {"Popen"}, "tasks/serving/supervisor.py": {"run"}}


def test_nothing_else_in_the_product_starts_a_process() -> None:
    found: dict[str, set[str]] = {}
    for package in ("flows", "tasks", "artifacts", "configs"):
        for path in (PROJECT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                module, name = ast.unparse(node.func.value), node.func.attr
                if (module == "subprocess" and name in WAYS) or (
                    module == "os" and name.startswith(("spawn", "posix_spawn", "system", "popen"))
                ):
                    found.setdefault(str(path.relative_to(PROJECT)), set()).add(name)
    assert found == ALLOWED


def test_it_takes_no_noticeable_time() -> None:
    started = time.monotonic()
    for _ in range(5):
        assert start(["/bin/true"], NOWHERE).wait(PATIENCE) == 0
    assert time.monotonic() - started < 5
    assert not [child for child in psutil.Process().children() if "true" in child.name()]
