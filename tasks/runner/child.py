"""The child's side of a step: `python -m tasks.runner.child MODULE:NAME --folder F --workspace W`.

The process forks at once. The outer half, the leader, loads nothing: it leads the process group,
notes what the step used, and kills the whole group when the flow dies, even by kill -9: the kernel
then sends it SIGTERM (`tasks.runner.process`). The inner half does the work, reads `request.json`,
writes `events.jsonl` as it goes and `answer.json` at the end; its output is in `log.txt`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tasks.runner.guard import die_with


def main() -> NoReturn:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", metavar="MODULE:NAME")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--workspace", type=Path, required=True)
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _kill_group)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the flow decides what Ctrl-C means
    started = time.monotonic()
    leader = os.getpid()
    worker = os.fork()
    if worker == 0:
        die_with(leader, signal.SIGKILL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os._exit(_work(args.step, args.folder, args.workspace))
    _, status = os.waitpid(worker, 0)
    code = os.waitstatus_to_exitcode(status)
    usage = {
        "seconds": round(time.monotonic() - started, 3),
        "exit": code,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }
    _write(args.folder / "usage.json", usage)
    sys.exit(code if code >= 0 else 128 - code)


def _kill_group(_signal: int, _frame: FrameType | None) -> None:
    os.killpg(0, signal.SIGKILL)


def _write(path: Path, value: object) -> None:
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(value))
    os.replace(scratch, path)


def _work(address: str, folder: Path, workspace: Path) -> int:
    """Run the step; 0 if it answered, 1 if it answered with an error."""
    from artifacts.store.files import disk_full_is_an_error
    from artifacts.store.local import LocalStore
    from configs.errors import LmflowsError, StepFailed
    from tasks.runner.step import Context, Step

    module, name = address.split(":")
    try:
        with disk_full_is_an_error(f"step {name}"):
            step: Step[Any, Any] = getattr(importlib.import_module(module), name)
            request = step.request.model_validate_json((folder / "request.json").read_bytes())
            result = step(request, Context(LocalStore(workspace), folder / "events.jsonl"))
        answer: dict[str, object] = {"result": result.model_dump(mode="json")}
    except LmflowsError as error:
        traceback.print_exc()
        answer = {"error": error.to_dict()}
    except MemoryError:
        failed = StepFailed(
            "out of memory", where=f"step {name}", hint="use a machine with more memory"
        )
        answer = {"error": failed.to_dict()}
    except Exception as error:
        traceback.print_exc()
        failed = StepFailed(
            f"{type(error).__name__}: {error}",
            where=f"step {name}",
            hint=f"the traceback is in {folder / 'log.txt'}",
        )
        answer = {"error": failed.to_dict()}
    sys.stdout.flush()
    sys.stderr.flush()
    _write(folder / "answer.json", answer)
    return 0 if "result" in answer else 1


if __name__ == "__main__":
    main()
