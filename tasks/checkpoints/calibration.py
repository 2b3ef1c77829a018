"""Text as a checkpoint sees it: a document's token ids by the model's own tokenizer, and the rows
of token ids that a quantization calibrates with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from artifacts.records.texts import Document
from configs.errors import SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_ids(tokenizer: PreTrainedTokenizerBase, document: Document) -> list[int]:
    """A document's token ids: a chat through the model's own template, plain text as the tokenizer
    encodes it."""
    if "messages" in document:
        return list(tokenizer.apply_chat_template(document["messages"], tokenize=True))
    return list(tokenizer(document["text"]).input_ids)


def calibration_rows(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    *,
    samples: int,
    length: int,
    seed: int,
) -> list[list[int]]:
    """Draw `samples` rows of `length` token ids from the documents, joined by the end token,
    without replacement.

    Raises:
        SourceError: the text is too short.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream: list[int] = []
    for document in documents:
        stream += [*token_ids(tokenizer, document), *end]
    count = len(stream) // length
    if count < samples:
        raise SourceError(
            f"the calibration text gives {count} rows of {length} tokens, quantize.samples asks for"
            f" {samples}",
            where="quantize.samples",
            hint="lower samples or sequence_length, or give more text in texts.source",
        )
    starts = sorted(random.Random(seed).sample(range(count), samples))
    return [stream[start * length : (start + 1) * length] for start in starts]
