"""Which variant shall be served: the best by the pipeline's objective among those that are good
enough, fp16 included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from artifacts.records.evidence import read_evidence
from artifacts.records.measurement import read_measurement
from artifacts.records.outcomes import Choice, VariantOutcome
from configs.evaluation import Evaluate
from configs.variants import weights_and_kv
from tasks.checkpoints import files
from tasks.quality.verdict import judge

Objective = Literal["memory", "latency", "throughput"]
CACHED_TOKENS = 32_768  # what `memory` counts beside the weights: eight sessions of 4096 tokens
UNITS = {
    "memory": f"GB of weights and of KV cache for {CACHED_TOKENS} tokens",
    "latency": "decode tokens/s of the smallest batch",
    "throughput": "decode tokens/s of the largest batch",
}


def choose(
    outcomes: Sequence[VariantOutcome], objective: Objective | None, config: Evaluate
) -> Choice | None:
    """The best variant of those that passed; None if none did, or if there is no objective. Of
    equal ones the first, so fp16 wins a tie.

    Args:
        config: how the variants are judged.
    """
    if objective is None:
        return None
    passed = [
        item
        for item in outcomes
        if item.measurement
        and item.evidence
        and judge(read_evidence(item.evidence), item.evidence.digest, config).outcome == "PASS"
    ]
    if not passed:
        return None
    best_first = sorted(
        ((item.variant, figure(item, objective)) for item in passed),
        key=lambda one: one[1],
        reverse=objective != "memory",
    )
    winner, value = best_first[0]
    out = [item.variant for item in outcomes if item not in passed]
    others = "; ".join(f"{variant} {other:.4g}" for variant, other in best_first[1:])
    why = (
        f"{winner}: {value:.4g} {UNITS[objective]}"
        + (f", against {others}" if others else ", the only one that passed")
        + (f". Not eligible: {', '.join(out)}" if out else "")
    )
    return Choice(objective=objective, unit=UNITS[objective], figures=tuple(best_first), why=why)


def figure(item: VariantOutcome, objective: Objective) -> float:
    """The figure of a measured variant that an objective looks at, in the unit of UNITS."""
    assert item.measurement is not None
    if objective == "memory":
        return (item.model_bytes + CACHED_TOKENS * kv_bytes_per_token(item)) / 1e9
    speeds = sorted(read_measurement(item.measurement).speeds, key=lambda speed: speed.batch_size)
    return speeds[0 if objective == "latency" else -1].decode_median


def kv_bytes_per_token(item: VariantOutcome) -> float:
    """Keys and values of all layers for one token; a quantized cache has a scale and a zero point
    in 16 bit for each head as well."""
    config = files.inspect(item.model.path).config
    heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    bits = weights_and_kv(item.variant)[1]
    return (
        2
        * int(config["num_hidden_layers"])
        * heads
        * (head_dim * bits / 8 + 4 if bits else head_dim * 2)
    )
