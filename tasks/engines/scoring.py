"""From logits to `Scores`, where the logits are: on the GPU if they lie there, a few hundred rows
at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from artifacts.records.measurement import Scores

# How many of the likeliest tokens are kept of each distribution: 1 KB a position. A KL divergence
# over them and the rest as one event is a lower bound: 0.86 to 0.90 of the full one for
# SmolLM2-135M, whose kept tokens hold 0.91 of the probability.
KEPT = 128
# positions at a time: two float32 rows of the vocabulary each, 100 MB at 50,000 words
ROWS_AT_ONCE = 256


def scores(
    logits: torch.Tensor, sequence: Sequence[int], at: npt.NDArray[np.int32] | None = None
) -> Scores:
    """Score one sequence.

    Args:
        logits: floating point [n - 1 or more, vocabulary]; row i predicts id i + 1.
        sequence: n token ids.
        at: int32[n - 1, k], the tokens to keep; None: the `KEPT` likeliest of each position.
    """
    count = len(sequence) - 1
    device = "cuda" if torch.cuda.is_available() else logits.device
    targets = torch.tensor(list(sequence[1:]))
    wanted = None if at is None else torch.from_numpy(np.asarray(at, dtype=np.int64))
    parts: list[tuple[torch.Tensor, ...]] = []
    for start in range(0, count, ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, count))
        logprobs = logits[rows].to(device).float().log_softmax(-1)
        broken = logprobs.isnan().any(-1)
        nll = -logprobs.gather(1, targets[rows, None].to(device))[:, 0].double()
        ids = (
            logprobs.nan_to_num(-1e30).topk(min(KEPT, logprobs.shape[-1])).indices
            if wanted is None
            else wanted[rows].to(device)
        )
        parts.append(
            (
                nll.masked_fill(broken, torch.nan).cpu(),
                logprobs.argmax(-1).int().cpu(),
                ids.int().cpu(),
                logprobs.gather(1, ids).cpu(),
            )
        )
    columns = [torch.cat(column).numpy() for column in zip(*parts, strict=True)]
    return Scores(nll=columns[0], top=columns[1], ids=columns[2], logprobs=columns[3])
