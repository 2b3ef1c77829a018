"""Those who write to a folder wait for whoever collects garbage, and the other way round; a lock
ends with its process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.store import locks
from configs.errors import StoreBusy
from configs.paths import PROJECT

HOLDER = """
import sys, time
from pathlib import Path
from artifacts.store.locks import collecting
with collecting(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "GATE_SECONDS", 0.2)


def test_several_write_at_once(tmp_path: Path) -> None:
    with locks.writing(tmp_path), locks.writing(tmp_path):
        pass


def test_who_waits_too_long_is_told_for_whom(tmp_path: Path) -> None:
    with locks.collecting(tmp_path):
        for other in (locks.writing, locks.collecting):
            with pytest.raises(StoreBusy, match="`lmflows registry gc`"), other(tmp_path):
                pass
    with (
        locks.writing(tmp_path),
        pytest.raises(StoreBusy, match="somebody else uses it"),
        locks.collecting(tmp_path),
    ):
        pass
    with locks.collecting(tmp_path):
        pass


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(StoreBusy), locks.writing(tmp_path):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locks.writing(tmp_path):
        pass
