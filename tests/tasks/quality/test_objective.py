"""The choice among variants: the best by the objective of those that passed, fp16 included, with
the reason."""

# covers artifacts/records/outcomes.py

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from artifacts.manifest import ModelArtifact
from artifacts.records.outcomes import VariantOutcome
from artifacts.store.local import LocalStore
from configs.evaluation import Evaluate
from configs.variants import Variant
from tasks.quality.objective import CACHED_TOKENS, Objective, choose, kv_bytes_per_token
from tests.support.planted_reports import SPEEDS, Site

CONFIG = Evaluate(max_perplexity_ratio=1.1)
SHAPE = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "hidden_size": 512,
}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(LocalStore(tmp_path / "store"))


def shaped(item: VariantOutcome, folder: Path) -> VariantOutcome:
    """The outcome of a model whose folder has a config.json, which a choice by memory reads."""
    folder.mkdir(exist_ok=True)
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(SHAPE))
    return item.model_copy(
        update={"model": ModelArtifact(digest=item.model.digest, kind=item.model.kind, path=folder)}
    )


def outcomes(site: Site, *names: Variant, **evidence: Any) -> list[VariantOutcome]:
    return [site.baseline(), *(site.variant(name, **evidence) for name in names)]


@pytest.mark.parametrize(
    ("objective", "winner"), [("latency", "w4a16"), ("throughput", "w4a16-kv4")]
)
def test_the_fastest_of_those_that_passed_wins(
    site: Site, objective: Objective, winner: str
) -> None:
    """Alone 4 bits decode fastest, in large batches the small cache does."""
    found = choose(outcomes(site, "w4a16", "w4a16-kv8", "w4a16-kv4"), objective)
    assert found is not None and found.figures[0][0] == winner
    assert [figure for _, figure in found.figures] == sorted(
        (figure for _, figure in found.figures), reverse=True
    )
    assert len(found.figures) == 4 and found.why.startswith(f"{winner}: ") and "fp16" in found.why


def test_fp16_may_win_and_the_reason_has_the_figures(site: Site) -> None:
    assert SPEEDS["w4a16"][1] < SPEEDS["fp16"][1]
    found = choose(outcomes(site, "w4a16"), "throughput")
    assert found is not None and found.figures[0][0] == "fp16" and "against w4a16" in found.why


def test_what_did_not_pass_is_not_chosen_however_fast(site: Site) -> None:
    found = choose(outcomes(site, "w4a16", loss=0.5), "latency")
    assert (
        found is not None and found.figures[0][0] == "fp16" and "Not eligible: w4a16" in found.why
    )


def test_a_variant_without_figures_is_not_chosen(site: Site) -> None:
    crashed = VariantOutcome(variant="w4a16", model=site.candidate, model_bytes=1, problem="died")
    found = choose([site.baseline(), crashed], "latency")
    assert found is not None and [name for name, _ in found.figures] == ["fp16"]


def test_nothing_is_chosen_if_nothing_passed(site: Site) -> None:
    assert choose([site.variant("w4a16", loss=0.5)], "latency") is None


def test_memory_counts_weights_and_cache(site: Site, tmp_path: Path) -> None:
    found = choose(
        [shaped(item, tmp_path / item.variant) for item in outcomes(site, "w4a16", "w4a16-kv8")],
        "memory",
    )
    assert found is not None and [name for name, _ in found.figures] == [
        "w4a16-kv8",
        "w4a16",
        "fp16",
    ]
    fp16 = dict(found.figures)["fp16"]
    assert fp16 == pytest.approx(
        (site.baseline().model_bytes + CACHED_TOKENS * 2 * 4 * 2 * 64 * 2) / 1e9
    )


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("w4a16", 2 * 4 * 2 * 64 * 2),
        ("w4a16-kv8", 2 * 4 * 2 * (64 + 4)),
        ("w4a16-kv4", 2 * 4 * 2 * (32 + 4)),
    ],
)
def test_the_cache_of_a_token_by_hand(
    site: Site, tmp_path: Path, variant: Variant, expected: float
) -> None:
    """4 layers, keys and values, 2 heads of 64."""
    assert kv_bytes_per_token(shaped(site.variant(variant), tmp_path / "model")) == expected
