"""A runtime whose lock has one small wheel, called lmdeploy, that is built here: the real uv
installs it without a network."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import psutil

from configs.paths import PROJECT

NAME = "tiny"
WHEEL = "lmdeploy-0.0.1-py3-none-any.whl"
WAITS = (
    "import os, time\nopen(os.environ['AT'], 'w').close()\nwhile not"
    " os.path.exists(os.environ['GATE']):\n    time.sleep(0.02)\n"
)


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
from tasks.runner import runtime_probe, runtimes
runtime_probe.NEEDS = ("lmdeploy", "tasks.runner.child")
log = lambda text: print(text, flush=True)
print(runtimes.prepare("tiny", log=log, wheels=Path(sys.argv[1])).python, flush=True)
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
