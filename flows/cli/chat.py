"""`lmflows chat`: talk to an endpoint, or to a model in an engine of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from artifacts.records.trusted_code import may_run_code
from configs.engines import BY_NAME
from configs.errors import ConfigError
from flows.cli.options import checked
from flows.cli.signals import INTERRUPTED, termination_raises
from flows.cli.terminal import err, out
from flows.run.lookup import engine_of, find_model, variant_of

if TYPE_CHECKING:
    from flows.cli.conversation import Manner

# the longest that a conversation waits for its model: hundreds of GB come from a slow disk
LOADING_SECONDS = 1800

Name = Annotated[
    str | None,
    typer.Argument(help="an endpoint's name; with --engine an artifact's digest or a model folder"),
]
EngineName = Annotated[
    str | None,
    typer.Option(
        help=f"load a model with this engine just for the conversation: {', '.join(BY_NAME)}"
    ),
]
VariantName = Annotated[
    str | None, typer.Option(help="with --engine: the KV cache, for example w4a16-kv8")
]
CacheShare = Annotated[
    float, typer.Option(help="with --engine: share of the GPU memory for the KV cache")
]
Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="with --engine and a folder: run its Python files"),
]
Url = Annotated[
    str | None, typer.Option(help="any OpenAI-compatible server, instead of an endpoint")
]
Temperature = Annotated[float, typer.Option(min=0, max=2)]
MaxTokens = Annotated[int, typer.Option(min=1)]
Timing = Annotated[bool, typer.Option("--timing", help="tell tokens and seconds of each answer")]


@dataclass(frozen=True)
class OwnEngine:
    """An engine that is started for one conversation, and the model in it: an artifact's digest or
    a model folder. Without a variant it is the model's own weight format."""

    engine: str
    model: str
    variant: str | None
    cache_max_entry_count: float
    trust_remote_code: bool


def chat(
    name: Name = None,
    engine: EngineName = None,
    variant: VariantName = None,
    cache_max_entry_count: CacheShare = 0.4,
    trust_remote_code: Trust = False,
    url: Url = None,
    system: Annotated[str | None, typer.Option(help="a system message")] = None,
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = 512,
    timing: Timing = False,
) -> None:
    """Talk to an endpoint, or to a model in an engine of its own.

    An empty line or Ctrl-D ends it, /new forgets the conversation, Ctrl-C cuts an answer short."""
    from flows.cli.conversation import Manner, converse
    from tasks.serving import endpoints

    manner = Manner(system=system, temperature=temperature, max_tokens=max_tokens, timing=timing)
    if engine is None:
        converse(out, manner, endpoint=None if url else endpoints.get(name), url=url)
        return
    if name is None:
        raise ConfigError(
            "which model?", where="--engine", hint="name an artifact's digest or a model folder"
        )
    talk_to_own_engine(
        OwnEngine(engine, name, variant, cache_max_entry_count, trust_remote_code), manner
    )


def talk_to_own_engine(own: OwnEngine, manner: Manner) -> None:
    """Start the engine, hold a conversation, and end the engine."""
    from flows.cli.conversation import converse
    from tasks.checkpoints.files import read_config
    from tasks.machine.gpus import cuda_is_visible
    from tasks.serving.temporary import served

    found = find_model(own.model)
    weights = "w4a16" if "quantization_config" in read_config(found.folder) else "fp16"
    options = checked(
        engine_of,
        name=own.engine,
        cache_max_entry_count=own.cache_max_entry_count,
        # as the tutorial does; float32 runs out of memory
        dtype="float16" if cuda_is_visible() else "float32",
    )
    variant = variant_of(own.variant or weights, options)
    # a KeyboardInterrupt would only cut an answer short
    with err.status("loading") as moving, termination_raises(SystemExit(INTERRUPTED)):
        serving = served(
            found.folder,
            options,
            variant,
            trust_remote_code=may_run_code(found.manifest, asked=own.trust_remote_code),
            limit_s=LOADING_SECONDS,
            log=moving.update,
        )
        with serving as endpoint:
            moving.stop()
            converse(out, manner, endpoint=endpoint)
