"""examples/: what the README sends a reader to does what it says, here with the engine that runs
anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from configs.paths import PROJECT


def test_the_batch_pipeline_answers_both_prompts(tiny_model: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "examples/batch_pipeline.py",
            str(tiny_model),
            "--engine",
            "transformers",
            "--max-new-tokens",
            "8",
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )
    assert done.returncode == 0, done.stderr
    first, second, timing = done.stdout.strip().split("\n\n")
    assert first.startswith("> Give 3 advices on preparing IELTS\n") and second.startswith(
        "> 中国科学院是\n"
    )
    assert all("tokens]" in text for text in (first, second)) and timing.startswith(
        "both answers together: "
    )
