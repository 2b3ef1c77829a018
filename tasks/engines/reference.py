"""The reference engine: transformers, on any machine. fp16 artifacts load as they are, AWQ ones are
unpacked.

It is the baseline: slow, plain, and the same code for parent and candidate.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    LogitsProcessor,
)
from transformers.modeling_utils import no_init_weights

from artifacts.records.measurement import Scores
from configs.errors import SourceError
from tasks.checkpoints import files
from tasks.checkpoints.int4 import Tensors, dequantize_checkpoint, is_readable
from tasks.engines.protocol import Generation, Tokenized
from tasks.engines.scoring import scores


class FiniteCheck(LogitsProcessor):
    """Watches the logits of a generation: `finite` turns False at the first NaN or plus
    infinity."""

    def __init__(self) -> None:
        self.finite = True

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # minus infinity is how a processor before this one forbids a token
        if scores.isnan().any() or scores.isposinf().any():
            self.finite = False
            return torch.nan_to_num(scores)  # type: ignore[return-value]  # keep generating: argmax of NaN would only hide how bad it is
        return scores


class ReferenceEngine(Tokenized):
    """A causal language model in transformers, on the GPU if there is one.

    Args:
        folder: an fp16 or AWQ artifact's folder.
        dtype: what to compute in; float32 is fastest on a CPU, and the reference for scores.
        trust_remote_code: run the folder's Python files; the caller has checked their hashes.
    """

    def __init__(
        self, folder: Path, *, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False
    ) -> None:
        started = time.monotonic()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = _load(folder, dtype, trust_remote_code).to(self.device).eval()
        # remote code written for older releases may fail with today's cache classes; of InternLM2's
        # it is known what it misses
        self.use_cache = not trust_remote_code or self.model.config.model_type == "internlm2"
        if self.use_cache and trust_remote_code:
            DynamicCache.get_max_length = lambda _: None  # type: ignore[attr-defined]  # transformers 4.57 has it no more; None: no limit
        self.end_ids = files.end_ids(folder, self.tokenizer.eos_token_id)
        self.vocabulary = int(self.model.config.vocab_size)
        self.load_seconds = time.monotonic() - started

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, exact: bool = False
    ) -> list[Generation]:
        """One prompt after the other, as the server over this engine answers them."""
        return [self._generate(prompt, max_new_tokens, exact) for prompt in prompts]

    def _generate(self, prompt: Sequence[int], max_new_tokens: int, exact: bool) -> Generation:
        started = time.monotonic()
        check = FiniteCheck()
        fixed = {"min_new_tokens": max_new_tokens, "eos_token_id": None} if exact else {}
        with torch.inference_mode():
            output = self.model.generate(
                **self.inputs(prompt),
                **self.generation_options(max_new_tokens) | fixed,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                logits_processor=[check],
            )
        new = output[0, len(prompt) :].tolist()
        ended = not exact and bool(new) and new[-1] in self.end_ids
        return Generation(
            text=self.tokenizer.decode(new, skip_special_tokens=True).strip(),
            tokens=len(new),
            finish_reason="stop" if ended else "length",
            finite=check.finite,
            seconds=time.monotonic() - started,
        )

    def inputs(self, prompt: Sequence[int]) -> dict[str, torch.Tensor]:
        """`generate`'s tensor arguments for one prompt."""
        ids = torch.tensor([list(prompt)], device=self.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def generation_options(self, max_new_tokens: int) -> dict[str, Any]:
        """`generate`'s arguments that are the same for every request."""
        return {
            "max_new_tokens": max_new_tokens,
            "use_cache": self.use_cache,
            "eos_token_id": sorted(self.end_ids) or None,
            "pad_token_id": (
                self.tokenizer.pad_token_id
                if self.tokenizer.pad_token_id is not None
                else min(self.end_ids, default=0)
            ),
        }

    def score(
        self, sequences: Sequence[Sequence[int]], at: Sequence[npt.NDArray[np.int32]] | None = None
    ) -> list[Scores]:
        longest = max(len(sequence) for sequence in sequences)
        batch = torch.zeros(len(sequences), longest, dtype=torch.long)
        for row, sequence in enumerate(sequences):
            batch[row, : len(sequence)] = torch.tensor(list(sequence))
        # causal attention: what is right of a token does not touch it, so no mask is needed
        with torch.inference_mode():
            logits = self.model(input_ids=batch.to(self.device), use_cache=False).logits
            return [
                scores(logits[row], sequence, None if at is None else at[row])
                for row, sequence in enumerate(sequences)
            ]

    def close(self) -> None:
        del self.model


def _load(folder: Path, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """A PreTrainedModel; Any, because the library's annotations of its mixins contradict each
    other."""
    model: Any
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
        )
        model, found = loaded
        # the library fills them with random numbers, and only warns
        if missing := sorted(found["missing_keys"]):
            raise SourceError(
                f"{len(missing)} weights of the architecture are in no file: {missing[:3]}",
                where=str(folder),
                hint="download the weights again",
            )
        return model
    if not is_readable(quantization):
        raise SourceError(
            "the reference engine unpacks AWQ gemm and pack-quantized int4 only, not"
            f" {quantization}",
            where=str(folder),
            hint="use an unquantized model, or one that this pipeline has quantized",
        )
    del config.quantization_config
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    lost = model.load_state_dict(
        dequantize_checkpoint(Tensors(folder), dtype), strict=False, assign=True
    )
    model.tie_weights()
    tied = (
        set(getattr(model, "_tied_weights_keys", None) or ())
        if model.config.tie_word_embeddings
        else set()
    )
    if missing := [name for name in lost.missing_keys if name not in tied] + lost.unexpected_keys:
        raise SourceError(
            f"weights do not match the architecture: {missing[:3]}",
            where=str(folder),
            hint="quantize it again",
        )
    if (folder / "generation_config.json").exists():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model
