"""The keep layers step: the decoder layers that quantization damages most go back to fp16, what a
repair tries last.

AWQ scales weights against each other within one decoder layer only, so a whole layer of the parent,
norms included, fits in the place of the quantized one. A layer's damage is what it does by itself:
on the parent's own hidden states, the squared error of the quantized layer's output over the
squared norm of the right one.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from artifacts.manifest import ModelArtifact, Parent
from artifacts.records.texts import CALIBRATION, read_documents
from configs.callbacks import Progress, part_of
from configs.errors import SourceError
from configs.quantization import Quantize
from tasks.checkpoints import card, files
from tasks.checkpoints.calibration import calibration_rows
from tasks.checkpoints.rewrite import rewrite
from tasks.runner.step import Context, Request, Result, step, versions

if TYPE_CHECKING:
    import torch
    from torch.utils.hooks import RemovableHandle

LIBRARIES = ("torch", "transformers")
LAYER = re.compile(r"^(.*\b(?:layers|h|blocks)\.)(\d+)\.")
ROWS = 4  # of calibration text: the order of the layers hardly changes with more


class KeepLayersRequest(Request):
    """`config.keep_layers` of the quantized model's decoder layers become the parent's again."""

    parent: ModelArtifact
    quantized: ModelArtifact
    texts: ModelArtifact
    config: Quantize

    @property
    def limit_minutes(self) -> float:
        return self.config.timeout_minutes


class KeepLayersResult(Result):
    """The artifact with layers of both kinds, its size in bytes on disk, and every layer's damage,
    the worst first."""

    candidate: ModelArtifact
    candidate_bytes: int
    damage: tuple[tuple[int, float], ...]


@step(gpu=True, libraries=LIBRARIES, revision=2)  # 2: the model card
def keep_layers(request: KeepLayersRequest, context: Context) -> KeepLayersResult:
    """Find the layers that quantization damages most, and leave them in fp16."""
    from tasks.checkpoints.int4 import Tensors

    layers = files.inspect(request.parent.path).layers
    if request.config.keep_layers > layers // 2:
        raise SourceError(
            f"{request.config.keep_layers} of {layers} layers in fp16 leave no 4-bit model",
            where="keep_layers",
            hint=f"keep at most {layers // 2}",
        )
    ranked = rank(request, context)
    kept = sorted(layer for layer, _ in ranked[: request.config.keep_layers])
    context.log(f"kept in fp16: layers {', '.join(map(str, kept))}")
    source = request.quantized.path
    config = files.read_config(source)
    quantized = Tensors(source)
    parent = Tensors(request.parent.path)
    prefix = next(match[1] for name in quantized if (match := LAYER.match(name)))
    marked = {
        **config["quantization_config"],
        "modules_to_not_convert": [f"{prefix}{layer}." for layer in kept],
    }
    new = config | {"quantization_config": marked}
    manifest = context.store.manifest(request.quantized.digest)
    recipe = manifest.recipe | {
        "keep_layers": kept,
        "quantized_from": request.quantized.digest,
        "kept_with": versions((*LIBRARIES, "huggingface_hub")),
    }
    readme = card.card(
        card.base_of_quantized(source, manifest), new, recipe, files.companions(source)
    )
    with context.store.staging() as staging:
        rewrite(
            source,
            staging,
            new,
            readme,
            lambda names: mixed_shard(quantized, parent, names, kept),
            part_of(context.progress, 0.8, 0.15),
        )
        candidate = context.store.commit(
            staging,
            "w4a16",
            recipe=recipe,
            parents=[
                Parent(role="quantized", digest=request.quantized.digest),
                Parent(role="model", digest=request.parent.digest),
            ],
        )
    return KeepLayersResult(
        candidate=candidate,
        candidate_bytes=context.store.manifest(candidate.digest).size,
        damage=tuple(ranked),
    )


def rank(request: KeepLayersRequest, context: Context) -> list[tuple[int, float]]:
    """Every decoder layer and its damage, the worst first. Memory: the parent, and one layer
    more."""
    import torch

    from tasks.checkpoints.int4 import Tensors
    from tasks.engines.reference import ReferenceEngine

    context.progress(0.02, "loading the parent")
    engine = ReferenceEngine(request.parent.path, trust_remote_code=context.trusts(request.parent))
    rows = calibration_rows(
        engine.tokenizer,
        read_documents(request.texts.path / CALIBRATION),
        samples=min(ROWS, request.config.samples),
        length=request.config.sequence_length,
        seed=request.config.seed,
    )
    layers = decoder_layers(engine.model, files.inspect(request.parent.path).layers)
    comparison = Comparison(layers, Tensors(request.quantized.path))
    for number, row in enumerate(rows):
        share = 0.7 / len(rows)
        progress = part_of(context.progress, 0.1 + share * number, share)
        with comparison.watching(f"row {number + 1}/{len(rows)}", progress), torch.inference_mode():
            engine.model(input_ids=torch.tensor([row], device=engine.device), use_cache=False)
    engine.close()
    return sorted(enumerate(comparison.damage()), key=lambda item: (-item[1], item[0]))


def decoder_layers(model: torch.nn.Module, count: int) -> Sequence[torch.nn.Module]:
    """The model's decoder layers.

    Raises:
        SourceError: there is no list of so many.
    """
    import torch

    for name, module in model.named_modules():
        if (
            isinstance(module, torch.nn.ModuleList)
            and len(module) == count
            and LAYER.match(f"{name}.0.")
        ):
            return list(module)
    raise SourceError(
        f"the model has no list of {count} decoder layers",
        where="quantize.keep_layers",
        hint="set keep_layers: 0 for this architecture",
    )


class Comparison:
    """The layers of a running model beside their quantized twins, each run on the same input.

    Args:
        tensors: those of the quantized checkpoint.
    """

    def __init__(
        self, layers: Sequence[torch.nn.Module], tensors: Mapping[str, torch.Tensor]
    ) -> None:
        self._layers = layers
        self._tensors = tensors
        self._errors = [0.0] * len(layers)  # squared, summed over all that was run
        self._norms = [0.0] * len(layers)

    @contextmanager
    def watching(self, what: str, progress: Progress) -> Iterator[None]:
        """While the body runs the model on `what`, every layer is compared with its twin."""
        with ExitStack() as stack:
            for number, layer in enumerate(self._layers):
                stack.callback(self._watch(number, layer, what, progress).remove)
            yield

    def _watch(
        self, number: int, layer: torch.nn.Module, what: str, progress: Progress
    ) -> RemovableHandle:
        def compare(module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            count = len(self._layers)
            progress(number / count, f"layer {number + 1}/{count}, {what}")
            twin = quantized_twin(module, self._tensors, number)
            right = _hidden(output)
            wrong = _hidden(twin.forward(*args, **kwargs))
            self._errors[number] += float((wrong - right).double().pow(2).sum())
            self._norms[number] += float(right.double().pow(2).sum())

        return layer.register_forward_hook(compare, with_kwargs=True)

    def damage(self) -> list[float]:
        """Each layer's squared error over the squared norm of the right output."""
        both = zip(self._errors, self._norms, strict=True)
        return [error / norm if norm else 0.0 for error, norm in both]


def quantized_twin(
    layer: torch.nn.Module, tensors: Mapping[str, torch.Tensor], number: int
) -> torch.nn.Module:
    """A copy of a decoder layer with the quantized checkpoint's weights, unpacked."""
    from tasks.checkpoints.int4 import dequantize_checkpoint

    like = next(layer.parameters())
    found = {
        name: match.end()
        for name in tensors
        if (match := LAYER.match(name)) and int(match[2]) == number
    }
    plain = dequantize_checkpoint(
        {name[end:]: tensors[name] for name, end in found.items()}, like.dtype
    )
    twin = copy.deepcopy(layer)
    twin._forward_hooks.clear()  # the copy must not be watched in its turn
    twin.load_state_dict({name: tensor.to(like.device) for name, tensor in plain.items()})
    return twin


def mixed_shard(
    quantized: Mapping[str, torch.Tensor],
    parent: Mapping[str, torch.Tensor],
    names: list[str],
    kept: Collection[int],
) -> dict[str, torch.Tensor]:
    """The tensors of a shard of the quantized checkpoint, those of the kept layers replaced by the
    parent's, in the same dtype."""
    shard: dict[str, torch.Tensor] = {}
    for name in names:
        match = LAYER.match(name)
        module, _, part = name.rpartition(".")
        if match is None or int(match[2]) not in kept:
            shard[name] = quantized[name]
        elif part == "qweight":
            shard[f"{module}.weight"] = parent[f"{module}.weight"].to(
                quantized[f"{module}.scales"].dtype
            )
        elif part not in ("qzeros", "scales"):
            shard[name] = parent[name].to(quantized[name].dtype)
    return shard


def _hidden(output: Any) -> torch.Tensor:
    """A decoder layer's hidden states; older code returns them first in a tuple."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
