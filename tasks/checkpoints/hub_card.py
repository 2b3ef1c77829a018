"""Reading a hub's model card, README.md, that may be anything: broken, huge, hostile.

A card is text here, and only plain values are taken from its metadata. Knows nothing of what is
done with them: `tasks.checkpoints.card` writes the card of a quantized artifact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

CARD = "README.md"
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


def card_files(names: Iterable[str]) -> list[str]:
    """The names of a folder's card: README.md in any case, for a store takes no two names that
    differ by case alone."""
    return [name for name in names if name.casefold() == CARD.casefold()]


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
    return mapping(metadata), text.strip("\n")


def carried_over(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The plain values among what is carried over: texts, and lists of texts."""
    carried: dict[str, Any] = {}
    for key in CARRIED:
        values = texts(metadata.get(key))
        if values:
            carried[key] = values if isinstance(metadata[key], list) else values[0]
    if tags := texts(metadata.get("tags")):
        carried["tags"] = tags
    return carried


def texts(value: Any) -> list[str]:
    """The texts of a value that may be one, or a list; YAML reads Norwegian, `no`, as False."""
    items = value if isinstance(value, list) else [value]
    found = ["no" if item is False else item for item in items[:200]]
    return [item for item in found if isinstance(item, str) and 0 < len(item) <= 500]


def one_line(value: Any) -> str:
    """A value as one short line without markup."""
    return " ".join(re.sub(r"[<>|`\[\]\x00-\x1f]", " ", str(value)).split())[:200]


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping; else an empty one."""
    return value if isinstance(value, dict) else {}
