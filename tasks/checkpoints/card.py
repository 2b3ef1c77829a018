"""The model card of a quantized artifact: README.md with the metadata that a hub reads, so that the
folder can be pushed as it is.

What it says follows from the artifact alone (its config.json, recipe and parent): no time, no
place, so it does not change the digest from one machine to the next. What the parent's own card
says of license, languages and data is carried over, and its text stands below. A parent's card may
be anything: broken, huge, hostile. It is text here, and only plain values are taken from its
metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from artifacts.manifest import Manifest
from tasks.checkpoints import files as model_files

CARD = "README.md"
BELOW = "<!-- Below is the card of the base model, as it came. -->"
HEADING = "\n\n# The base model's own card\n\n"
MAX_CARD_BYTES = 1 << 20  # a hub shows no more
MAX_METADATA = 256 << 10  # characters; PyYAML reads about 100 000 in a second
# What stays true of quantized weights. Not `model-index` and `metrics`: those are figures of other
# weights.
CARRIED = (
    "license",
    "license_name",
    "license_link",
    "language",
    "datasets",
    "pipeline_tag",
    "library_name",
)
# tags that would be wrong now
OTHER_FORMATS = {
    "gguf",
    "fp16",
    "float16",
    "bf16",
    "bfloat16",
    "16-bit",
    "8-bit",
    "fp8",
    "int8",
    "gptq",
}
REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
FOLDERS = {
    "checkpoint",
    "checkpoints",
    "ckpt",
    "ckpts",
    "data",
    "model",
    "models",
    "out",
    "output",
    "outputs",
    "results",
    "runs",
    "tmp",
    "weights",
}
RECIPE = (
    "method",
    "bits",
    "group_size",
    "symmetric",
    "format",
    "search_scale",
    "samples",
    "sequence_length",
    "seed",
    "dtype",
    "calibration_sha256",
)


@dataclass(frozen=True)
class Base:
    """The model that was quantized, as far as it is known.

    Attributes:
        name: its repository on the hub, or whatever it is best called by.
        artifact: digest of the fp16 artifact.
        source: where that is from, as in its recipe: {"type": "hub", "repo": ..., "revision": ...}.
        metadata: what is carried over from its card.
        text: its card without metadata.
    """

    name: str
    artifact: str
    source: Mapping[str, str]
    metadata: Mapping[str, Any]
    text: str


def base_of(folder: Path, manifest: Manifest) -> Base:
    """What an fp16 artifact says of itself."""
    metadata, text = read_card(folder)
    carried = _carried(metadata)
    if "license" not in carried:
        carried |= _license(manifest.recipe.get("license"), folder)
    source = {
        key: _words(value)
        for key, value in _mapping(manifest.recipe.get("source")).items()
        if key != "file_sha256"
    }
    named = model_files.read_config(folder).get("_name_or_path")
    names = [
        source.get("repo"),
        source.get("package"),
        named if _is_repository(named) else None,
        *(name for name in _texts(metadata.get("base_model")) if _is_repository(name)),
        f"artifact-{manifest.digest[:12]}",
    ]
    origin = {
        key: _words(manifest.recipe[key])
        for key in ("origin", "organization", "padded_to_multiple")
        if manifest.recipe.get(key)
    }
    return Base(next(filter(None, names)), manifest.digest, source | origin, carried, text)


def base_of_quantized(folder: Path, manifest: Manifest) -> Base:
    """The same, from the card of a quantized artifact that `card` has made; of another one, as far
    as it can be known."""
    # our own words stand above the parent's
    metadata, text = read_card(folder, longest=2 * MAX_CARD_BYTES)
    _, marker, below = text.partition(BELOW)
    facts = _mapping(metadata.get("quantization"))
    if not marker or "base_artifact" not in facts:
        return base_of(folder, manifest)
    source = {str(key): _words(value) for key, value in _mapping(facts.get("base_source")).items()}
    own = set(_tags("awq", 128, ())) | {"compressed-tensors"}
    carried = _carried(metadata) | {
        "tags": [tag for tag in _texts(metadata.get("tags")) if tag not in own]
    }
    return Base(
        str(metadata.get("base_model")),
        str(facts["base_artifact"]),
        source,
        carried,
        below.removeprefix(HEADING).removesuffix("\n"),
    )


def card(
    base: Base, config: Mapping[str, Any], recipe: Mapping[str, Any], files: Iterable[str]
) -> str:
    """The text of README.md.

    Args:
        config: the quantized model's config.json; what it says of format, groups and kept layers is
            what the card says.
        recipe: the artifact's.
        files: names of the artifact's files.
    """
    form, group_size, kept = packing(config)
    facts = {key: recipe[key] for key in RECIPE if recipe.get(key) is not None} | {
        "format": form,
        "group_size": group_size,
    }
    versions = dict(sorted(_mapping(recipe.get("versions")).items()))
    tags = [
        *_tags(form, group_size, kept),
        *(tag for tag in _texts(base.metadata.get("tags")) if tag.lower() not in OTHER_FORMATS),
    ]
    carried: dict[str, Any] = {
        "pipeline_tag": "text-generation",
        "library_name": "transformers",
        "license": "unknown",
    } | dict(base.metadata)
    data = ModelCardData(
        **carried
        | {
            "base_model": base.name,
            "base_model_relation": "quantized",
            "tags": list(dict.fromkeys(tags)),
            "quantization": (
                facts
                | ({"kept_layers": kept} if kept else {})
                | {
                    "versions": versions,
                    "base_artifact": base.artifact,
                    "base_source": dict(base.source),
                }
            ),
        }
    )
    parts = [
        f"# {base.name.rsplit('/', 1)[-1]}, quantized to 4 bit (W4A16)",
        _origin(base),
        _table(facts, kept, versions),
        "## Serve it",
        _serve(form, group_size, kept, code=any(name.endswith(".py") for name in files)),
        "## Verify it",
        _VERIFY,
        BELOW + (HEADING + base.text if base.text else ""),
    ]
    return (
        f"---\n{data.to_yaml(line_break=chr(10))}\n---\n\n"
        + "\n\n".join(part.strip("\n") for part in parts if part)
        + "\n"
    )


def packing(config: Mapping[str, Any]) -> tuple[str, int, list[int]]:
    """Format, group size, and the decoder layers that are not quantized, of a 4 bit model's
    config.json."""
    found = _mapping(config.get("quantization_config"))
    if found.get("quant_method") == "compressed-tensors":
        return (
            "compressed-tensors",
            int(found["config_groups"]["group_0"]["weights"]["group_size"]),
            [],
        )
    kept = [
        int(match[1])
        for name in found.get("modules_to_not_convert") or ()
        if (match := re.search(r"\.(\d+)\.?$", str(name)))
    ]
    return "awq", int(found.get("group_size", 0)), sorted(kept)


def card_files(names: Iterable[str]) -> list[str]:
    """The names of a folder's card: README.md in any case, for a store takes no two names that
    differ by case alone."""
    return [name for name in names if name.casefold() == CARD.casefold()]


# -- what a parent's card says


class _NoAliases(yaml.SafeLoader):
    """A card has no use for aliases, and a few lines of them can stand for gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("alias")
        return super().compose_node(parent, index)


def read_card(folder: Path, longest: int = MAX_CARD_BYTES) -> tuple[dict[str, Any], str]:
    """Metadata and text of a folder's card; empty without one, and no metadata if that is not well
    formed."""
    names = sorted(card_files(path.name for path in folder.iterdir() if path.is_file()))
    if not names:
        return {}, ""
    with (folder / names[0]).open("rb") as file:
        data = file.read(longest + 1)
    text = (
        data[:longest]
        .decode("utf-8", errors="replace")
        .removeprefix("\ufeff")
        .replace("\r\n", "\n")
        .replace("\r", "\n")
    )
    lines = text.lstrip().split("\n")
    end = next((number for number, line in enumerate(lines[1:], 1) if line.rstrip() == "---"), None)
    metadata: Any = {}
    if lines[0].rstrip() == "---" and end is not None:
        text = "\n".join(lines[end + 1 :])
        block = "\n".join(lines[1:end])
        try:
            metadata = yaml.load(block, Loader=_NoAliases) if len(block) <= MAX_METADATA else {}
        except (yaml.YAMLError, ValueError, TypeError, RecursionError):
            # a date like 2026-02-31 is a ValueError, an odd key a TypeError
            metadata = {}
    if len(data) > longest:
        text = "The card of the base model is too long to be repeated here."
    return _mapping(metadata), text.strip("\n")


def _carried(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values among what is carried over: texts, and lists of texts."""
    carried: dict[str, Any] = {}
    for key in CARRIED:
        values = _texts(metadata.get(key))
        if values:
            carried[key] = values if isinstance(metadata[key], list) else values[0]
    if tags := _texts(metadata.get("tags")):
        carried["tags"] = tags
    return carried


def _license(named: Any, folder: Path) -> dict[str, str]:
    """The license that a source names outside a card; else a license file that lies there; else
    nothing."""
    if isinstance(named, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9.+-]{0,63}", named):
        return {"license": named.lower()}
    files = sorted(path.name for path in folder.glob("LICENSE*") if path.is_file())
    linked = {"license_link": files[0]} if files else {}
    if isinstance(named, str) and named.strip():
        return {"license": "other", "license_name": " ".join(named.split())[:200]} | linked
    return {"license": "other"} | linked if linked else {}


def _texts(value: Any) -> list[str]:
    """The texts of a value that may be one, or a list; YAML reads Norwegian, `no`, as False."""
    items = value if isinstance(value, list) else [value]
    texts = ["no" if item is False else item for item in items[:200]]
    return [item for item in texts if isinstance(item, str) and 0 < len(item) <= 500]


def _words(value: Any) -> str:
    """A value as one short line without markup."""
    return " ".join(re.sub(r"[<>|`\[\]\x00-\x1f]", " ", str(value)).split())[:200]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_repository(name: Any) -> bool:
    """Whether a name is a repository of the hub and not, as far as one can see, a folder that
    somebody has loaded from."""
    return (
        isinstance(name, str)
        and REPO.fullmatch(name) is not None
        and name.split("/")[0].lower() not in FOLDERS
    )


# -- what the card says


def _tags(form: str, group_size: int, kept: list[int] | tuple[int, ...]) -> list[str]:
    return [
        form,
        *(["awq"] if form != "awq" else []),
        "w4a16",
        "4-bit",
        "lmdeploy",
        *(["turbomind"] if _turbomind(form, group_size, kept) else []),
    ]


def _turbomind(form: str, group_size: int, kept: list[int] | tuple[int, ...]) -> bool:
    return not kept and group_size in ((128,) if form == "awq" else (32, 128))


def _origin(base: Base) -> str:
    where = ", ".join(
        f"{key} {value}" for key, value in sorted(base.source.items()) if key != "type"
    )
    return (
        f"`{base.name}` with 4 bit weights and 16 bit activations, made with LMDeploy. Quantized"
        f" from the artifact\n`{base.artifact}`{f' ({where})' if where else ''}."
    )


def _table(facts: Mapping[str, Any], kept: list[int], versions: Mapping[str, Any]) -> str:
    def rows() -> Iterator[tuple[str, str]]:
        for key, value in facts.items():
            yield (
                key.replace("_", " "),
                (
                    {True: "yes", False: "no"}.get(value, str(value))
                    if isinstance(value, bool)
                    else str(value)
                ),
            )
        if kept:
            yield "layers kept in 16 bit", ", ".join(map(str, kept))
        if versions:
            yield "made with", ", ".join(f"{name} {version}" for name, version in versions.items())

    return "\n".join(
        [
            "| quantization | |",
            "|---|---|",
            *(f"| {key} | {value.replace('|', ' ')} |" for key, value in rows()),
        ]
    )


def _serve(form: str, group_size: int, kept: list[int], *, code: bool) -> str:
    trust = " --trust-remote-code" if code else ""
    if kept:
        return (
            "Some layers are in 16 bit. That LMDeploy's engines serve such a model is not known;"
            " transformers loads it with\n`AutoModelForCausalLM.from_pretrained(FOLDER)`, and"
            " lmdeploy-flows serves it with engine `transformers`."
        )
    backend = "turbomind" if _turbomind(form, group_size, kept) else "pytorch"
    return (
        f"```\nlmdeploy serve api_server FOLDER --backend {backend} --model-format"
        f" {form}{trust}\n```"
    )


_VERIFY = """With the signature and the public key of whoever published it, OpenSSF model signing
checks every file:

```
model_signing verify key --signature SIGNATURE.json --public_key PUBLISHER.pub FOLDER
```"""
