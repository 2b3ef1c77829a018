"""The user's own documents, read from where a config says that they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifacts.records.texts import Document
from configs.errors import SourceError
from configs.texts import HubDataset, PythonDocs, TextFile


def place_of(source: PythonDocs | TextFile | HubDataset) -> str:
    """A source's name in errors."""
    if isinstance(source, TextFile):
        return str(source.path)
    if isinstance(source, HubDataset):
        return f"data set {source.dataset}"
    return "python_docs"


def read_source(source: PythonDocs | TextFile | HubDataset) -> Iterator[Document]:
    """Every document of a source, in its own order.

    Raises:
        SourceError: a line that is no document, a missing column, no text at all.
    """
    if isinstance(source, PythonDocs):
        return _read_python_docs()
    if isinstance(source, HubDataset):
        return _read_hub(source)
    if source.path.suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(source.path)
    return _read_blocks(source.path)


def _read_python_docs() -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield {"text": topics[name]}


def _read_blocks(path: Path) -> Iterator[Document]:
    for block in re.split(r"\n\s*\n", _read_utf8(path)):
        if block.strip():
            yield {"text": block}


def _read_utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot be read as UTF-8 text: {error}", where=str(path)) from None


def _read_jsonl(path: Path) -> Iterator[Document]:
    # splitlines() would also cut at U+2028, which JSON allows inside a text
    for number, line in enumerate(_read_utf8(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield check_document(json.loads(line))
        except ValueError as error:
            raise SourceError(
                f"{error}",
                where=f"{path}:{number}",
                hint=(
                    'each line is {"text": "..."} or'
                    ' {"messages": [{"role": ..., "content": ...}, ...]}'
                ),
            ) from None


def check_document(value: Any) -> Document:
    """Return a JSON value if it is a document; raise ValueError if not."""
    if isinstance(value, dict):
        if isinstance(value.get("text"), str):
            return {"text": value["text"]}
        messages = value.get("messages")
        if isinstance(messages, list) and messages and all(map(_is_message, messages)):
            return {
                "messages": [
                    {"role": message["role"], "content": message["content"]} for message in messages
                ]
            }
    raise ValueError("neither a text nor a list of messages")


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and isinstance(value.get("content"), str)
    )


def _read_hub(source: HubDataset) -> Iterator[Document]:
    from datasets import load_dataset

    place = place_of(source)
    try:
        rows = load_dataset(
            source.dataset,
            source.subset,
            split=source.split,
            revision=source.revision,
            streaming=True,
        )
        for number, row in enumerate(rows):
            if number >= source.max_documents:
                return
            if source.column not in row:
                raise SourceError(
                    f"no column {source.column!r}", where=place, hint=f"columns: {', '.join(row)}"
                )
            value = row[source.column]
            if isinstance(value, str) and value.strip():
                yield {"text": value}
            elif isinstance(value, list):
                yield check_document({"messages": value})
    except SourceError:
        raise
    except Exception as error:  # the library raises a dozen kinds for "not there" and "no network"
        raise SourceError(
            f"cannot be read: {type(error).__name__}: {error}",
            where=place,
            hint=(
                "check name, subset and network, or give a file of your own:"
                " source: {type: file, path: ...}"
            ),
        ) from error
