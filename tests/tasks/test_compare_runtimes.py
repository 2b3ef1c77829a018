"""Engine runtimes side by side: what is compared, in which order, and what one that fails does to
the others.

Two real runtimes run here, of the same packages: this environment, and an adopted interpreter that
sees them. So their words must be equal to the bit. Their speeds would be about equal on a quiet
machine, which a test's is not: a round here takes milliseconds, and one that lost its core for a
while was told as 18 times slower.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pydantic
import pytest

from artifacts.store.local import LocalStore
from configs.engines import EngineTransformers
from configs.errors import EngineError
from configs.evaluation import Benchmark
from configs.texts import TextFile
from tasks.compare_runtimes import (
    CompareRuntimesRequest,
    CompareRuntimesResult,
    RuntimeFigures,
    compare_runtimes,
    ratio,
)
from tasks.runner import runtime_probe, runtimes
from tasks.runner.step import Context
from tests.support.interpreters import another_python
from tests.support.processes import children

TEXT = "\n\n".join(
    [
        "The with statement wraps the execution of a block.",
        "x",
        "A list is a mutable sequence of objects, and a tuple is not.",
        "Read every day, practice speaking, and write short essays about what was read and spoken. "
        * 4,
    ]
)


class Noting(Context):
    """A context that remembers who was at work, and keeps the engines' logs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(LocalStore(folder / "store"))
        self.folder, self.heard, self.logged = folder, list[tuple[float, str]](), list[str]()

    def progress(self, fraction: float, text: str) -> None:
        self.heard.append((fraction, text))

    def scratch(self, name: str) -> Path | None:
        return self.folder / name

    def log(self, text: str) -> None:
        self.logged.append(text)

    @property
    def turns(self) -> str:
        """The first letters of those who were at work, in order."""
        return "".join(text[0] for _, text in self.heard)

    @property
    def starts(self) -> dict[str, int]:
        """How often each runtime's interpreter was started for an engine; that of this environment
        does not tell."""
        return {
            path.stem.removeprefix("engine-"): len(re.findall("started", path.read_text()))
            for path in self.folder.glob("engine-*.log")
        }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home folder with two more runtimes: `elsewhere`, which works, and `broken`, whose
    interpreter has lost its packages."""
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMFLOWS_HOME", str(folder / "home"))
        # importing torch to adopt them takes seconds; here they soon show whether they have it
        patch.setattr(runtime_probe, "NEEDS", ())
        for name in ("elsewhere", "broken"):
            python = another_python(folder / name)
            [packages] = python.parents[1].glob("lib/python3*/site-packages")
            # each interpreter that starts says so, in the engine's log
            (packages / "sitecustomize.py").write_text(
                "import sys; print('started', file=sys.stderr, flush=True)\n"
            )
            runtimes.adopt(name, python)
        next((folder / "broken").glob("lib/python3*/site-packages/others.pth")).unlink()
        (folder / "text.txt").write_text(TEXT)
        yield folder


def request(
    site: Path, model: Path, names: tuple[str, ...], *, rounds: int = 3, **more: Any
) -> CompareRuntimesRequest:
    return CompareRuntimesRequest.model_validate(
        {
            "documents": 3,
            "longest": 40,
            "prompts": ("hello", "What is a list in Python?"),
            "new_tokens": 24,
            "hardware": {"processor": "a test's"},
            "folder": model,
            "digest": None,
            "engine": EngineTransformers(name="transformers"),
            "runtimes": names,
            "benchmark": Benchmark(
                batch_sizes=(1, 2), prompt_tokens=16, new_tokens=8, rounds=rounds
            ),
            "texts": TextFile(type="file", path=site / "text.txt"),
        }
        | more
    )


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Noting:
    return Noting(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="module")
def result(site: Path, tiny_model: Path, context: Noting) -> CompareRuntimesResult:
    before = children()
    found = compare_runtimes(request(site, tiny_model, ("default", "broken", "elsewhere")), context)
    assert children() == before, "all engines are closed"
    return found


def of(result: CompareRuntimesResult, name: str) -> RuntimeFigures:
    return next(item for item in result.figures if item.runtime == name)


# -- side by side


def test_one_row_each_in_the_order_asked_for(result: CompareRuntimesResult) -> None:
    assert [item.runtime for item in result.figures] == ["default", "broken", "elsewhere"]
    assert result.side_by_side and result.hardware == {"processor": "a test's"}
    assert of(result, "default").versions == of(result, "elsewhere").versions != {}


def test_the_same_code_says_the_same_to_the_bit(result: CompareRuntimesResult) -> None:
    default, elsewhere = of(result, "default"), of(result, "elsewhere")
    assert elsewhere.agreement is not None
    assert elsewhere.agreement.nll_candidate == elsewhere.agreement.nll_parent > 0
    assert (
        elsewhere.agreement.same_top == elsewhere.agreement.tokens > 40
        and elsewhere.agreement.broken == 0
    )
    assert elsewhere.agreement.kl == pytest.approx(0, abs=1e-9)
    assert elsewhere.answers == default.answers and elsewhere.same_answers == 2
    assert elsewhere.answers[0] == "Hello! How can I help you today?"
    assert (
        default.agreement is not None
        and default.agreement.nll_parent == elsewhere.agreement.nll_parent
    )


def test_documents_of_one_token_are_passed_over_and_long_ones_cut(
    result: CompareRuntimesResult, tiny_model: Path
) -> None:
    from tasks.engines.reference import ReferenceEngine

    engine = ReferenceEngine(tiny_model)
    sequences = [engine.encode({"text": text})[:40] for text in TEXT.split("\n\n") if text != "x"]
    scored = engine.score(sequences)
    agreement = of(result, "elsewhere").agreement
    assert agreement is not None and agreement.tokens == sum(len(ids) - 1 for ids in sequences)
    assert agreement.nll_parent == pytest.approx(sum(one.nll.sum() for one in scored))


def test_each_has_a_figure_for_each_round(result: CompareRuntimesResult) -> None:
    for name in ("default", "elsewhere"):
        assert [speed.batch_size for speed in of(result, name).speeds] == [1, 2]
        assert all(
            len(speed.prefill) == len(speed.decode) == 3 and min(speed.prefill + speed.decode) > 0
            for speed in of(result, name).speeds
        )


def test_ratios_are_paired_by_round(result: CompareRuntimesResult) -> None:
    default, elsewhere = of(result, "default"), of(result, "elsewhere")
    assert default.decode_ratio == default.prefill_ratio == ()
    for ratios, kind in ((elsewhere.prefill_ratio, "prefill"), (elsewhere.decode_ratio, "decode")):
        assert [one.batch_size for one in ratios] == [1, 2]
        for one, mine, theirs in zip(ratios, elsewhere.speeds, default.speeds, strict=True):
            paired = [
                a / b for a, b in zip(getattr(mine, kind), getattr(theirs, kind), strict=True)
            ]
            assert one == ratio(one.batch_size, paired)
            assert one.low <= one.median <= one.high


def test_one_that_cannot_start_says_why_and_the_others_go_on(
    result: CompareRuntimesResult, context: Noting
) -> None:
    broken = of(result, "broken")
    assert (
        broken.problem is not None
        and "No module named" in broken.problem
        and broken.problem.startswith("died with exit status 1")
    )
    assert (broken.speeds, broken.agreement, broken.answers, broken.versions) == ((), None, (), {})
    assert [
        text
        for text in context.logged
        if "engine transformers" in text and "engine-broken.log" in text
    ], "the log's place is told"


def test_they_take_turns_forth_and_back(result: CompareRuntimesResult, context: Noting) -> None:
    """Words first; then a warm-up and three rounds, each the other way round; the broken one is
    asked once."""
    assert context.turns == "dbe" + "de" + "ed" + "de" + "ed"
    assert context.starts == {"default": 0, "broken": 1, "elsewhere": 1}, "loaded once"
    fractions = [fraction for fraction, _ in context.heard]
    assert fractions == sorted(fractions) and fractions[0] >= 0 and fractions[-1] <= 1


# -- interleaved, where they do not fit together


def test_what_does_not_fit_together_is_loaded_for_each_turn(
    site: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a GPU that has room for none beside another
    monkeypatch.setattr("tasks.machine.gpus.free_bytes", lambda: [10**9])
    before, context = children(), Noting(tmp_path)
    found = compare_runtimes(request(site, tiny_model, ("elsewhere",), rounds=1), context)
    assert not found.side_by_side and context.turns == "ee" and context.starts == {"elsewhere": 2}
    [item] = found.figures
    assert (
        item.problem is None
        and [len(speed.decode) for speed in item.speeds] == [1, 1]
        and item.same_answers == 2
    )
    assert children() == before


# -- what is refused


def test_if_none_can_start_that_is_an_error(site: Path, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copy(site / "home/runtimes/broken.json", site / "home/runtimes/worse.json")
    with pytest.raises(EngineError, match=r"(?s)broken: died with .*; worse: died with ") as caught:
        compare_runtimes(request(site, tiny_model, ("broken", "worse")), Noting(tmp_path))
    assert caught.value.where == "every runtime" and "lmflows engines ls" in caught.value.hint


@pytest.mark.parametrize(
    ("names", "problem"), [((), "at least 1 item"), (("a", "b", "a"), "a is named more than once")]
)
def test_a_runtime_is_named_once(
    site: Path, tiny_model: Path, names: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(pydantic.ValidationError, match=problem):
        request(site, tiny_model, names)


# -- the ratio's interval


def test_the_median_and_its_interval_are_those_of_a_plain_bootstrap() -> None:
    values = np.random.default_rng(7).normal(1.3, 0.1, 9).tolist()
    found = ratio(16, values)
    assert (found.batch_size, found.median) == (16, sorted(values)[4])
    # the distribution of the resampled median, exactly: it is at most the k-th value if five of
    # nine draws are
    ordered = sorted(values)
    below = [
        sum(
            math.comb(9, hits) * ((k + 1) / 9) ** hits * (1 - (k + 1) / 9) ** (9 - hits)
            for hits in range(5, 10)
        )
        for k in range(9)
    ]
    low = ordered[next(k for k, share in enumerate(below) if share > 0.025)]
    high = ordered[next(k for k, share in enumerate(below) if share > 0.975)]
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_interval_is_the_same_again_contains_the_median_and_shrinks() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for count in (5, 30, 200, 2000):
        values = rng.normal(1.0, 0.05, count).tolist()
        found = ratio(1, values)
        assert found == ratio(1, values) and found.low <= found.median <= found.high
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True) and widths[-1] < 0.01 < 0.03 < widths[0]


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of a median of nine, a percentile bootstrap of 95 % covers the true one in about 95 of 100
    experiments."""
    rng = np.random.default_rng(1)
    covered = sum(
        found.low <= 1.0 <= found.high
        for found in (ratio(1, rng.lognormal(0.0, 0.1, 9).tolist()) for _ in range(200))
    )
    assert 0.9 * 200 <= covered < 200


def test_one_round_has_no_interval() -> None:
    assert ratio(1, [1.25]).model_dump() == {
        "batch_size": 1,
        "median": 1.25,
        "low": 1.25,
        "high": 1.25,
    }


def test_nothing_of_these_tests_still_runs(site: Path) -> None:
    """The last test: no interpreter of the adopted runtimes is alive."""
    alive = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if any(word.startswith(f"{site}/elsewhere/") for word in process.info["cmdline"] or [])
    ]
    assert alive == []
