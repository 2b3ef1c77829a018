"""The table of variants, and how a baseline is named in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.store.local import LocalStore
from tasks.reporting.data import collect
from tasks.reporting.tables import variant_rows
from tests.support import planted_reports
from tests.support.planted_reports import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(LocalStore(tmp_path))


def test_the_table_of_variants(site: Site) -> None:
    rows = {row["variant"]: row for row in variant_rows(collect(site.whole(), site.store))}
    assert (
        list(rows) == ["fp16", "w4a16", "w4a16-kv8", "w4a16-kv4"]
        and len({tuple(row) for row in rows.values()}) == 1
    )
    assert (rows["fp16"]["verdict"], rows["fp16"]["ratio"], rows["fp16"]["size"]) == (
        "baseline",
        "1",
        "3.79 GB",
    )
    assert (rows["w4a16"]["verdict"], rows["w4a16"]["ratio"], rows["w4a16"]["perplexity"]) == (
        "PASS",
        "1.0213 [1.0094, 1.0334]",
        "10.667",
    )
    assert rows["w4a16"]["decode tokens/s"] == "346 (batch 1), 3332 (batch 16), 9676 (batch 128)"
    assert (rows["w4a16-kv4"]["verdict"], rows["w4a16-kv4"]["ratio"]) == (
        "KV int4 needs a head dimension of 128",
        "",
    )


def test_a_baseline_that_is_broken_is_not_called_one(site: Site) -> None:
    request = site.minimal()
    odd = planted_reports.compared(
        site.store,
        site.parent,
        site.parent,
        site.texts,
        "fp16",
        loss=0,
        spread=0,
        documents=tuple(
            {"tokens": 100, "nll_parent": 900.0, "nll_candidate": 900.0, "kl": 0.0, "same_top": 100}
            for _ in range(24)
        ),
    )
    fp16 = request.variants[0].model_copy(update={"evidence": odd})
    changed = request.model_copy(update={"variants": (fp16, request.variants[1])})
    rows = variant_rows(collect(changed, site.store))
    assert rows[0]["verdict"] == "ANOMALOUS"
