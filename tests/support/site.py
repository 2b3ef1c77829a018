"""The command line as a person uses it: a home folder, a config in it, and `lmflows` in a process
of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from configs.paths import PROJECT
from tests.support.patience import PATIENCE


class Site:
    """A home folder, a config in it, and the command line. `api`: of the Prefect server that runs
    use, unless they are given another."""

    def __init__(self, folder: Path, model: Path, port: int, api: str) -> None:
        self.folder, self.home, self.port, self.api = folder, folder / "home", port, api
        self.config = folder / "pipeline.yaml"
        self.config.write_text(
            yaml.safe_dump(
                {
                    "name": "tiny",
                    "source": {"type": "local", "path": str(model)},
                    "texts": {"source": {"type": "python_docs"}, "held_out_documents": 24},
                    "quantize": {"samples": 4, "sequence_length": 64, "batch_size": 4},
                    "evaluate": {
                        "max_documents": 24,
                        "max_tokens_per_document": 96,
                        "max_perplexity_ratio": 1.2,
                        "max_new_tokens": 16,
                        "probes": 2,
                        "probe_tokens": 16,
                    },
                    "engine": {"name": "transformers"},
                    "deploy": {"port": port},
                }
            )
        )

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")
        }
        environment |= {
            "LMFLOWS_HOME": str(self.home),
            "HOME": str(self.folder),
            "PREFECT_API_URL": self.api,
        } | more
        if not environment["PREFECT_API_URL"]:
            del environment["PREFECT_API_URL"]
        # tests that run in the background of a script inherit an ignored SIGINT; a person's
        # terminal does not
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli.main", *words],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=PROJECT,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def call(self, *words: str, **more: str) -> tuple[int, str]:
        process = self.start(*words, **more)
        output, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, output

    def run(self, *words: str) -> tuple[int, str]:
        return self.call("run", str(self.config), *words)

    def logs(self, step: str) -> list[Path]:
        return sorted((self.home / "runs").glob(f"*/{step}/log.txt"))
