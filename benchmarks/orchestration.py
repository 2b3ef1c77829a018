"""`make bench`: what orchestration costs, as a ratio within one run.

Runs the demo without its server in a fresh home, and sets its wall time against the children's own
times plus Prefect's start (an empty flow in another fresh home). Prints a table and writes the raw
figures as JSON.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from configs.paths import PROJECT

EMPTY_FLOW = """
from flows import environment
environment.prepare(quiet=True)
from prefect import flow
from flows.quantize_and_deploy import quantize_and_deploy  # the same imports as a run
@flow
def empty(): ...
empty()
"""
LIMIT = 0.05


def timed(command: list[str], home: Path) -> tuple[float, str]:
    """Wall seconds and output of a command with a home of its own."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")
    } | {"LMFLOWS_HOME": str(home), "HOME": str(home)}
    started = time.monotonic()
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return time.monotonic() - started, done.stdout


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="lmflows-bench-") as folder:
        start, _ = timed([sys.executable, "-c", EMPTY_FLOW], Path(folder) / "empty")
        home = Path(folder) / "demo"
        run = [
            sys.executable,
            "-m",
            "flows.cli.main",
            "run",
            "configs/demo.yaml",
            "--set",
            "deploy=null",
        ]
        wall, output = timed(run, home)
        children = {
            path.parent.name: json.loads(path.read_text())["seconds"]
            for path in sorted(home.glob("runs/*/*/usage.json"))
        }
        cached, _ = timed(run, home)
    own = sum(children.values())
    ratio = (wall - start - own) / (own + start)
    memory = re.search(r"at most ([\d.]+ GB)", output)
    figures: dict[str, Any] = {
        "seconds": {
            "whole run": wall,
            "Prefect's start and imports": start,
            **children,
            "second run, cached": cached,
        },
        "orchestration_over_children_and_start": ratio,
        "limit": LIMIT,
        "peak_memory": memory[1] if memory else None,
        "machine": {
            "cores": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
        },
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("prefect", "lmdeploy", "torch", "transformers")
        },
    }
    Path("bench.json").write_text(json.dumps(figures, indent=2) + "\n")
    for name, seconds in figures["seconds"].items():
        print(f"{name:<28}{seconds:8.1f} s")
    print(
        f"orchestration over children and start: {ratio:.1%} (limit {LIMIT:.0%}); peak memory"
        f" {figures['peak_memory']}; raw figures in bench.json"
    )


if __name__ == "__main__":
    main()
