"""The quantize step: LMDeploy's AWQ on the user's own calibration text, to a clean and reproducible
W4A16 artifact.

LMDeploy offers no way to give it text, so its calibration loader is replaced (the way its
maintainers advise), and on a CPU two of its parts are mended. Everything that decides the result
goes into the artifact's recipe.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from artifacts.manifest import Manifest, ModelArtifact, Parent
from artifacts.records.texts import CALIBRATION, read_documents
from artifacts.records.trusted_code import TRUSTED_CODE
from configs.quantization import Quantize
from tasks.checkpoints import card
from tasks.checkpoints import files as model_files
from tasks.checkpoints.calibration import calibration_rows
from tasks.checkpoints.hub_card import CARD, card_files
from tasks.machine.gpus import cuda_is_visible
from tasks.runner.step import Context, Request, Result, step, versions

LIBRARIES = ("lmdeploy", "transformers", "torch")


class QuantizeRequest(Request):
    model: ModelArtifact
    texts: ModelArtifact
    config: Quantize

    def key_fields(self) -> dict[str, Any]:
        """`device: auto` means what it comes down to here."""
        return super().key_fields() | {"cuda": self.config.device != "cpu" and cuda_is_visible()}

    @property
    def limit_minutes(self) -> float:
        return self.config.timeout_minutes


class QuantizeResult(Result):
    """The W4A16 artifact; sizes in bytes of parent and candidate on disk."""

    candidate: ModelArtifact
    parent_bytes: int
    candidate_bytes: int


@step(gpu=True, libraries=LIBRARIES, revision=2)  # 2: the model card
def quantize(request: QuantizeRequest, context: Context) -> QuantizeResult:
    """Quantize the model to 4 bit with LMDeploy's AWQ and the user's calibration text."""
    config = request.config
    source = request.model.path
    device = _choose_device(config.device)
    rows = _draw_rows(request, context)
    parent = context.store.manifest(request.model.digest)
    recipe = config.model_dump(mode="json", exclude={"timeout_minutes", "device"}) | {
        "device": device,
        "calibration_sha256": _rows_digest(rows),
        "versions": versions((*LIBRARIES, "huggingface_hub")),
        "license": parent.recipe.get("license"),
        TRUSTED_CODE: parent.recipe.get(TRUSTED_CODE, {}),
    }
    with context.store.staging() as staging:
        run_awq(request, rows, staging.path, device, context)
        clean(staging.path, source)
        write_card(staging.path, source, parent, recipe)
        context.progress(0.98, "hashing")
        candidate = context.store.commit(
            staging,
            "w4a16",
            recipe=recipe,
            parents=[
                Parent(role="model", digest=request.model.digest),
                Parent(role="texts", digest=request.texts.digest),
            ],
        )
    return QuantizeResult(
        candidate=candidate,
        parent_bytes=parent.size,
        candidate_bytes=context.store.manifest(candidate.digest).size,
    )


def _draw_rows(request: QuantizeRequest, context: Context) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        request.model.path, trust_remote_code=context.trusts(request.model)
    )
    return calibration_rows(
        tokenizer,
        read_documents(request.texts.path / CALIBRATION),
        samples=request.config.samples,
        length=request.config.sequence_length,
        seed=request.config.seed,
    )


def run_awq(
    request: QuantizeRequest,
    rows: Sequence[Sequence[int]],
    folder: Path,
    device: str,
    context: Context,
) -> None:
    """Fill `folder` with LMDeploy's quantized checkpoint, calibrated with these rows."""
    import torch

    from tasks.checkpoints import lmdeploy_hooks

    config = request.config
    layers = model_files.inspect(request.model.path).layers
    torch.manual_seed(config.seed)
    with ExitStack() as stack:
        stack.enter_context(lmdeploy_hooks.calibrate_with(rows))
        stack.enter_context(lmdeploy_hooks.layer_progress(context.progress, layers))
        if device == "cpu":
            stack.enter_context(lmdeploy_hooks.mended_for_cpu())
        from lmdeploy.lite.apis.auto_awq import auto_awq

        auto_awq(
            str(request.model.path),
            work_dir=str(folder),
            calib_dataset="wikitext2",  # the hook replaces it
            calib_samples=config.samples,
            calib_seqlen=config.sequence_length,
            batch_size=config.batch_size,
            w_bits=config.bits,
            w_group_size=config.group_size,
            search_scale=config.search_scale,
            device=device,
            dtype=config.dtype,
            trust_remote_code=context.trusts(request.model),
        )


def clean(folder: Path, source: Path) -> None:
    """Make LMDeploy's output an artifact: no calibration by-products, the parent's settings back,
    nothing of the place."""
    for leftover in folder.glob("*.pth"):
        leftover.unlink()
    config = model_files.read_config(folder)
    config.pop("use_cache", None)
    parent = model_files.read_config(source)
    if "use_cache" in parent:
        config["use_cache"] = parent["use_cache"]
    model_files.write_config(folder, config)
    names = model_files.companions(source)
    # license, remote code, and what the tokenizer's save leaves out
    for name in set(names) - set(card_files(names)):
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def write_card(folder: Path, source: Path, parent: Manifest, recipe: Mapping[str, Any]) -> None:
    """Write the model card of the quantized checkpoint in `folder`."""
    text = card.card(
        card.base_of(source, parent),
        model_files.read_config(folder),
        recipe,
        model_files.companions(folder),
    )
    (folder / CARD).write_text(text, encoding="utf-8", newline="")


def _choose_device(wanted: str) -> str:
    """`cpu` or `cuda`. On a machine with a GPU, `cpu` also hides it: LMDeploy asks CUDA for its
    memory peak."""
    if wanted != "cpu":
        import torch

        if torch.cuda.is_available():
            return "cuda"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return "cpu"


def _rows_digest(rows: Sequence[Sequence[int]]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
