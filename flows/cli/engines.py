"""`lmflows engines`: the runtimes that engines run in, and measurements of engines by
themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from artifacts.records.trusted_code import may_run_code
from configs.engines import names_of
from configs.errors import ConfigError
from configs.evaluation import Benchmark
from configs.texts import PythonDocs, TextFile
from configs.variants import weights_and_kv
from flows.cli.commands import add_command
from flows.cli.options import (
    EngineName,
    Json,
    Model,
    Trust,
    VariantName,
    check_place,
    checked,
    numbers,
    starting_prefect,
    write_figures,
)
from flows.cli.terminal import say, say_err, show_rows
from flows.run.environment import unreachable_is_an_error
from flows.run.lookup import engine_of, find_model, variant_of

if TYPE_CHECKING:
    from tasks.runner.runtimes import Runtime

app = typer.Typer(
    no_args_is_help=True, help="Engine runtimes: locked environments of their own, side by side."
)

SHOWN = ("python", "lmdeploy", "torch", "transformers")  # whose versions `ls` shows

Runtimes = Annotated[
    list[str], typer.Option("--runtime", help="several times; the first is the baseline")
]
BatchSizes = Annotated[str, typer.Option("--batch-sizes")]
Rounds = Annotated[int, typer.Option(min=1)]
PromptTokens = Annotated[int, typer.Option(min=1)]
NewTokens = Annotated[int, typer.Option(min=2)]
TextsToScore = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, help="a text file to score; default: Python's reference"
    ),
]
Shares = Annotated[str, typer.Option("--shares", help="values of cache_max_entry_count")]


def ls(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """List the runtimes, and what is installed in those that are ready."""
    from tasks.runner import runtimes

    rows = [
        {
            "runtime": runtime.name,
            "state": "ready" if runtime.ready else "not prepared",
            "lock": (runtime.digest or "")[:12] or "not locked",
            **{name: runtime.versions.get(name, "") for name in SHOWN},
        }
        for runtime in runtimes.list_all()
    ]
    show_rows(rows, as_json, "no runtimes")


def prepare(
    names: Annotated[
        list[str], typer.Argument(help="runtimes, as `lmflows engines ls` names them")
    ],
    wheels: Annotated[
        Path | None, typer.Option(help="install from this folder of wheels, without the network")
    ] = None,
) -> None:
    """Make runtimes ready, so that their first use needs no network."""
    from tasks.runner import runtimes

    for name in names:
        runtime = runtimes.prepare(
            name,
            log=say,
            wheels=wheels,
            offline=wheels is not None,
        )
        say(f"{name} is ready: {_versions(runtime)}")


def adopt(
    name: str, python: Annotated[Path, typer.Argument(help="an interpreter that has LMDeploy")]
) -> None:
    """Register an environment that exists already, a container's for example, as a runtime. Nothing
    locks it."""
    from tasks.runner import runtimes

    say(f"{name}: {_versions(runtimes.adopt(name, python))}")


def remove(name: str) -> None:
    """Delete a runtime's environments (its lock stays), or forget an adopted one."""
    from tasks.runner import runtimes

    for folder in runtimes.remove(name):
        say(f"removed {folder}")


def compare(
    model: Model,
    runtimes: Runtimes,
    engine: EngineName = "turbomind",
    variant: VariantName = "w4a16",
    batch_sizes: BatchSizes = "1,16,64",
    rounds: Rounds = 5,
    prompt_tokens: PromptTokens = 512,
    new_tokens: NewTokens = 128,
    texts: TextsToScore = None,
    trust_remote_code: Trust = False,
    json_file: Json = None,
) -> None:
    """Run one model through several runtimes, interleaved: which is faster, by what ratio, and do
    the answers agree?"""
    from tasks.compare_runtimes import CompareRuntimesRequest
    from tasks.machine.gpus import choose
    from tasks.measure import hardware
    from tasks.runner.runtimes import get

    found = find_model(model)
    options = checked(engine_of, name=engine)
    for name in runtimes:
        get(name)
    check_place(json_file)
    request = checked(
        CompareRuntimesRequest,
        folder=found.folder,
        digest=found.digest,
        engine=options,
        kv_bits=weights_and_kv(variant_of(variant, options))[1],
        runtimes=tuple(runtimes),
        benchmark=checked(
            Benchmark,
            batch_sizes=tuple(numbers(batch_sizes, int)),
            rounds=rounds,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
        ),
        texts=(
            TextFile(type="file", path=texts.absolute())
            if texts
            else PythonDocs(type="python_docs")
        ),
        prompts=("hello", "please provide three suggestions about ielts' preparation"),
        hardware=hardware(choose(None, options.tp)),
        trust_remote_code=may_run_code(found.manifest, asked=trust_remote_code),
    )
    _make_ready(runtimes)
    with starting_prefect():
        from flows.compare_engines import compare_engines, comparison_rows
    with unreachable_is_an_error():
        result = compare_engines(f"compare {found.label}", request)
    show_rows(comparison_rows(result), False, "")
    write_figures(json_file, result)


def memory(
    model: Model,
    shares: Shares = "0.1,0.2,0.4,0.8",
    engine: EngineName = "turbomind",
    variant: VariantName = "w4a16",
    runtime: str = "default",
    trust_remote_code: Trust = False,
    json_file: Json = None,
) -> None:
    """Load a model with several values of cache_max_entry_count, and show the GPU memory that each
    takes."""
    from tasks.kv_memory import MemoryRequest, require_gpu
    from tasks.machine.gpus import choose
    from tasks.measure import hardware
    from tasks.runner.runtimes import get

    found = find_model(model)
    options = checked(engine_of, name=engine, runtime=get(runtime).name)
    check_place(json_file)
    if not options.reserves_cache:
        raise ConfigError(
            f"{options.name} has no cache_max_entry_count",
            where="--engine",
            hint=names_of(lambda other: other.reserves_cache),
        )
    request = checked(
        MemoryRequest,
        folder=found.folder,
        engine=options,
        kv_bits=weights_and_kv(variant_of(variant, options))[1],
        shares=tuple(numbers(shares, float)),
        hardware=hardware(choose(None, options.tp)),
        trust_remote_code=may_run_code(found.manifest, asked=trust_remote_code),
    )
    require_gpu()
    _make_ready([runtime])
    with starting_prefect():
        from flows.compare_engines import kv_cache_memory, memory_rows
    with unreachable_is_an_error():
        result = kv_cache_memory(f"memory {found.label}", request)
    show_rows(memory_rows(result), False, "")
    write_figures(json_file, result)


add_command(app, ls)
add_command(app, prepare)
add_command(app, adopt)
add_command(app, remove)
add_command(app, compare)
add_command(app, memory)


def _make_ready(names: Sequence[str]) -> None:
    """Make the runtimes that are not there yet, which can take minutes, and tell of it on
    stderr."""
    from tasks.runner import runtimes

    for name in names:
        runtimes.prepare(name, log=say_err)


def _versions(runtime: Runtime) -> str:
    return ", ".join(f"{name} {version}" for name, version in runtime.versions.items())
