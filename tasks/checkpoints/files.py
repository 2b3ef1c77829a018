"""What a model folder holds, read without loading it: config, weights' names, dtypes and shapes,
code, pickles.

Everything here works on JSON and safetensors headers, so it is fast and safe on a folder that
nobody has vetted.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from artifacts.store.files import sha256_file
from configs.errors import SourceError
from tasks.checkpoints.safetensors import DTYPE_BYTES, PICKLES, safetensors_header

# What belongs to a model: weights, config, tokenizer, template, card and license. Anything else is
# left out.
KEEP = (
    "*.safetensors",
    "*.json",
    "*.model",
    "*.txt",
    "*.jinja",
    "*.tiktoken",
    "*.md",
    "LICENSE*",
    "NOTICE*",
)
INDEX = "model.safetensors.index.json"
# A weight matrix inside a numbered decoder layer: what LMDeploy's AWQ packs (every nn.Linear of a
# layer).
LAYER_WEIGHT = re.compile(
    r"^(?!.*(?:vision|visual|vit)).*(?:^|\.)(?:layers|h|blocks)\.\d+\..*\.weight$"
)


@dataclass(frozen=True)
class ModelFacts:
    """What config.json and the weight files say.

    Attributes:
        architecture: the class that config.json names first.
        config: config.json; of a multimodal model the text part.
        tensors: {name: (dtype, shape)} over all weight files.
    """

    architecture: str
    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]

    @property
    def layers(self) -> int:
        return int(self.config.get("num_hidden_layers") or self.config.get("num_layers") or 1)

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """{name: (out_features, in_features)} of the matrices in the decoder layers."""
        return {
            name: (shape[0], shape[1])
            for name, (_, shape) in self.tensors.items()
            if len(shape) == 2 and LAYER_WEIGHT.search(name)
        }

    @property
    def parameters(self) -> int:
        return sum(_count(shape) for _, shape in self.tensors.values())

    @property
    def bytes(self) -> int:
        return sum(
            _count(shape) * DTYPE_BYTES.get(dtype, 1) for dtype, shape in self.tensors.values()
        )

    @property
    def head_dim(self) -> int:
        heads = self.config.get("num_attention_heads") or 1
        return int(self.config.get("head_dim") or self.config.get("hidden_size", 0) // heads)

    def quantized_bytes(self, group_size: int) -> int:
        """Bytes of the AWQ checkpoint: 4 bit codes, 16 bit scales and 4 bit zeros per group; the
        rest in 16 bit."""
        packed = sum(
            out * inn // 2 + (inn // group_size) * out * 5 // 2
            for out, inn in self.linears.values()
        )
        rest = self.parameters - sum(out * inn for out, inn in self.linears.values())
        return packed + 2 * rest


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a dict; SourceError if it is missing or not JSON."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(
            "no config.json", where=str(folder), hint="name a folder in Hugging Face format"
        ) from None
    except (ValueError, OSError) as error:
        raise SourceError(
            f"unreadable: {error}", where=str(path), hint="download the file again"
        ) from None
    if not isinstance(config, dict):
        raise SourceError("is not a JSON object", where=str(path), hint="download the file again")
    return config


def end_ids(folder: Path, eos_token_id: int | None) -> set[int]:
    """The token ids that end an answer: those of generation_config.json (else config.json), and the
    tokenizer's."""
    generation = folder / "generation_config.json"
    try:
        named = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError):
        named = None
    if named is None:
        named = read_config(folder).get("eos_token_id")
    ids = [*(named if isinstance(named, list) else [named]), eos_token_id]
    return {int(index) for index in ids if index is not None}


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.json without the folder that the model was loaded from: it would make the digest
    depend on the place."""
    values = {
        key: value
        for key, value in config.items()
        if key not in ("_name_or_path", "_model_name_or_path")
    }
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def inspect(folder: Path) -> ModelFacts:
    """Read a model folder's config and every weight file's header.

    Raises:
        SourceError: no config, no safetensors weights, a truncated or missing weight file.
    """
    config = read_config(folder)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name in weight_files(folder):
        tensors |= safetensors_header(folder / name)
    index = folder / INDEX
    if index.exists() and (lost := set(_weight_map(index)) - set(tensors)):
        raise SourceError(
            f"{len(lost)} tensors of the index are in no weight file, for example"
            f" {sorted(lost)[0]}",
            where=str(index),
            hint="download the weights again",
        )
    architecture = str(next(iter(config.get("architectures") or ["unknown"])))
    return ModelFacts(architecture, config.get("text_config") or config, tensors)


def weight_files(folder: Path) -> list[str]:
    """The safetensors files that make up the model, in order.

    Raises:
        SourceError: there are none, or one that the index names is missing.
    """
    index = folder / INDEX
    if index.exists():
        names = sorted(set(_weight_map(index).values()))
        for name in names:
            if not (folder / name).is_file():
                raise SourceError(
                    f"the index names {name}, which is not there",
                    where=str(folder),
                    hint="download it again",
                )
        return names
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise _no_weights(folder)
    return names


def _no_weights(folder: Path) -> SourceError:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    pickles = [path.name for path in files if path.suffix in PICKLES]
    if pickles:
        return SourceError(
            f"only pickles ({', '.join(pickles)}), which can run code when they are loaded",
            where=str(folder),
            hint=(
                "convert it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder,"
                " safe_serialization=True), or set source.allow_pickle: true if you trust where it"
                " comes from"
            ),
        )
    return SourceError(
        "no weights",
        where=str(folder),
        hint="the folder needs model.safetensors, or model.safetensors.index.json with its parts",
    )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(tensor): str(file) for tensor, file in weights.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise SourceError(
            f"unreadable index: {error!r}", where=str(index), hint="download the file again"
        ) from None


def refuse_pickles(folder: Path, exclude: tuple[str, ...]) -> None:
    """Raise SourceError if the folder holds a file whose loading can run code, and nobody said to
    leave it out."""
    found = [
        name for name in _names(folder) if name.endswith(PICKLES) and not _matches(name, exclude)
    ]
    if found:
        raise SourceError(
            f"pickle files can run code when they are loaded: {', '.join(found)}",
            where=str(folder),
            hint=(
                "if the safetensors files are complete, leave them out with source.exclude:"
                f' ["*{Path(found[0]).suffix}"]; source.allow_pickle: true accepts them'
            ),
        )


def wanted_files(folder: Path, exclude: tuple[str, ...]) -> list[str]:
    """The files of a folder that belong to the model, without Python code (see `check_code`)."""
    return [name for name in _names(folder) if _matches(name, KEEP) and not _matches(name, exclude)]


def companions(folder: Path) -> list[str]:
    """The files of an artifact beside its weights: config, tokenizer, template, card, license,
    trusted code."""
    return [
        name
        for name in _names(folder)
        if not name.endswith((*PICKLES, ".safetensors", ".index.json"))
    ]


def code_references(folder: Path) -> dict[str, set[str]]:
    """Every Python class that a JSON file of the folder asks transformers to load: {file:
    {"module.Class", ...}}."""
    found: dict[str, set[str]] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("tokenizer.") or path.stat().st_size > 5_000_000:
            continue  # a vocabulary
        try:
            auto_map = json.loads(path.read_text(encoding="utf-8")).get("auto_map")
        except (ValueError, AttributeError):
            continue
        values = list(auto_map.values()) if isinstance(auto_map, dict) else [auto_map]
        lists = [value if isinstance(value, list) else [value] for value in values]
        names = {str(name) for name in chain(*lists) if name}
        if names:
            found[path.name] = names
    return found


def check_code(folder: Path, trusted: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The Python files that may run, and the sha256 of those that may not.

    Raises:
        SourceError: a trusted file is missing or is not the one that was reviewed.
    """
    code = {name: sha256_file(folder / name)[1] for name in _names(folder) if name.endswith(".py")}
    for name, sha256 in trusted.items():
        if code.get(name) != sha256:
            what = (
                f"has sha256 {code[name]}, not the trusted {sha256}"
                if name in code
                else "is not there"
            )
            raise SourceError(
                f"{name} {what}",
                where=f"{folder}: source.trusted_code",
                hint="read the file, and if you still trust it, put its sha256 into the config",
            )
    return sorted(trusted), {name: sha for name, sha in code.items() if name not in trusted}


def _names(folder: Path) -> list[str]:
    """Files of a folder and its sub-folders, without hidden ones."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)
    )


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(
        fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name.rsplit("/", 1)[-1], pattern)
        for pattern in patterns
    )


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
