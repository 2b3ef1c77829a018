"""A `texts` artifact: the user's documents in two JSONL files, one to calibrate with, one held out.

A document is `{"text": ...}` or `{"messages": [{"role": ..., "content": ...}, ...]}`. The two parts
share no passage; `tasks.texts` sees to that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CALIBRATION = "calibration.jsonl"
HELD_OUT = "held_out.jsonl"

Document = dict[str, Any]


def documents_to_bytes(documents: Iterable[Document]) -> bytes:
    """One part of the artifact: JSON lines with sorted keys, so that equal text is equal bytes."""
    return "".join(
        json.dumps(document, ensure_ascii=False, sort_keys=True) + "\n" for document in documents
    ).encode()


def read_documents(path: Path) -> list[Document]:
    """The documents of one part, in their order."""
    # splitlines() would also cut at U+2028, which JSON allows inside a text
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]
