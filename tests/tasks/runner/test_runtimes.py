"""Engine runtimes: made whole from their lock or not at all, by whoever comes first, and kept by
the lock's digest.

The real uv installs small wheels that are built here; nothing needs the network.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from configs.errors import ConfigError, DiskFull, EngineError, TransferError
from configs.paths import PROJECT
from tasks.runner import runtimes
from tests.support.interpreters import interpreter

NAME = "tiny"
WHEEL = "lmdeploy-0.0.1-py3-none-any.whl"
WAITS = (
    "import os, time\nopen(os.environ['AT'], 'w').close()\nwhile not"
    " os.path.exists(os.environ['GATE']):\n    time.sleep(0.02)\n"
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path) -> None:
    """A cache of its own, and a child that needs no more than what the small lock has."""
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(runtimes, "NEEDS", ("lmdeploy", "tasks.runner.child"))


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


@pytest.fixture
def folder(home: Path) -> Path:
    (home / "runtimes").mkdir(parents=True)
    return home / "runtimes"


def wheel(
    wheels: Path,
    version: str = "0.0.1",
    *,
    code: str = "",
    tag: str = "py3-none-any",
    padding: int = 0,
) -> str:
    """Build a wheel called lmdeploy; its hex sha256."""
    path, info = wheels / f"lmdeploy-{version}-{tag}.whl", f"lmdeploy-{version}.dist-info"
    files: dict[str, str | bytes] = {
        "lmdeploy/__init__.py": code,
        "lmdeploy/data.bin": os.urandom(padding),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: lmdeploy\nVersion: {version}\n",
        f"{info}/WHEEL": (
            f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n"
        ),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        archive.writestr(
            f"{info}/RECORD", "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lock(folder: Path, digest: str, version: str = "0.0.1", name: str = NAME) -> Path:
    path = folder / f"{name}.lock"
    path.write_text(f"lmdeploy=={version} \\\n    --hash=sha256:{digest}\n")
    return path


def made(folder: Path) -> list[str]:
    """What of environments lies in the folder, whole or not."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


PREPARE = """
import sys
from pathlib import Path
from tasks import runtimes
runtimes.NEEDS = ("lmdeploy", "tasks.runner.child")
say = lambda text: print(text, flush=True)
print(runtimes.prepare("tiny", say=say, wheels=Path(sys.argv[1])).python, flush=True)
"""


def start(wheels: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(wheels)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)} | environment,
        # tests that run in the background of a script inherit an ignored
        # SIGINT; a person's terminal does not
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"never {what}"
        time.sleep(0.02)


def living(word: str) -> list[int]:
    """The processes other than this one that have the word in their command line."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
        and process.pid != os.getpid()
        and any(word in part for part in process.info["cmdline"] or [])
    ]


def test_a_lock_becomes_an_environment_of_its_own(wheels: Path, folder: Path) -> None:
    digest = hashlib.sha256(
        lock(folder, wheel(wheels, code="ANSWER = 42\n")).read_bytes()
    ).hexdigest()
    before, heard = runtimes.get(NAME), list[str]()
    assert (before.ready, before.versions, before.digest) == (False, {}, digest)
    after = runtimes.prepare(NAME, say=heard.append, wheels=wheels)
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
    monkeypatch.setattr(runtimes, "NEEDS", needs)
    lock(folder, wheel(wheels, code=code))
    with pytest.raises(
        ConfigError, match=f"cannot import what a child process needs: .*{re.escape(message)}"
    ):
        runtimes.prepare(NAME, wheels=wheels)
    assert made(folder) == []


def opened_by_uv(fifo: Path) -> int:
    """Open a named pipe for writing, as soon as somebody reads from it."""
    deadline = time.monotonic() + 30
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
    answers = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert [answer.count("making runtime") for answer in answers] == [1, 0]
    assert (
        answers[0].splitlines()[-1] == answers[1].splitlines()[-1] == str(runtimes.get(NAME).python)
    )
    assert len(made(folder)) == 1


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


def test_an_environment_whose_python_is_gone_is_made_again(wheels: Path, folder: Path) -> None:
    lock(folder, wheel(wheels))
    python = runtimes.prepare(NAME, wheels=wheels).python
    python.unlink()
    python.symlink_to(folder / "gone")
    assert not runtimes.get(NAME).ready
    assert runtimes.prepare(NAME, wheels=wheels).ready
    assert len(made(folder)) == 1


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
        runtimes.one,
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
    monkeypatch.setattr(runtimes, "NEEDS", ("tasks.runner.child",))
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


def test_an_interpreter_that_cannot_do_the_work_is_not_adopted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="has no lmdeploy"):
        runtimes.adopt("container", interpreter(tmp_path / "bare", None))
    monkeypatch.setattr(runtimes, "NEEDS", ("artifacts.store.local",))
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
    assert runtimes._probe("default", Path(sys.executable)).keys() == {
        "python",
        "lmdeploy",
        "torch",
        "transformers",
    }
