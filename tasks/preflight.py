"""Preflight: the one list of known traps, asked of this model, this config and this machine before
any long work.

Each trap cost somebody a night; each message names the fix. `preflight` asks what only depends on
the model and the config (cached); `tasks.capacity` asks the machine, every time. Traps that the
config alone shows are refused when it is read (`configs.schema`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifacts.manifest import ModelArtifact
from artifacts.records.model import ModelSummary
from artifacts.records.texts import CALIBRATION, read_documents
from configs.engines import Engine
from configs.errors import SourceError, require_ready
from configs.quantization import Quantize
from configs.variants import Variant, weights_and_kv
from tasks.checkpoints import files
from tasks.checkpoints.calibration import calibration_rows
from tasks.checkpoints.files import ModelFacts
from tasks.engines import module_of
from tasks.machine.gpus import cuda_is_visible
from tasks.runner import runtimes
from tasks.runner.step import Context, Request, Result, step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIBRARIES = ("lmdeploy", "transformers", "torch")
# LMDeploy calibrates these, and then has no map for smoothing them (lite/quantization/awq.py,
# FC_FCS_MAP)
DATA_FREE_ONLY = {
    "Qwen3MoeForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
    "InternS2PreviewForConditionalGeneration",
}


class PreflightRequest(Request):
    model: ModelArtifact
    texts: ModelArtifact
    quantize: Quantize
    engine: Engine
    served: Variant
    deployed: bool = True
    untrusted_code: dict[str, str] = {}

    def key_fields(self) -> dict[str, object]:
        return super().key_fields() | {
            "cuda": cuda_is_visible(),
            "runtime": runtimes.fingerprint(self.engine.runtime),
        }


class PreflightResult(ModelSummary, Result):
    """What the model is."""


@dataclass(frozen=True)
class Subject:
    """All that a trap looks at; `trusted`: somebody has reviewed the model's Python files."""

    request: PreflightRequest
    facts: ModelFacts
    cuda: bool
    trusted: bool


@step(libraries=LIBRARIES)
def preflight(request: PreflightRequest, context: Context) -> PreflightResult:
    """Ask every known trap of this model and config; raise one error that lists all that would
    snap."""
    facts = files.inspect(request.model.path)
    subject = Subject(request, facts, cuda_is_visible(), context.trusts(request.model))
    found = []
    for number, trap in enumerate(TRAPS):
        what, _, _ = (trap.__doc__ or "").partition(".")
        context.progress(number / len(TRAPS), " ".join(what.split()))
        found += list(trap(subject))
    require_ready(found)
    return PreflightResult(
        architecture=facts.architecture,
        parameters=facts.parameters,
        parent_bytes=facts.bytes,
        candidate_bytes=facts.quantized_bytes(request.quantize.group_size),
        hidden_size=int(facts.config.get("hidden_size", 0)),
        head_dim=facts.head_dim,
        vocabulary=int(facts.config.get("vocab_size", 0)),
    )


def already_quantized(subject: Subject) -> Iterator[str]:
    """The model is quantized already."""
    if quantization := subject.facts.config.get("quantization_config"):
        yield (
            f"the model is already quantized ({quantization.get('quant_method')}) -> name its fp16"
            " original as the source"
        )


def remote_code(subject: Subject) -> Iterator[str]:
    """The model needs Python code of its own that nobody has trusted, or that this transformers
    cannot run."""
    import transformers

    trusted = subject.trusted
    references = files.code_references(subject.request.model.path)
    native = subject.facts.config.get("model_type") in transformers.CONFIG_MAPPING
    if references and not native and not trusted:
        known = [f"{name}: {sha}" for name, sha in subject.request.untrusted_code.items()]
        listing = ", ".join(known) or "no Python file is in the folder"
        yield (
            "the model needs its own Python code to run, and none is trusted -> read these files,"
            f" and if you trust them put them into source.trusted_code: {{{listing}}}"
        )
    if trusted or not native:
        for file, names in references.items():
            for name in sorted(names):
                if _is_elsewhere(name, subject):
                    yield (
                        f"{file} asks for code that is not a trusted file of this folder ({name})"
                        " -> copy the file into the folder, drop a repository prefix, and name its"
                        " sha256 in source.trusted_code"
                    )
    release = int(transformers.__version__.split(".")[0])
    if "InternLM2" in subject.facts.architecture and release >= 5:
        yield (
            f"InternLM2's remote code fails under transformers {transformers.__version__} (KeyError"
            " in _init_rope) -> use transformers 4.57"
        )


def _is_elsewhere(name: str, subject: Subject) -> bool:
    """Whether a class is in no Python file of the model's folder; only pinned ones are there."""
    if "--" in name or "/" in name:
        return True
    module = name.rsplit(".", 1)[0]
    there = (subject.request.model.path / f"{module}.py").is_file()
    return subject.trusted and not there


def architecture(subject: Subject) -> Iterator[str]:
    """LMDeploy cannot quantize or serve the architecture."""
    from lmdeploy.lite.apis.calibrate import LAYER_TYPE_MAP

    name = subject.facts.architecture
    if name not in LAYER_TYPE_MAP:
        yield f"LMDeploy cannot quantize {name} -> use one of {', '.join(sorted(LAYER_TYPE_MAP))}"
    elif name in DATA_FREE_ONLY:
        yield (
            f"LMDeploy's AWQ calibrates {name} and then fails for want of a smoothing map ->"
            " quantize it with llm-compressor"
        )
    problem = module_of(subject.request.engine).refuses_architecture(name)
    if problem is not None:
        yield problem


def group_size(subject: Subject) -> Iterator[str]:
    """The group size does not divide an input dimension, or an output cannot be packed by
    eights."""
    size = subject.request.quantize.group_size
    linears = subject.facts.linears
    misfits = {inputs for _, inputs in linears.values() if inputs % size}
    if misfits:
        name = next(name for name, (_, inputs) in linears.items() if inputs in misfits)
        fixes = " or ".join(_other_sizes(subject)) or "choose another model"
        yield (
            f"quantize.group_size {size} does not divide the input dimension of {name}"
            f" ({sorted(misfits)}) -> {fixes}"
        )
    unpacked = [name for name, (outputs, _) in linears.items() if outputs % 8]
    if unpacked:
        outputs, _ = linears[unpacked[0]]
        yield (
            f"{unpacked[0]} has {outputs} outputs, which cannot be packed by eights -> choose"
            " another model"
        )


def _other_sizes(subject: Subject) -> Iterator[str]:
    """What can be set so that the group size divides every input dimension."""
    if subject.facts.config.get("model_type") in ("llama", "mistral", "qwen2"):
        yield f"set source.pad_to_multiple: {subject.request.quantize.group_size}"
    for size in (64, 32, 16):
        if all(inputs % size == 0 for _, inputs in subject.facts.linears.values()):
            yield (
                f"quantize.group_size: {size} (for TurboMind 32, with format: compressed-tensors)"
            )
            return


def kv_cache(subject: Subject) -> Iterator[str]:
    """The engine cannot keep this model's KV cache in those bits."""
    _, kv_bits = weights_and_kv(subject.request.served)
    problem = module_of(subject.request.engine).refuses_kv(kv_bits, subject.facts.head_dim)
    if problem is not None:
        yield f"deploy.variant {subject.request.served}: {problem}"


def devices(subject: Subject) -> Iterator[str]:
    """A device or an engine is asked for that is not here."""
    engine = subject.request.engine
    if subject.request.quantize.dtype == "bfloat16" and not subject.cuda:
        yield (
            "quantize.dtype bfloat16 does not work without a CUDA GPU -> set quantize.dtype:"
            " float16"
        )
    module = module_of(engine)
    if engine.runtime == "default":
        problem = module.unavailable()
        if problem is not None:
            yield (
                f"engine {engine.name} {problem} -> run on a GPU worker, or set engine.name:"
                " transformers"
            )
    if subject.request.deployed:
        problem = module.refuses_deployment(engine.runtime, runtimes.fingerprint(engine.runtime))
        if problem is not None:
            yield problem
    heads = int(subject.facts.config.get("num_attention_heads") or 1)
    if heads % engine.tp:
        yield (
            f"engine.tp {engine.tp} does not divide the model's {heads} attention heads -> use a"
            " divisor"
        )


def calibration(subject: Subject) -> Iterator[str]:
    """The calibration text is too short, or longer rows are asked for than the model takes."""
    quantize = subject.request.quantize
    limit = subject.facts.config.get("max_position_embeddings")
    if limit and quantize.sequence_length > limit:
        yield (
            f"quantize.sequence_length {quantize.sequence_length} is more than the model's {limit}"
            " positions -> lower it"
        )
    if list(remote_code(subject)):
        return  # loading the tokenizer could run what that trap has just refused
    tokenizer = _tokenizer(subject)
    if isinstance(tokenizer, str):
        yield tokenizer
        return
    if not tokenizer.chat_template:
        yield "the tokenizer has no chat template -> add chat_template.jinja to the model's folder"
    try:
        calibration_rows(
            tokenizer,
            read_documents(subject.request.texts.path / CALIBRATION),
            samples=quantize.samples,
            length=quantize.sequence_length,
            seed=quantize.seed,
        )
    except SourceError as error:
        yield f"{error.message} -> {error.hint}"


def _tokenizer(subject: Subject) -> PreTrainedTokenizerBase | str:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            subject.request.model.path, trust_remote_code=subject.trusted
        )
        return tokenizer
    except Exception as error:  # whatever the tokenizer's files make it raise
        return (
            f"the tokenizer cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]})"
            " -> add the tokenizer's files to the folder"
        )


TRAPS = (already_quantized, remote_code, architecture, group_size, kv_cache, devices, calibration)
