"""Which documents say the same: words, passages of words, and a split that keeps every passage on
one side.

Knows nothing of tokens: a passage is the same whatever the model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence

from artifacts.records.texts import Document
from configs.errors import SourceError

# a shared run of 13 words is a shared passage: the rule of GPT-3's decontamination (arXiv
# 2005.14165, C)
SHARED_WORDS = 13
# a Thai, Lao, Khmer, kana, Han or Hangul character, or else a run of letters and digits
SPACELESS = (
    "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
WORD = re.compile(f"[{SPACELESS}]|[^\\W{SPACELESS}]+")


def words(document: Document) -> list[str]:
    """The words of a document, in lower case, without punctuation: what `split` compares.

    A system message counts for nothing, for all chats of a log may share it. Scripts without spaces
    count by character.
    """
    text = document.get("text") or " ".join(
        message["content"] for message in document["messages"] if message["role"] != "system"
    )
    return WORD.findall(text.lower())


def unique(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents without empty ones and without repetitions of an earlier one's words."""
    seen: set[tuple[str, ...]] = set()
    for document in documents:
        key = tuple(words(document))
        if key and key not in seen:
            seen.add(key)
            yield document


def passages(document: Document) -> Iterator[int]:
    """The hash of each run of SHARED_WORDS words of a document; of all its words if it has
    fewer."""
    sequence = words(document)
    return (
        hash(tuple(sequence[start : start + SHARED_WORDS]))
        for start in range(max(1, len(sequence) - SHARED_WORDS + 1))
    )


def overlap(calibration: Iterable[Document], held_out: Iterable[Document]) -> int:
    """How many held-out documents share a passage with the calibration text."""
    seen = {passage for document in calibration for passage in passages(document)}
    return sum(not seen.isdisjoint(passages(document)) for document in held_out)


def groups(documents: Sequence[Document]) -> list[list[int]]:
    """Indices of the documents, grouped so that two with a shared passage are in one group
    (union-find)."""
    parent = list(range(len(documents)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first_with: dict[int, int] = {}
    for index, document in enumerate(documents):
        for passage in passages(document):
            parent[find(index)] = find(first_with.setdefault(passage, index))
    grouped: dict[int, list[int]] = {}
    for index in range(len(documents)):
        grouped.setdefault(find(index), []).append(index)
    return list(grouped.values())


def split(
    documents: Sequence[Document], held_out: int, seed: int, *, where: str
) -> tuple[list[Document], list[Document]]:
    """Split documents into (calibration, held-out) so that no passage of SHARED_WORDS words is on
    both sides.

    Whole groups are held out, drawn with the seed, until `held_out` documents are; the largest
    group (a corpus that quotes itself has one) always stays with the calibration.

    Raises:
        SourceError: too few independent documents.
    """
    ordered = sorted(groups(documents), key=lambda group: (-len(group), group))
    pool = ordered[1:]
    random.Random(seed).shuffle(pool)
    chosen: set[int] = set()
    for group in pool:
        if len(chosen) + len(group) <= held_out:
            chosen.update(group)
    if len(chosen) < held_out:
        raise SourceError(
            f"{len(documents)} documents in {len(ordered)} groups without a common passage are too"
            f" few to hold out {held_out}",
            where=where,
            hint="lower texts.held_out_documents or give more text",
        )
    calibration = [document for index, document in enumerate(documents) if index not in chosen]
    return calibration, [documents[index] for index in sorted(chosen)]
