"""The engines of a pipeline: one class each, with its options and, as class attributes, what it can
do.

What an engine does with them stands in its module (the table in `tasks.engines`). A new engine is a
class here, with its name in the union `Engine`. The schema, the checks and the commands ask these
attributes; nobody asks which class an engine has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field

from configs.quantization import Format, Quantize
from configs.section import Section
from configs.variants import KvBits, Variant, weights_and_kv

ANY_SIZE: tuple[int, ...] = ()


class EngineOptions(Section):
    """What every engine has.

    Attributes:
        needs_gpu: it runs on CUDA GPUs only, as many as `tp` says.
        weight_bytes: bytes of an unquantized weight once it is loaded.
        kv_bits: the KV caches that it has.
        reserves_cache: it has the option `cache_max_entry_count`.
        formats: the formats of quantized weights that it serves, each with its group sizes.
        mixed_formats: those of which it serves a checkpoint with layers of both kinds.
        group_sizes: for an engine that does not take every group size: which it takes, and how to
            get there.
    """

    needs_gpu: ClassVar[bool]
    weight_bytes: ClassVar[int]
    kv_bits: ClassVar[tuple[KvBits, ...]]
    reserves_cache: ClassVar[bool] = False
    formats: ClassVar[Mapping[Format, tuple[int, ...]]]
    mixed_formats: ClassVar[tuple[Format, ...]]
    group_sizes: ClassVar[str] = ""

    name: str
    runtime: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description=(
            "the locked environment that the engine runs in (`lmflows engines ls`); default is the"
            " project's own"
        ),
    )
    tp: int = Field(default=1, ge=1, le=64, description="GPUs that share the model")
    session_len: int | None = Field(
        default=None,
        ge=64,
        description="most tokens of prompt and answer together; default: the model's",
    )

    def with_cache_share(self, most: float) -> Self:
        """The same engine with at most this share of the free GPU memory for its KV cache, if it
        reserves one."""
        return self

    @classmethod
    def serves(cls, form: Format, group_size: int) -> bool:
        """Whether it serves quantized weights of this format and group size."""
        sizes = cls.formats.get(form)
        return sizes is not None and (sizes == ANY_SIZE or group_size in sizes)

    def refuses_kv(self, *variants: Variant) -> str | None:
        """Why it cannot keep the KV cache of one of these variants, or None."""
        missing = {weights_and_kv(variant)[1] for variant in variants} - set(self.kv_bits)
        if not missing:
            return None
        if self.kv_bits == (0,):
            return f"{self.name} has no quantized KV cache"
        return f"{self.name} has no KV cache in {' or '.join(map(str, sorted(missing)))} bits"

    def refuses_recipe(self, recipe: Quantize) -> str | None:
        """Why it cannot serve what a recipe makes, with what to change; or None."""
        if recipe.format not in self.formats:
            others = names_of(lambda engine: engine.needs_gpu and recipe.format in engine.formats)
            return (
                f"quantize.format {recipe.format} is for engine {others}; set format:"
                f" {' or '.join(self.formats)}"
            )
        if not self.serves(recipe.format, recipe.group_size):
            return (
                f"quantize.group_size {recipe.group_size} cannot be served by engine {self.name},"
                f" which {self.group_sizes}"
            )
        if recipe.keep_layers and recipe.format not in self.mixed_formats:
            return (
                f"quantize.keep_layers needs engine {_mixed_engines()}: {self.name} does not load a"
                f" model in format {recipe.format} with layers of both kinds; set keep_layers: 0"
            )
        return None


class EngineTransformers(EngineOptions):
    """The reference engine: transformers behind an OpenAI-compatible server; runs anywhere, one
    answer at a time."""

    needs_gpu = False
    weight_bytes = 4  # computes in float32
    kv_bits = (0,)
    formats: ClassVar = {"awq": ANY_SIZE, "compressed-tensors": ANY_SIZE}
    mixed_formats = ("awq", "compressed-tensors")

    name: Literal["transformers"]
    tp: Literal[1] = 1
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32",
        description="what to compute in; float32 is fastest on a CPU, and the reference for scores",
    )
    session_len: int = Field(
        default=4096, ge=64, description="most tokens of prompt and answer together"
    )


class LmdeployOptions(EngineOptions):
    """What both engines of LMDeploy have."""

    needs_gpu = True
    weight_bytes = 2
    kv_bits = (0, 4, 8)
    reserves_cache = True

    cache_max_entry_count: float = Field(
        default=0.8,
        gt=0,
        lt=1,
        description="share of the GPU memory left after the weights that the KV cache takes",
    )

    def with_cache_share(self, most: float) -> Self:
        share = min(self.cache_max_entry_count, most)
        return self.model_copy(update={"cache_max_entry_count": share})


class EngineTurbomind(LmdeployOptions):
    """LMDeploy's TurboMind (CUDA)."""

    formats: ClassVar = {"awq": (128,), "compressed-tensors": (32, 128)}
    mixed_formats = ("awq",)  # measured on 0.17.0
    group_sizes = (
        "takes AWQ with group size 128 only, and compressed-tensors with 32 or 128; set group_size:"
        " 128 (and source.pad_to_multiple: 128 if the model's sizes need it), or quantize.format:"
        " compressed-tensors with group_size: 32"
    )

    name: Literal["turbomind"]


class EnginePytorch(LmdeployOptions):
    """LMDeploy's PyTorch engine (CUDA): more architectures and group sizes than TurboMind."""

    formats: ClassVar = {"awq": ANY_SIZE}
    # it looks for a plain layer's weights under the name of a quantized one's: KeyError
    mixed_formats = ()

    name: Literal["pytorch"]


Engine = Annotated[
    EngineTransformers | EngineTurbomind | EnginePytorch, Field(discriminator="name")
]
ENGINES: tuple[type[EngineOptions], ...] = get_args(get_args(Engine)[0])


def name_of(engine: type[EngineOptions]) -> str:
    """The name by which a config chooses an engine."""
    (name,) = get_args(engine.model_fields["name"].annotation)
    return str(name)


BY_NAME = {name_of(engine): engine for engine in ENGINES}


def names_of(can: Callable[[type[EngineOptions]], bool]) -> str:
    """The names of the engines that can do something, for a message: `one or another`."""
    return " or ".join(name_of(engine) for engine in ENGINES if can(engine))


def _mixed_engines() -> str:
    """The engines that serve layers of both kinds; with their formats where those are not all."""
    found = []
    for engine in ENGINES:
        if set(engine.mixed_formats) == set(get_args(Format)):
            found.append(name_of(engine))
        elif engine.mixed_formats:
            found.append(f"{name_of(engine)} with format {' or '.join(engine.mixed_formats)}")
    return ", or ".join(found)
