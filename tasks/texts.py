"""The texts step: the user's own documents, split into calibration and held-out parts that share no
passage.

Hands on an artifact of kind `texts` with two JSONL files of the records `{"text": ...}` or
`{"messages": [...]}`. Knows nothing of tokens: each model's tokenizer turns a record into ids where
it is used (`token_ids`).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from artifacts.manifest import ModelArtifact
from configs.errors import SourceError
from configs.texts import HubDataset, PythonDocs, TextFile, Texts
from tasks.runner.step import Context, Request, Result, step, versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CALIBRATION, HELD_OUT = "calibration.jsonl", "held_out.jsonl"
# a shared run of 13 words is a shared passage: the rule of GPT-3's decontamination (arXiv
# 2005.14165, C)
SHARED_WORDS = 13
# a Thai, Lao, Khmer, kana, Han or Hangul character, or else a run of letters and digits
SPACELESS = (
    "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
WORD = re.compile(f"[{SPACELESS}]|[^\\W{SPACELESS}]+")

Record = dict[str, Any]


class TextsRequest(Request):
    config: Texts


class TextsResult(Result):
    """Number of documents in each part, and the artifact that holds them."""

    texts: ModelArtifact
    calibration_documents: Annotated[int, Field(ge=1)]
    held_out_documents: Annotated[int, Field(ge=1)]


@step(cached=False)  # cheap to read again, and a text file's content is not known before it is read
def texts(request: TextsRequest, context: Context) -> TextsResult:
    """Read the user's documents and split them so that no passage is on both sides."""
    config = request.config
    records = list(unique(read(config.source)))
    calibration, held_out = split(
        records, config.held_out_documents, config.seed, where=_place(config.source)
    )
    with context.store.staging() as staging:
        staging.write(CALIBRATION, _jsonl(calibration))
        staging.write(HELD_OUT, _jsonl(held_out))
        artifact = context.store.commit(
            staging,
            "texts",
            recipe={
                "seed": config.seed,
                "held_out_documents": config.held_out_documents,
                "shared_words": SHARED_WORDS,
                # not where a file lies: the same text is the same artifact
                "source": config.source.model_dump(mode="json", exclude={"path"}),
                "versions": versions(
                    ("datasets",) if isinstance(config.source, HubDataset) else ()
                ),
            },
        )
    context.log(
        f"{len(records)} documents: {len(calibration)} to calibrate with, {len(held_out)} held out"
    )
    return TextsResult(
        texts=artifact, calibration_documents=len(calibration), held_out_documents=len(held_out)
    )


def load_records(path: Path) -> list[Record]:
    """The records of one part of a `texts` artifact."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def token_ids(tokenizer: PreTrainedTokenizerBase, record: Record) -> list[int]:
    """A record's token ids: a chat through the model's own template, plain text as the tokenizer
    encodes it."""
    if "messages" in record:
        return list(tokenizer.apply_chat_template(record["messages"], tokenize=True))
    return list(tokenizer(record["text"]).input_ids)


# -- reading


def read(source: PythonDocs | TextFile | HubDataset) -> Iterator[Record]:
    """Every document of a source, in its own order.

    Raises:
        SourceError: a line that is not a record, a missing column, no text at all.
    """
    if isinstance(source, PythonDocs):
        from pydoc_data.topics import topics

        return ({"text": topics[name]} for name in sorted(topics))
    if isinstance(source, TextFile):
        if source.path.suffix in (".jsonl", ".ndjson"):
            return _read_jsonl(source.path)
        return (
            {"text": block}
            for block in re.split(r"\n\s*\n", _read_utf8(source.path))
            if block.strip()
        )
    return _read_hub(source)


def _read_utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"cannot be read as UTF-8 text: {error}", where=str(path)) from None


def _read_jsonl(path: Path) -> Iterator[Record]:
    # splitlines() would also cut at U+2028, which JSON allows inside a text
    for number, line in enumerate(_read_utf8(path).split("\n"), 1):
        if line.strip():
            try:
                yield check_record(json.loads(line))
            except ValueError as error:
                raise SourceError(
                    f"{error}",
                    where=f"{path}:{number}",
                    hint=(
                        'each line is {"text": "..."} or {"messages": [{"role": ..., "content":'
                        " ...}, ...]}"
                    ),
                ) from None


def check_record(value: Any) -> Record:
    """Return a JSON value if it is a record; raise ValueError if not."""
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return {"text": value["text"]}
    messages = value.get("messages") if isinstance(value, dict) else None
    if (
        isinstance(messages, list)
        and messages
        and all(
            isinstance(m, dict)
            and isinstance(m.get("role"), str)
            and isinstance(m.get("content"), str)
            for m in messages
        )
    ):
        return {"messages": [{"role": m["role"], "content": m["content"]} for m in messages]}
    raise ValueError("neither a text nor a list of messages")


def _read_hub(source: HubDataset) -> Iterator[Record]:
    from datasets import load_dataset

    place = _place(source)
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
                yield check_record({"messages": value})
    except SourceError:
        raise
    except Exception as error:  # the library raises a dozen kinds for "not there" and "no network"
        raise SourceError(
            f"cannot be read: {type(error).__name__}: {error}",
            where=place,
            hint=(
                "check name, subset and network, or give a file of your own: source: {type: file,"
                " path: ...}"
            ),
        ) from error


def _place(source: PythonDocs | TextFile | HubDataset) -> str:
    if isinstance(source, TextFile):
        return str(source.path)
    return f"data set {source.dataset}" if isinstance(source, HubDataset) else "python_docs"


# -- splitting


def words(record: Record) -> list[str]:
    """The words of a record, in lower case, without punctuation: what `split` compares.

    A system message counts for nothing, for all chats of a log may share it. Scripts without spaces
    count by character.
    """
    text = record.get("text") or " ".join(
        message["content"] for message in record["messages"] if message["role"] != "system"
    )
    return WORD.findall(text.lower())


def unique(records: Iterable[Record]) -> Iterator[Record]:
    """Records without empty ones and without repetitions of an earlier one's words."""
    seen: set[tuple[str, ...]] = set()
    for record in records:
        key = tuple(words(record))
        if key and key not in seen:
            seen.add(key)
            yield record


def passages(record: Record) -> Iterator[int]:
    """The hash of each run of SHARED_WORDS words of a record; of all its words if it has fewer."""
    sequence = words(record)
    return (
        hash(tuple(sequence[start : start + SHARED_WORDS]))
        for start in range(max(1, len(sequence) - SHARED_WORDS + 1))
    )


def groups(records: Sequence[Record]) -> list[list[int]]:
    """Indices of the records, grouped so that two records with a shared passage are in one group
    (union-find)."""
    parent = list(range(len(records)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first_with: dict[int, int] = {}
    for index, record in enumerate(records):
        for gram in passages(record):
            parent[find(index)] = find(first_with.setdefault(gram, index))
    grouped: dict[int, list[int]] = {}
    for index in range(len(records)):
        grouped.setdefault(find(index), []).append(index)
    return list(grouped.values())


def split(
    records: Sequence[Record], held_out: int, seed: int, *, where: str
) -> tuple[list[Record], list[Record]]:
    """Split records into (calibration, held-out) so that no passage of SHARED_WORDS words is on
    both sides.

    Whole groups are held out, drawn with the seed, until `held_out` documents are; the largest
    group (a corpus that quotes itself has one) always stays with the calibration.

    Raises:
        SourceError: too few independent documents.
    """
    ordered = sorted(groups(records), key=lambda group: (-len(group), group))
    pool = ordered[1:]
    random.Random(seed).shuffle(pool)
    chosen: set[int] = set()
    for group in pool:
        if len(chosen) + len(group) <= held_out:
            chosen.update(group)
    if len(chosen) < held_out:
        raise SourceError(
            f"{len(records)} documents in {len(ordered)} groups without a common passage are too"
            f" few to hold out {held_out}",
            where=where,
            hint="lower texts.held_out_documents or give more text",
        )
    return [r for i, r in enumerate(records) if i not in chosen], [
        r for i, r in enumerate(records) if i in chosen
    ]


def _jsonl(records: Iterable[Record]) -> bytes:
    return "".join(
        json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n" for record in records
    ).encode()
