"""Speed: the rates are tokens over the engine's own time, the first round warms up, and no token
may be missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from artifacts.records.measurement import Scores
from configs.errors import EngineError
from configs.evaluation import Benchmark
from tasks.engines.protocol import Engine, Generation
from tasks.engines.speed import DECODE_PROMPT, one_round, speeds

CONFIG = Benchmark(batch_sizes=(1, 4), prompt_tokens=40, new_tokens=8, rounds=2)


@dataclass
class Call:
    prompts: list[list[int]]
    new_tokens: int
    exact: bool
    seconds: float


class Clock:
    """Stands in for the module `time`: it moves only when an engine says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@dataclass
class Clockwork:
    """An engine with a clock: a millisecond for 10 prompt tokens, and one for each new token of the
    batch.

    It warms up: the first call of each shape takes 60 ms more. `most` limits what it generates of
    each answer but the first.
    """

    clock: Clock
    vocabulary: int = 50
    load_seconds: float = 0.0
    most: int = 1_000_000
    calls: list[Call] = field(default_factory=list)

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, exact: bool = False
    ) -> list[Generation]:
        asked = [list(prompt) for prompt in prompts]
        cold = (len(asked), max_new_tokens) not in {
            (len(call.prompts), call.new_tokens) for call in self.calls
        }
        seconds = sum(map(len, asked)) / 10_000 + max_new_tokens / 1000 + 0.06 * cold
        self.clock.now += seconds
        self.calls.append(Call(asked, max_new_tokens, exact, seconds))
        others = min(max_new_tokens, self.most)
        return [
            Generation("", tokens, "length", None, 0.0)
            for tokens in [max_new_tokens] + (len(asked) - 1) * [others]
        ]

    def prompt_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        raise AssertionError("no chat template comes into it")

    def encode(self, record: Mapping[str, Any]) -> list[int]:
        raise AssertionError("no tokenizer comes into it")

    def score(
        self, sequences: Sequence[Sequence[int]], at: Sequence[npt.NDArray[np.int32]] | None = None
    ) -> list[Scores]:
        raise AssertionError("nothing is scored")

    def close(self) -> None:
        raise AssertionError("whoever has opened it closes it")


@pytest.fixture(scope="module")
def clockwork() -> Iterator[Clockwork]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.engines.speed.time", clock := Clock())
        yield Clockwork(clock)


@pytest.fixture(scope="module")
def heard() -> list[tuple[float, str]]:
    return []


@pytest.fixture(scope="module")
def figures(clockwork: Clockwork, heard: list[tuple[float, str]]) -> dict[int, Any]:
    engine: Engine = clockwork
    return {
        speed.batch_size: speed
        for speed in speeds(engine, CONFIG, lambda done, text: heard.append((done, text)))
    }


def test_the_rounds_go_through_the_batch_sizes_in_turn(
    clockwork: Clockwork, figures: dict[int, Any]
) -> None:
    one_turn = [(1, 40, 1), (1, DECODE_PROMPT, 8), (4, 40, 1), (4, DECODE_PROMPT, 8)]
    assert [
        (len(call.prompts), len(call.prompts[0]), call.new_tokens) for call in clockwork.calls
    ] == 3 * one_turn
    assert all(
        call.exact and len({len(prompt) for prompt in call.prompts}) == 1
        for call in clockwork.calls
    )


def test_rates_are_the_batchs_tokens_over_the_engines_time(
    clockwork: Clockwork, figures: dict[int, Any]
) -> None:
    """The first turn, the warm-up, is none of the figures."""
    assert list(figures) == [1, 4]
    for size, place in ((1, 0), (4, 2)):
        counted = [clockwork.calls[4 * turn + place :][:2] for turn in (1, 2)]
        assert figures[size].prefill == pytest.approx(
            [size * 40 / prefill.seconds for prefill, _ in counted]
        )
        assert figures[size].decode == pytest.approx(
            [size * 8 / decode.seconds for _, decode in counted]
        )
        assert figures[size].prefill == pytest.approx(2 * [size * 40 / (size * 0.004 + 0.001)])
        assert figures[size].decode == pytest.approx(2 * [size * 8 / (size * 0.0016 + 0.008)])
    assert figures[4].decode_median == pytest.approx(4 * 8 / 0.0144)


def test_the_warm_up_is_not_counted(clockwork: Clockwork, figures: dict[int, Any]) -> None:
    assert (
        min(call.seconds for call in clockwork.calls[:4])
        > 0.06
        > max(call.seconds for call in clockwork.calls[4:])
    )
    assert (
        min(figures[1].prefill) > 40 / clockwork.calls[0].seconds
        and min(figures[4].decode) > 32 / clockwork.calls[3].seconds
    )


def test_prompts_are_new_in_every_round_and_the_same_for_every_engine(
    clockwork: Clockwork, figures: dict[int, Any]
) -> None:
    prompts = [tuple(prompt) for call in clockwork.calls for prompt in call.prompts]
    assert len(set(prompts)) == len(prompts), "nothing can come from a prefix cache"
    assert {token for prompt in prompts for token in prompt} == set(range(50)), (
        "all of the vocabulary, and nothing else"
    )
    other = Clockwork(clockwork.clock)
    speeds(other, CONFIG, lambda *_: None)
    assert [call.prompts for call in other.calls] == [call.prompts for call in clockwork.calls]


def test_progress_tells_the_batch_and_the_round(
    figures: dict[int, Any], heard: list[tuple[float, str]]
) -> None:
    assert [text for _, text in heard] == [
        "batch 1, warming up",
        "batch 4, warming up",
        "batch 1, round 1/2",
        "batch 4, round 1/2",
        "batch 1, round 2/2",
        "batch 4, round 2/2",
    ]
    assert [done for done, _ in heard] == pytest.approx([number / 6 for number in range(6)])


def test_an_answer_that_is_too_short_is_an_error(clockwork: Clockwork) -> None:
    """One of the batch is enough: a rate of tokens that were not generated would flatter."""
    with pytest.raises(
        EngineError, match=r"generated \[5, 8\] tokens where 8 were asked for"
    ) as caught:
        one_round(Clockwork(clockwork.clock, most=5), CONFIG, 4, seed=1)
    assert "session_len" in caught.value.hint
    assert one_round(Clockwork(clockwork.clock, most=5), CONFIG, 1, seed=1)[1] > 0, (
        "with a batch of one nothing is missing"
    )
