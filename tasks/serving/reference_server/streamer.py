"""An answer as text, token by token, up to a stop string."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer


class TextStreamer(BaseStreamer):
    """Decodes an answer token by token and emits its text as soon as it can no longer change, up to
    a stop string.

    transformers' TextStreamer forgets all tokens at a line's end, and tokenizers that drop a
    leading space then eat one space of the next line's indentation; here each token is decoded
    together with the ones before it.

    Args:
        emit: called with each piece of text.
    """

    def __init__(self, tokenizer: Any, stops: list[str], emit: Callable[[str], None]) -> None:
        self.tokenizer = tokenizer
        self.stops = stops
        self.emit = emit
        self.ids: list[int] = []
        # the text of ids[start:done] is emitted; they are the context of the next ones
        self.start = self.done = 0
        self.held = ""  # may become a stop string
        self.prompt_seen = False
        self.stopped = False

    def put(self, value: torch.Tensor) -> None:
        if self.prompt_seen:
            self.ids += value.flatten().tolist()
            self._decode()
        self.prompt_seen = True

    def end(self) -> None:
        self._decode(end=True)

    def _decode(self, *, end: bool = False) -> None:
        before = self._text_of(self.ids[self.start : self.done])
        text = self._text_of(self.ids[self.start :])
        incomplete = text.endswith("\ufffd")  # a character whose other bytes are to come
        if end or (len(text) > len(before) and not incomplete):
            self.start, self.done = self.done, len(self.ids)
            self._hand_out(text[len(before) :], end)

    def _text_of(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _hand_out(self, text: str, end: bool) -> None:
        if self.stopped:
            return
        text = self.held + text
        found = [text.find(stop) for stop in self.stops if stop in text]
        self.stopped = bool(found)
        if found:
            known = min(found)
        elif end:
            known = len(text)
        else:
            known = len(text) - self._start_of_a_stop(text)
        self.held = text[known:]
        if known:
            self.emit(text[:known])

    def _start_of_a_stop(self, text: str) -> int:
        """How many characters at the end of the text may become a stop string."""
        starts = (stop[:length] for stop in self.stops for length in range(1, len(stop)))
        return max((len(start) for start in starts if text.endswith(start)), default=0)


class Ends(StoppingCriteria):
    """Ends a generation whose text has come to a stop string, or whose client has left."""

    def __init__(self, text: TextStreamer, left: threading.Event) -> None:
        self.text = text
        self.left = left

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any) -> Any:
        return torch.full(
            (input_ids.shape[0],),
            self.text.stopped or self.left.is_set(),
            dtype=torch.bool,
            device=input_ids.device,
        )
