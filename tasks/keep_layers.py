"""The keep layers step: the decoder layers that quantization damages most go back to fp16, the last
rung of the repair ladder.

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
from configs.errors import SourceError
from configs.quantization import Quantize
from tasks.checkpoints import card, files
from tasks.checkpoints.calibration import calibration_rows
from tasks.checkpoints.rewrite import rewrite
from tasks.runner.step import Context, Request, Result, step, versions

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "transformers")
LAYER = re.compile(r"^(.*\b(?:layers|h|blocks)\.)(\d+)\.")
ROWS = 4  # of calibration text: the order of the layers hardly changes with more


class KeepLayersRequest(Request):
    """`config.keep_layers` of the quantized model's decoder layers become the parent's again."""

    parent: ModelArtifact
    quantized: ModelArtifact
    texts: ModelArtifact
    config: Quantize
    trust_remote_code: bool = False

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
    quantized, parent, config = (
        Tensors(source),
        Tensors(request.parent.path),
        files.read_config(source),
    )
    prefix = next(match[1] for name in quantized if (match := LAYER.match(name)))
    marked = {
        **config["quantization_config"],
        "modules_to_not_convert": [f"{prefix}{layer}." for layer in kept],
    }
    manifest, new = (
        context.store.manifest(request.quantized.digest),
        config | {"quantization_config": marked},
    )
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
            lambda done, text: context.progress(0.8 + 0.15 * done, text),
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
    engine = ReferenceEngine(request.parent.path, trust_remote_code=request.trust_remote_code)
    rows = calibration_rows(
        engine.tokenizer,
        read_documents(request.texts.path / CALIBRATION),
        samples=min(ROWS, request.config.samples),
        length=request.config.sequence_length,
        seed=request.config.seed,
    )
    layers = decoder_layers(engine.model, files.inspect(request.parent.path).layers)
    errors, norms = [0.0] * len(layers), [0.0] * len(layers)
    tensors = Tensors(request.quantized.path)
    for number, row in enumerate(rows):

        def saw(layer: int, row: int = number) -> None:
            context.progress(
                0.1 + 0.7 * (row + layer / len(layers)) / len(rows),
                f"layer {layer + 1}/{len(layers)}, row {row + 1}/{len(rows)}",
            )

        with watched(layers, tensors, errors, norms, saw), torch.inference_mode():
            engine.model(input_ids=torch.tensor([row], device=engine.device), use_cache=False)
    engine.close()
    damage = [error / norm if norm else 0.0 for error, norm in zip(errors, norms, strict=True)]
    return sorted(enumerate(damage), key=lambda item: (-item[1], item[0]))


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


@contextmanager
def watched(
    layers: Sequence[torch.nn.Module],
    tensors: Mapping[str, torch.Tensor],
    errors: list[float],
    norms: list[float],
    saw: Any,
) -> Iterator[None]:
    """While the body runs the model, each layer's quantized twin is run on the same input, and the
    squares are added up."""
    with ExitStack() as stack:
        for number, layer in enumerate(layers):

            def compare(
                module: torch.nn.Module, args: Any, kwargs: Any, output: Any, number: int = number
            ) -> None:
                saw(number)
                right = _hidden(output)
                wrong = _hidden(quantized_twin(module, tensors, number).forward(*args, **kwargs))
                errors[number] += float((wrong - right).double().pow(2).sum())
                norms[number] += float(right.double().pow(2).sum())

            stack.enter_context(_hook(layer.register_forward_hook(compare, with_kwargs=True)))
        yield


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def quantized_twin(
    layer: torch.nn.Module, tensors: Mapping[str, torch.Tensor], number: int
) -> torch.nn.Module:
    """A copy of a decoder layer with the quantized checkpoint's weights, unpacked."""
    from tasks.checkpoints.int4 import dequantize_checkpoint

    one = next(layer.parameters())
    found = {
        name: match.end()
        for name in tensors
        if (match := LAYER.match(name)) and int(match[2]) == number
    }
    plain = dequantize_checkpoint(
        {name[end:]: tensors[name] for name, end in found.items()}, one.dtype
    )
    twin = copy.deepcopy(layer)
    twin._forward_hooks.clear()  # the copy must not be watched in its turn
    twin.load_state_dict({name: tensor.to(one.device) for name, tensor in plain.items()})
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
        match, (module, _, part) = LAYER.match(name), name.rpartition(".")
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
