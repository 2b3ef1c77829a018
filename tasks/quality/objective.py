"""Which variant shall be served: the best by the pipeline's objective among those that are good
enough, fp16 included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from artifacts.records.measurement import read_measurement
from artifacts.records.outcomes import Choice, VariantOutcome
from configs.variants import weights_and_kv
from tasks.checkpoints import files

Objective = Literal["memory", "latency", "throughput"]
CACHED_TOKENS = 32_768  # what `memory` counts beside the weights: eight sessions of 4096 tokens
UNITS = {
    "memory": f"GB of weights and of KV cache for {CACHED_TOKENS} tokens",
    "latency": "decode tokens/s of the smallest batch",
    "throughput": "decode tokens/s of the largest batch",
}


def choose(outcomes: Sequence[VariantOutcome], objective: Objective | None) -> Choice | None:
    """The best variant of those that passed; None if none did, or if there is no objective. Of
    equal ones the first, so fp16 wins a tie."""
    if objective is None:
        return None
    passed = [item for item in outcomes if item.verdict and item.verdict.outcome == "PASS"]
    if not passed:
        return None
    best_first = sorted(
        ((outcome.variant, figure(outcome, objective)) for outcome in passed),
        key=lambda variant_and_figure: variant_and_figure[1],
        reverse=objective != "memory",
    )
    winner, value = best_first[0]
    others = "; ".join(f"{variant} {other:.4g}" for variant, other in best_first[1:])
    why = f"{winner}: {value:.4g} {UNITS[objective]}" + (
        f", against {others}" if others else ", the only one that passed"
    )
    failed = [outcome.variant for outcome in outcomes if outcome not in passed]
    if failed:
        why += f". Not eligible: {', '.join(failed)}"
    return Choice(objective=objective, unit=UNITS[objective], figures=tuple(best_first), why=why)


def figure(outcome: VariantOutcome, objective: Objective) -> float:
    """The figure of a measured variant that an objective looks at, in the unit of UNITS."""
    assert outcome.measurement is not None
    if objective == "memory":
        return (outcome.model_bytes + CACHED_TOKENS * kv_bytes_per_token(outcome)) / 1e9
    speeds = read_measurement(outcome.measurement).speeds
    by_batch = sorted(speeds, key=lambda speed: speed.batch_size)
    return by_batch[0 if objective == "latency" else -1].decode_median


def kv_bytes_per_token(outcome: VariantOutcome) -> float:
    """Keys and values of all layers for one token; a quantized cache has a scale and a zero point
    in 16 bit for each head as well."""
    config = files.inspect(outcome.model.path).config
    heads = int(config.get("num_key_value_heads") or config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    _, bits = weights_and_kv(outcome.variant)
    bytes_per_head = head_dim * bits / 8 + 4 if bits else head_dim * 2
    return 2 * int(config["num_hidden_layers"]) * heads * bytes_per_head
