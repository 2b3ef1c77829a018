"""`lmflows run`: a whole pipeline, shown step by step."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from configs.errors import VerdictFailed
from configs.reader import load, overrides_of
from flows.cli.options import ConfigPath, Overrides, starting_prefect
from flows.cli.signals import INTERRUPTED, termination_raises
from flows.cli.terminal import out, say
from flows.run.environment import unreachable_is_an_error


def run(
    config: ConfigPath,
    set_: Overrides = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="show Prefect's own log lines")
    ] = False,
) -> None:
    """Download, check, quantize, evaluate, judge, upload, promote and serve a model."""
    overrides = overrides_of(set_ or [])
    pipeline = load(config, overrides)  # a bad config ends here, before Prefect is started
    started = time.monotonic()
    say(f"{config}: running the pipeline for {pipeline.name}; starting Prefect")
    with starting_prefect(out, quiet=not verbose):
        from flows.cli.console import ConsoleDisplay
        from flows.cli.run_summary import print_summary
        from flows.quantize_and_deploy import quantize_and_deploy
        from flows.run.summary import Summary
        from tasks.machine.sampler import HostMemoryMeter
        from tasks.serving import supervisor
    meter = HostMemoryMeter()
    meter.watch(supervisor.pid())
    meter.start()
    failed = None
    with termination_raises(KeyboardInterrupt()), ConsoleDisplay(out, started):
        try:
            with unreachable_is_an_error():
                summary = quantize_and_deploy(str(config), overrides)
        except VerdictFailed as error:
            if not isinstance(error.summary, Summary):
                raise
            summary = error.summary
            failed = error
        except KeyboardInterrupt:
            say("finished steps are kept, and the next run goes on after them")
            raise SystemExit(INTERRUPTED) from None
        finally:
            meter.watch(supervisor.pid())
    meter.stop()
    seconds = time.monotonic() - started
    print_summary(
        out, summary, seconds=seconds, peak_bytes=meter.peak_bytes, program=program_name()
    )
    if failed:
        raise failed


def program_name() -> str:
    """What the reader has to type for this program where they are: its name if the shell finds it,
    else its path."""
    called = Path(sys.argv[0]).absolute()
    found = shutil.which("lmflows")
    if called.name != "lmflows" or (found and called.samefile(found)):
        return "lmflows"
    here = Path.cwd()
    return shlex.quote(str(called.relative_to(here) if called.is_relative_to(here) else called))
