"""Environments are made whole from their lock or not at all, by whoever comes first, and kept by
the lock's digest. The real uv installs small wheels; nothing needs the network."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.errors import ConfigError, DiskFull, EngineError, TransferError
from configs.paths import PROJECT
from tasks.runner import runtimes
from tests.support.patience import PATIENCE
from tests.support.small_runtime import NAME, WAITS, WHEEL, living, lock, made, start, until, wheel

pytestmark = pytest.mark.usefixtures("small")


def test_a_lock_becomes_an_environment_of_its_own(wheels: Path, folder: Path) -> None:
    digest = hashlib.sha256(
        lock(folder, wheel(wheels, code="ANSWER = 42\n")).read_bytes()
    ).hexdigest()
    before, heard = runtimes.get(NAME), list[str]()
    assert (before.ready, before.versions, before.digest) == (False, {}, digest)
    after = runtimes.prepare(NAME, log=heard.append, wheels=wheels)
    assert after.ready and made(folder) == [f"tiny-{digest[:12]}"]
    ran = subprocess.run(
        [
            after.python,
            "-P",
            "-c",
            "import lmdeploy, sys; print(lmdeploy.ANSWER, sys.prefix, lmdeploy.__cached__)",
        ],
        capture_output=True,
        text=True,
    )
    answer, prefix, cached = ran.stdout.split()
    assert (answer, prefix) == ("42", str(folder / f"tiny-{digest[:12]}"))
    assert Path(cached).exists(), "compiled when it was made"
    assert (
        subprocess.run([after.python, "-P", "-c", "import torch"], capture_output=True).returncode
        == 1
    ), "nothing comes from this environment"
    assert after.versions["lmdeploy"] == "0.0.1" and "lmdeploy 0.0.1" in heard[-1]
    assert runtimes.fingerprint(NAME) == {
        "python": ".".join(map(str, sys.version_info[:3])),
        "lmdeploy": "0.0.1",
        "lock": digest,
    }


def test_a_step_runs_there_as_a_child_would(wheels: Path, folder: Path) -> None:
    lock(folder, wheel(wheels))
    python = runtimes.prepare(NAME, wheels=wheels).python
    ran = subprocess.run(
        [python, "-P", "-m", "tasks.runner.child", "--help"],
        capture_output=True,
        text=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )
    assert ran.returncode == 0 and "MODULE:NAME" in ran.stdout


def test_made_once_it_needs_neither_network_nor_wheels(wheels: Path, folder: Path) -> None:
    lock(folder, wheel(wheels))
    first = runtimes.prepare(NAME, wheels=wheels)
    shutil.rmtree(wheels)
    shutil.rmtree(os.environ["UV_CACHE_DIR"])
    assert runtimes.prepare(NAME, offline=True) == first
    assert runtimes.python(NAME) == first.python


def test_a_file_that_is_not_what_the_lock_says_is_refused(wheels: Path, folder: Path) -> None:
    wheel(wheels)
    lock(folder, "0" * 64)
    with pytest.raises(ConfigError, match="not what the lock says") as caught:
        runtimes.prepare(NAME, wheels=wheels)
    assert (
        "0" * 64 in caught.value.message
        and "tiny.lock" in caught.value.hint
        and caught.value.where == "runtime tiny"
    )
    assert made(folder) == [] and not runtimes.get(NAME).ready


def test_a_lock_without_hashes_is_refused(wheels: Path, folder: Path) -> None:
    wheel(wheels)
    (folder / "tiny.lock").write_text("lmdeploy==0.0.1\n")
    with pytest.raises(EngineError, match="must have a hash"):
        runtimes.prepare(NAME, wheels=wheels)
    assert made(folder) == []


def test_no_wheel_for_this_python_is_named(wheels: Path, folder: Path) -> None:
    lock(folder, wheel(wheels, tag="cp39-cp39-manylinux2014_x86_64"))
    with pytest.raises(
        ConfigError, match=rf"no wheel for Python 3\.{sys.version_info.minor} on this machine"
    ):
        runtimes.prepare(NAME, wheels=wheels)
    assert made(folder) == []


def test_nothing_is_built_from_source(wheels: Path, folder: Path, tmp_path: Path) -> None:
    ran, source = tmp_path / "ran", wheels / "lmdeploy-0.0.1.tar.gz"
    scripts = {
        "setup.py": f"open({str(ran)!r}, 'w').close()\n",
        "PKG-INFO": "Metadata-Version: 2.1\nName: lmdeploy\nVersion: 0.0.1\n",
        "pyproject.toml": (
            "[build-system]\nrequires = []\nbackend-path = ['.']\nbuild-backend = 'setup'\n"
        ),
    }
    with tarfile.open(source, "w:gz") as archive:
        for name, text in scripts.items():
            (tmp_path / name).write_text(text)
            archive.add(tmp_path / name, f"lmdeploy-0.0.1/{name}")
    lock(folder, hashlib.sha256(source.read_bytes()).hexdigest())
    with pytest.raises(ConfigError, match="no wheel for Python"):
        runtimes.prepare(NAME, wheels=wheels)
    assert not ran.exists()


def test_a_wheel_that_is_missing_from_the_folder_is_named(wheels: Path, folder: Path) -> None:
    lock(folder, wheel(wheels), version="0.0.2")
    with pytest.raises(ConfigError, match=r"(?s)not to be had: .*lmdeploy==0\.0\.2") as caught:
        runtimes.prepare(NAME, wheels=wheels)
    assert "folder of wheels" in caught.value.hint


def test_without_a_network_the_way_out_is_named(
    wheels: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock(folder, wheel(wheels))
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(TransferError, match="cannot be reached") as caught:
        runtimes.prepare(NAME)
    assert "pip download --require-hashes" in caught.value.hint and caught.value.retryable
    with pytest.raises(ConfigError, match="not everything is in uv's cache"):
        runtimes.prepare(NAME, offline=True)
    assert made(folder) == []


def test_a_full_disk_leaves_nothing(
    wheels: Path, tmpfs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmpfs("size=1m")
    monkeypatch.setenv("LMFLOWS_HOME", str(home))
    (home / "runtimes").mkdir()
    lock(home / "runtimes", wheel(wheels, padding=2 << 20))
    with pytest.raises(DiskFull, match="no space left"):
        runtimes.prepare(NAME, wheels=wheels)
    assert made(home / "runtimes") == []


def opened_by_uv(fifo: Path) -> int:
    """Open a named pipe for writing, as soon as somebody reads from it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            assert time.monotonic() < deadline, "uv never got to the wheel"
            time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_while_it_installs_nothing_looks_ready_and_nothing_goes_on(
    wheels: Path, folder: Path, tmp_path: Path, how: signal.Signals
) -> None:
    lock(folder, wheel(wheels))
    (wheels / WHEEL).rename(tmp_path / WHEEL)
    os.mkfifo(wheels / WHEEL)
    environment = runtimes.get(NAME).python.parents[1]
    partial = folder / f".{environment.name}.partial"
    process = start(wheels)
    pipe = opened_by_uv(wheels / WHEEL)  # there uv waits for ever
    assert living(str(partial)) and partial.exists()
    process.send_signal(how)
    process.wait()
    until(lambda: not living(str(partial)), "ended with its parent")
    os.close(pipe)
    assert partial.exists() == (how == signal.SIGKILL) and not runtimes.get(NAME).ready
    (wheels / WHEEL).unlink()
    shutil.copy(tmp_path / WHEEL, wheels)
    assert runtimes.prepare(NAME, wheels=wheels).ready
    assert made(folder) == [environment.name]


def test_killed_just_before_the_end_nothing_looks_ready(
    wheels: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock(folder, wheel(wheels, code=WAITS))
    at, gate = tmp_path / "at", tmp_path / "gate"
    process = start(wheels, AT=str(at), GATE=str(gate))
    until(at.exists, "checked")
    process.kill()
    process.wait()
    assert not runtimes.get(NAME).ready and [name[0] for name in made(folder)] == ["."]
    lock(folder, wheel(wheels))  # another lock: the leftover is swept all the same
    assert runtimes.prepare(NAME, wheels=wheels).ready
    assert [name[0] for name in made(folder)] == ["t"]


def test_two_processes_make_one_environment(wheels: Path, folder: Path, tmp_path: Path) -> None:
    lock(folder, wheel(wheels, code=WAITS))
    at, gate = tmp_path / "at", tmp_path / "gate"
    first = start(wheels, AT=str(at), GATE=str(gate))
    until(at.exists, "checked")
    second = start(wheels, AT=str(at), GATE=str(gate))
    assert second.stdout is not None
    heard = second.stdout.readline()
    assert "waiting" in heard, "while the first holds the lock"
    gate.touch()
    answers = [process.communicate(timeout=PATIENCE)[0] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert [answer.count("making runtime") for answer in answers] == [1, 0]
    assert (
        answers[0].splitlines()[-1] == answers[1].splitlines()[-1] == str(runtimes.get(NAME).python)
    )
    assert len(made(folder)) == 1


def test_an_environment_whose_python_is_gone_is_made_again(wheels: Path, folder: Path) -> None:
    lock(folder, wheel(wheels))
    python = runtimes.prepare(NAME, wheels=wheels).python
    python.unlink()
    python.symlink_to(folder / "gone")
    assert not runtimes.get(NAME).ready
    assert runtimes.prepare(NAME, wheels=wheels).ready
    assert len(made(folder)) == 1
