"""A program that is run to its end."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import pytest

from tasks.runner import command


def test_its_status_and_lines_come_back_and_are_heard_as_they_come() -> None:
    heard: list[str] = []
    code = "import sys; print('one', flush=True); print('two', file=sys.stderr); sys.exit(3)"
    assert command.run([sys.executable, "-c", code], log=heard.append) == (3, ["one", "two"])
    assert heard == ["one", "two"]


def test_it_holds_the_lock_that_it_is_given(tmp_path: Path) -> None:
    handle = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    code = "import os, sys; print(os.readlink(f'/proc/self/fd/{sys.argv[1]}'))"
    fcntl.flock(handle, fcntl.LOCK_EX)
    words = [sys.executable, "-c", code, str(handle)]
    assert command.run(words, handle=handle) == (0, [str(tmp_path / "lock")])
    os.close(handle)


def test_an_exception_while_it_runs_ends_it() -> None:
    pids: list[int] = []

    def stop(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with pytest.raises(KeyboardInterrupt):
        command.run([sys.executable, "-c", code], log=stop)
    assert not Path(f"/proc/{pids[0]}").exists()
