"""The model card of a quantized artifact: README.md with the metadata that a hub reads, so that the
folder can be pushed as it is.

What it says follows from the artifact alone (its config.json, recipe and parent): no time, no
place, so it does not change the digest from one machine to the next. What the parent's own card
says of license, languages and data is carried over, and its text stands below.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from artifacts.manifest import Manifest
from configs.engines import BY_NAME
from configs.quantization import Format
from tasks.checkpoints import files as model_files
from tasks.checkpoints.hub_card import (
    MAX_CARD_BYTES,
    carried_over,
    mapping,
    one_line,
    read_card,
    texts,
)

BELOW = "<!-- Below is the card of the base model, as it came. -->"
HEADING = "\n\n# The base model's own card\n\n"
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


@dataclass(frozen=True)
class Packing:
    """How the weights of a 4 bit model are packed.

    Attributes:
        kept: the decoder layers that are not quantized.
    """

    form: Format
    group_size: int
    kept: tuple[int, ...] = ()

    @property
    def turbomind(self) -> bool:
        """Whether TurboMind serves it."""
        return not self.kept and BY_NAME["turbomind"].serves(self.form, self.group_size)

    @property
    def tags(self) -> list[str]:
        """What a hub finds it by."""
        forms = dict.fromkeys([self.form, "awq"])
        return [*forms, "w4a16", "4-bit", "lmdeploy", *(["turbomind"] if self.turbomind else [])]


def packing(config: Mapping[str, Any]) -> Packing:
    """What a 4 bit model's config.json says."""
    found = mapping(config.get("quantization_config"))
    if found.get("quant_method") == "compressed-tensors":
        weights = found["config_groups"]["group_0"]["weights"]
        return Packing("compressed-tensors", int(weights["group_size"]))
    numbers = [
        re.search(r"\.(\d+)\.?$", str(name)) for name in found.get("modules_to_not_convert") or ()
    ]
    kept = sorted(int(match[1]) for match in numbers if match)
    return Packing("awq", int(found.get("group_size", 0)), tuple(kept))


def base_of(folder: Path, manifest: Manifest) -> Base:
    """What an fp16 artifact says of itself."""
    metadata, text = read_card(folder)
    carried = carried_over(metadata)
    if "license" not in carried:
        carried |= _license(manifest.recipe.get("license"), folder)
    source = {
        key: one_line(value)
        for key, value in mapping(manifest.recipe.get("source")).items()
        if key != "file_sha256"
    }
    named = model_files.read_config(folder).get("_name_or_path")
    names = [
        source.get("repo"),
        source.get("package"),
        named if _is_repository(named) else None,
        *(name for name in texts(metadata.get("base_model")) if _is_repository(name)),
        f"artifact-{manifest.digest[:12]}",
    ]
    origin = {
        key: one_line(manifest.recipe[key])
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
    facts = mapping(metadata.get("quantization"))
    if not marker or "base_artifact" not in facts:
        return base_of(folder, manifest)
    source = {str(key): one_line(value) for key, value in mapping(facts.get("base_source")).items()}
    own = set(Packing("awq", 128).tags) | {"compressed-tensors"}
    carried = carried_over(metadata) | {
        "tags": [tag for tag in texts(metadata.get("tags")) if tag not in own]
    }
    return Base(
        str(metadata.get("base_model")),
        str(facts["base_artifact"]),
        source,
        carried,
        below.removeprefix(HEADING).removesuffix("\n"),
    )


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


def _is_repository(name: Any) -> bool:
    """Whether a name is a repository of the hub and not, as far as one can see, a folder that
    somebody has loaded from."""
    return (
        isinstance(name, str)
        and REPO.fullmatch(name) is not None
        and name.split("/")[0].lower() not in FOLDERS
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
    packed = packing(config)
    facts = {key: recipe[key] for key in RECIPE if recipe.get(key) is not None} | {
        "format": packed.form,
        "group_size": packed.group_size,
    }
    versions = dict(sorted(mapping(recipe.get("versions")).items()))
    tags = [
        *packed.tags,
        *(tag for tag in texts(base.metadata.get("tags")) if tag.lower() not in OTHER_FORMATS),
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
                | ({"kept_layers": list(packed.kept)} if packed.kept else {})
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
        _table(facts, packed, versions),
        "## Serve it",
        _serve(packed, code=any(name.endswith(".py") for name in files)),
        "## Verify it",
        _VERIFY,
        BELOW + (HEADING + base.text if base.text else ""),
    ]
    return (
        f"---\n{data.to_yaml(line_break=chr(10))}\n---\n\n"
        + "\n\n".join(part.strip("\n") for part in parts if part)
        + "\n"
    )


# -- what the card says


def _origin(base: Base) -> str:
    where = ", ".join(
        f"{key} {value}" for key, value in sorted(base.source.items()) if key != "type"
    )
    return (
        f"`{base.name}` with 4 bit weights and 16 bit activations, made with LMDeploy. Quantized"
        f" from the artifact\n`{base.artifact}`{f' ({where})' if where else ''}."
    )


def _table(facts: Mapping[str, Any], packed: Packing, versions: Mapping[str, Any]) -> str:
    def rows() -> Iterator[tuple[str, str]]:
        for key, value in facts.items():
            words = {"True": "yes", "False": "no"} if isinstance(value, bool) else {}
            yield key.replace("_", " "), words.get(str(value), str(value))
        if packed.kept:
            yield "layers kept in 16 bit", ", ".join(map(str, packed.kept))
        if versions:
            yield "made with", ", ".join(f"{name} {version}" for name, version in versions.items())

    return "\n".join(
        [
            "| quantization | |",
            "|---|---|",
            *(f"| {key} | {value.replace('|', ' ')} |" for key, value in rows()),
        ]
    )


def _serve(packed: Packing, *, code: bool) -> str:
    trust = " --trust-remote-code" if code else ""
    if packed.kept:
        return (
            "Some layers are in 16 bit. That LMDeploy's engines serve such a model is not known;"
            " transformers loads it with\n`AutoModelForCausalLM.from_pretrained(FOLDER)`, and"
            " lmdeploy-flows serves it with engine `transformers`."
        )
    backend = "turbomind" if packed.turbomind else "pytorch"
    return (
        f"```\nlmdeploy serve api_server FOLDER --backend {backend} --model-format"
        f" {packed.form}{trust}\n```"
    )


_VERIFY = """With the signature and the public key of whoever published it, OpenSSF model signing
checks every file:

```
model_signing verify key --signature SIGNATURE.json --public_key PUBLISHER.pub FOLDER
```"""
