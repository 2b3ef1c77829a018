"""What all tests share: a home of their own, a real small model, free ports."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# before anything imports Prefect: no test touches the user's runs, endpoints or Prefect database
_HOME = Path(tempfile.mkdtemp(prefix="lmflows-test-"))
# what tests/gpu gets back
BEFORE = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
os.environ.update(
    {
        "LMFLOWS_HOME": str(_HOME / "home"),
        "PREFECT_HOME": str(_HOME / "prefect"),
        "HF_HUB_OFFLINE": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "CUDA_VISIBLE_DEVICES": "",
        # OpenMP's threads wait by spinning: where two tests share two cores, training the small
        # model with two threads each takes six times the processor time
        "OMP_NUM_THREADS": "1",
    }
)
# the last two fold tables; pytest-xdist sets them
for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "COLUMNS", "LINES"):
    os.environ.pop(name, None)


# a worker that begins one of these last works alone at the end
LONGEST = (
    "flows/test_quantize_and_deploy.py",
    "tasks/test_internlm2.py",
    "artifacts/store/s3/test_faults.py",
    "flows/test_repair.py",
    "flows/test_promote_model.py",
)
# what needs a small model, a server of Prefect's or one of S3 is left out of `make test-fast`
SLOW = {"tiny_model", "prefect_api", "server"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW & set(getattr(item, "fixturenames", ())) or "s3" in _parameters(item):
            item.add_marker(pytest.mark.slow)
    longest = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: longest.get(item.path, len(LONGEST)))


def _parameters(item: pytest.Item) -> tuple[object, ...]:
    """The values that a parametrized test is given."""
    given = getattr(item, "callspec", None)
    return tuple(given.params.values()) if given else ()


def pytest_sessionfinish() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder of its own; whatever the test deployed there is stopped at the end."""
    folder = tmp_path / "home"
    monkeypatch.setenv("LMFLOWS_HOME", str(folder))
    yield folder
    from tasks.serving import endpoints, supervisor

    for endpoint in endpoints.list_all():
        supervisor.stop(endpoint)


@pytest.fixture(scope="session")
def tiny_model(request: pytest.FixtureRequest) -> Path:
    """The folder of the small model of `tests.support.tiny_model`; trained once and kept in
    pytest's cache. Do not write to it."""
    import torch
    import transformers

    source = (Path(__file__).parent / "support" / "tiny_model.py").read_bytes()
    key = hashlib.sha256(
        source + f"{torch.__version__} {transformers.__version__}".encode()
    ).hexdigest()[:16]
    cache: Path = request.config.cache.mkdir("tiny_model")
    folder = cache / key
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two workers one trains it and the other waits
        if not folder.exists():
            from tests.support.tiny_model import build

            scratch = folder.with_name(f"{key}-{os.getpid()}")
            build(scratch)
            scratch.rename(folder)
    return folder


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API of a Prefect server for all tests of this process: a run without one starts its own,
    which takes six seconds."""
    from tests.support.prefect_server import prefect_server

    with prefect_server(tmp_path_factory.mktemp("prefect")) as url:
        yield url


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a real file system with the given size options."""
    mounts: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"tmpfs-{len(mounts)}"
        folder.mkdir()
        if (
            os.geteuid() != 0
            or subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True
            ).returncode
        ):
            pytest.skip("only root with the right to mount can make a full disk")
        mounts.append(folder)
        return folder

    yield mount
    for folder in mounts:
        subprocess.run(["umount", "-l", folder], check=True)
