"""The steps: a variant is served by the reference engine for its load test, and running servers are
tested by URL."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from artifacts.manifest import ModelArtifact
from artifacts.records.load_results import Load, read_load
from artifacts.store.local import LocalStore
from configs.engines import EngineTransformers
from configs.load_testing import LoadTest, Slo
from tasks.load.compare import MIN_ROUNDS, ComparisonPlan
from tasks.load_test import (
    BenchRequest,
    CompareServersRequest,
    LoadTestRequest,
    bench_server,
    compare_speed,
    load_test,
)
from tasks.runner.step import Context
from tests.support.models import fetch
from tests.support.slow_server import running

pytestmark = pytest.mark.slow

ENGINE = EngineTransformers(name="transformers")


def request_of(model: ModelArtifact, **config: object) -> LoadTestRequest:
    return LoadTestRequest(
        variant="fp16",
        model=model,
        engine=ENGINE,
        config=LoadTest.model_validate(
            {"prompt_tokens": 60, "new_tokens": 8, "max_lag_ms": 500.0} | config
        ),
        hardware={"processor": "x"},
    )


def test_a_variant_is_served_for_its_test_and_no_longer(
    tiny_model: Path, tmp_path: Path, home: Path
) -> None:
    store = LocalStore(tmp_path / "store")
    model = fetch(store, tiny_model)
    request = request_of(
        model, concurrencies=(2,), rates_per_second=(4.0,), requests=8, slo=Slo(ttft_ms=60_000)
    )
    artifact = load_test(request, Context(store)).measurement
    assert artifact.kind == "measurement" and not store.verify(artifact.digest)
    report = read_load(artifact)
    assert report.variant == "fp16" and report.model == model.digest
    assert [result.load.name for result in report.results] == ["concurrency 2", "4 requests/s"]
    for result in report.results:
        # the model would have ended some before
        assert not result.errors and set(result.rows.tokens) == {8} and result.short == 0
        counts = [count for count in result.rows.prompt_tokens if count is not None]
        # the tokenizer is one of letters
        assert (
            result.counted_by_server
            and len(counts) == 8
            and sum(counts) / 8 == pytest.approx(60, rel=0.25)
        )
        assert (
            result.environment.engine["engine"] == "transformers"
            and "torch" in result.environment.engine
        )
        assert result.environment.engine["artifact"] == model.digest
    # a zombie has none
    children = [
        one.as_dict(["cmdline"])["cmdline"] or []
        for one in psutil.Process().children(recursive=True)
    ]
    assert not [words for words in children if "tasks.serving.reference_server" in " ".join(words)]


def test_what_decides_the_result_is_in_the_key(tiny_model: Path) -> None:
    model = ModelArtifact(digest="a" * 64, kind="fp16", path=tiny_model)
    one = load_test.cache_key(request_of(model))
    assert one == load_test.cache_key(request_of(model, timeout_minutes=7.0))
    assert one != load_test.cache_key(request_of(model, new_tokens=9))


def test_running_servers_by_url(tmp_path: Path) -> None:
    context = Context(LocalStore(tmp_path / "store"), tmp_path / "events.jsonl")
    with running(ttft=0.01, tpot=0.002) as one, running(ttft=0.02, tpot=0.004) as other:
        config = LoadTest(
            concurrencies=(2,), requests=12, prompt_tokens=16, new_tokens=8, max_lag_ms=500
        )
        found = bench_server(BenchRequest(place=one, config=config), context).results
        load = Load(concurrency=2, requests=6, prompt_tokens=16, new_tokens=8, max_lag_seconds=0.5)
        plan = ComparisonPlan(load=load, rounds=MIN_ROUNDS)
        request = CompareServersRequest(first=one, second=other, plan=plan)
        compared = compare_speed(request, context).comparison
    assert found[0].valid and found[0].target.model == "slow"
    assert compared.outcome == "slower" and compared.ratio("ttft").median == pytest.approx(
        2, rel=0.3
    )
    assert (
        json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])["text"]
        == f"round {MIN_ROUNDS} of {MIN_ROUNDS}"
    )
