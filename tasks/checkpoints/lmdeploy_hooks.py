"""The three hooks into LMDeploy 0.17's `auto_awq`, each undone on the way out.

It has no option for the user's own text, prints its progress on stdout only, and on a CPU has one
bug and one slow path. One quantization per process: its observers are registries of their classes.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import torch
from torch import nn

from configs.callbacks import Log, Progress


@contextlib.contextmanager
def calibrate_with(rows: Sequence[Sequence[int]]) -> Iterator[None]:
    """Give `auto_awq` these rows of token ids, whatever data set it is told to load."""
    from lmdeploy.lite.apis import calibrate

    def loader(_name: str, _tokenizer: Any, **_: Any) -> list[torch.Tensor]:
        return [torch.tensor([list(row)]) for row in rows]

    with _replaced(calibrate, "get_calib_loaders", loader):
        yield


@contextlib.contextmanager
def layer_progress(progress: Progress, layers: int) -> Iterator[None]:
    """Turn the lines that LMDeploy prints for each decoder layer into progress.

    The three passes over the layers take very unequal time; the shares are those of the demo with
    scale search.
    """
    passes = {
        r"^\S+\.(\d+), samples:": (0.05, 0.80, "calibrating"),
        r"^\S+\.(\d+) smooth weight done": (0.80, 0.82, "smoothing"),
        r"^\S*?\.(\d+)\.\S+ weight packed": (0.82, 0.97, "packing"),
    }

    def read(line: str) -> None:
        for pattern, (start, end, verb) in passes.items():
            if match := re.match(pattern, line):
                done = int(match[1]) + 1
                progress(start + (end - start) * done / layers, f"{verb} layer {done}/{layers}")

    with contextlib.redirect_stdout(_Watched(sys.stdout, read)):
        yield


class _Watched:
    """A text stream that shows each whole line to a log as it passes."""

    def __init__(self, stream: TextIO, log: Log) -> None:
        self.stream = stream
        self.log = log
        self.rest = ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.log(line)
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


@contextlib.contextmanager
def mended_for_cpu() -> Iterator[None]:
    """Make scale search right, and half precision fast, on a CPU.

    Right: `auto_scale_block` saves the weights with `state_dict()` and `.cpu()`, which copies from
    a GPU but not from a CPU; its search then scales the very tensors it means to restore, and the
    model comes out as noise (measured on SmolLM2-135M: mean NLL 88 instead of 2.8). Here the saved
    tensors are copies.

    Fast: few CPUs multiply float16 in hardware. Linear layers compute in float32 and round the
    result to float16, as a GPU's tensor cores do (measured on 2 cores without AVX512-FP16: 95 s
    instead of 241 s for the demo's search).
    """
    from lmdeploy.lite.quantization import calibration

    state_dict = nn.Module.state_dict
    search = calibration.auto_scale_block

    def copied(self: nn.Module, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        state = state_dict(self, *args, destination=destination, **kwargs)
        if destination is not None:
            return state
        return {name: tensor.clone() for name, tensor in state.items()}

    def search_on_copies(*args: Any, **kwargs: Any) -> Any:
        with _replaced(nn.Module, "state_dict", copied):
            return search(*args, **kwargs)

    def linear(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float16:
            return nn.functional.linear(x, self.weight, self.bias)
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(x.float(), self.weight.float(), bias).half()

    with (
        _replaced(calibration, "auto_scale_block", search_on_copies),
        _replaced(nn.Linear, "forward", linear),
    ):
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
