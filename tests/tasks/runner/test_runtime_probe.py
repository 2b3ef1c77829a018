"""What an interpreter is asked before anything runs in it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from configs.errors import ConfigError
from tasks.runner import runtime_probe, runtimes
from tests.support.interpreters import interpreter
from tests.support.small_runtime import NAME, lock, made, wheel

pytestmark = pytest.mark.usefixtures("small")


@pytest.mark.parametrize(
    ("code", "needs", "message"),
    [
        ("raise ImportError('libcuda.so.1 is broken')\n", ("lmdeploy",), "libcuda.so.1 is broken"),
        ("", ("artifacts.store.local",), "No module named 'pydantic'"),
    ],
)
def test_an_environment_that_cannot_import_what_a_child_needs_is_not_ready(
    wheels: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    needs: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr(runtime_probe, "NEEDS", needs)
    lock(folder, wheel(wheels, code=code))
    with pytest.raises(
        ConfigError, match=f"cannot import what a child process needs: .*{re.escape(message)}"
    ):
        runtimes.prepare(NAME, wheels=wheels)
    assert made(folder) == []


def test_an_interpreter_that_cannot_do_the_work_is_not_adopted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="has no lmdeploy"):
        runtimes.adopt("container", interpreter(tmp_path / "bare", None))
    monkeypatch.setattr(runtime_probe, "NEEDS", ("artifacts.store.local",))
    with pytest.raises(ConfigError, match=r"cannot import what a child process needs: .*pydantic"):
        runtimes.adopt("container", interpreter(tmp_path / "poor", "0.11.0"))
    with pytest.raises(ConfigError, match="not a program"):
        runtimes.adopt("container", tmp_path / "nothing")
    with pytest.raises(ConfigError, match="does not run"):
        runtimes.adopt("container", Path("/bin/false"))
    for name in ("default", "lmdeploy-0.18.0", "../up"):
        with pytest.raises(ConfigError, match=r"taken|cannot be a runtime's name"):
            runtimes.adopt(name, Path(sys.executable))
    assert list(folder.glob("*.json")) == []


@pytest.mark.slow
def test_this_environment_has_what_a_child_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert runtime_probe.require_usable("default", Path(sys.executable)).keys() == {
        "python",
        "lmdeploy",
        "torch",
        "transformers",
    }


def test_what_a_child_needs_is_all_there() -> None:
    """The names are strings, and a file that moves takes none along."""
    from tasks.runner.runtime_probe import NEEDS

    assert [name for name in NEEDS if importlib.util.find_spec(name) is None] == []
