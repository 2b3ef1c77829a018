"""Which runtimes there are, by which names, and how they come and go."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import ConfigError, EngineError
from tasks.runner import runtime_probe, runtimes
from tests.support.interpreters import interpreter
from tests.support.small_runtime import NAME, lock, made, wheel

pytestmark = pytest.mark.usefixtures("small")


def test_a_changed_lock_makes_a_new_environment_and_the_old_one_stays(
    wheels: Path, folder: Path
) -> None:
    path = lock(folder, wheel(wheels))
    old, text = runtimes.prepare(NAME, wheels=wheels), path.read_text()
    lock(folder, wheel(wheels, "0.0.2"), "0.0.2")
    assert not runtimes.get(NAME).ready
    new = runtimes.prepare(NAME, wheels=wheels)
    assert (
        (old.versions["lmdeploy"], new.versions["lmdeploy"]) == ("0.0.1", "0.0.2")
        and old.python.exists()
        and len(made(folder)) == 2
    )
    assert runtimes.fingerprint(NAME)["lock"] == new.digest != old.digest
    path.write_text(text)
    assert runtimes.get(NAME) == old, "back to the old lock is back to the old environment"


def test_removing_takes_all_environments_of_the_name_and_leaves_others(
    wheels: Path, folder: Path
) -> None:
    digest = wheel(wheels)
    lock(folder, digest, name="tiny-other")
    other = runtimes.prepare("tiny-other", wheels=wheels)
    lock(folder, digest)
    runtimes.prepare(NAME, wheels=wheels)
    lock(folder, wheel(wheels, "0.0.2"), "0.0.2")
    runtimes.prepare(NAME, wheels=wheels)
    assert len(runtimes.remove(NAME)) == 2
    assert made(folder) == [other.python.parents[1].name] and not runtimes.get(NAME).ready
    assert runtimes.remove(NAME) == []


def test_a_runtime_in_use_is_not_removed(wheels: Path, folder: Path) -> None:
    lock(folder, wheel(wheels))
    python = runtimes.prepare(NAME, wheels=wheels).python
    process = subprocess.Popen(
        [python, "-P", "-c", "print('up', flush=True); import time; time.sleep(600)"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline()
    try:
        with pytest.raises(EngineError, match=f"process {process.pid} runs in"):
            runtimes.remove(NAME)
        assert runtimes.get(NAME).ready
    finally:
        process.kill()
        process.wait()
    assert len(runtimes.remove(NAME)) == 1


def test_the_project_s_own_environment_is_the_default() -> None:
    own = runtimes.get("default")
    assert (own.python, own.ready, own.lock, own.digest, own.adopted) == (
        Path(sys.executable),
        True,
        None,
        None,
        False,
    )
    found = runtimes.fingerprint("default")
    assert found.keys() == {"python", "lmdeploy", "torch", "transformers"}
    assert runtimes.prepare("default") == own
    with pytest.raises(ConfigError):
        runtimes.remove("default")


def test_an_unknown_name_is_told_the_known_ones() -> None:
    for call in (
        runtimes.get,
        runtimes.python,
        runtimes.prepare,
        runtimes.fingerprint,
        runtimes.remove,
    ):
        with pytest.raises(
            ConfigError,
            match=r"no runtime 'lmdeploy-9'; known: default, lmdeploy-0\.12\.3, lmdeploy-0\.18\.0",
        ):
            call("lmdeploy-9")


def test_two_locks_of_one_name_are_refused(folder: Path) -> None:
    lock(folder, "0" * 64, name="lmdeploy-0.18.0")
    with pytest.raises(ConfigError, match=r"2 runtimes are called 'lmdeploy-0\.18\.0'"):
        runtimes.list_all()


def test_an_interpreter_is_adopted_under_a_name_and_says_that_it_is_unlocked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_probe, "NEEDS", ("tasks.runner.child",))
    python = interpreter(tmp_path / "env", "0.11.0")
    adopted = runtimes.adopt("container", python)
    assert (adopted.python, adopted.lock, adopted.digest, adopted.ready, adopted.adopted) == (
        python,
        None,
        None,
        True,
        True,
    )
    assert runtimes.python("container") == python and adopted in runtimes.list_all()
    assert (
        runtimes.fingerprint("container")
        == adopted.versions
        == {
            "python": ".".join(map(str, sys.version_info[:3])),
            "lmdeploy": "0.11.0",
        }
    )
    info = next((tmp_path / "env").glob("lib/python3*/site-packages/lmdeploy-0.11.0.dist-info"))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lmdeploy\nVersion: 0.11.1\n")
    assert runtimes.fingerprint("container")["lmdeploy"] == "0.11.1", (
        "nobody locks it, so it is asked again"
    )
    shutil.rmtree(tmp_path / "env")
    with pytest.raises(ConfigError, match="is gone"):
        runtimes.python("container")
    assert runtimes.remove("container") == [folder / "container.json"]
    with pytest.raises(ConfigError, match="no runtime 'container'"):
        runtimes.get("container")
