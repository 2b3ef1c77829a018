"""Generation checks: each catches what was planted for it, in a real model where weights or a
template can carry it, and says nothing where parent and candidate are alike."""

# covers artifacts/records/checks.py

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from artifacts.records.checks import CheckResult, ProbeAnswer, ProbeAnswers, Rendering
from configs.callbacks import no_progress
from tasks.engines.reference import ReferenceEngine
from tasks.quality.generation_checks import check, check_answers
from tasks.quality.probes import (
    JSON_PROMPTS,
    PROBE_PROMPTS,
    SHAPES,
    TOOL_PROMPTS,
    WITH_TOOLS,
    ask_probes,
)
from tests.support.answers import (
    CALL,
    CHINESE,
    ENGLISH,
    OBJECT,
    PROMPTS,
    RUSSIAN,
    WITH_FUNCTIONS,
    answer,
)
from tests.support.tiny_model import END, TEMPLATE


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> ReferenceEngine:
    return ReferenceEngine(tiny_model)


@pytest.fixture(scope="module")
def parent(engine: ReferenceEngine) -> ProbeAnswers:
    return ask_probes(engine, prompts=PROMPTS, new_tokens=48, progress=no_progress)


@pytest.fixture
def planted(tiny_model: Path, tmp_path: Path) -> Callable[..., ProbeAnswers]:
    """The answers of a copy of the model with something changed."""

    def ask(
        *,
        weights: Callable[[dict[str, torch.Tensor]], object] | None = None,
        template: str | None = None,
    ) -> ProbeAnswers:
        folder = tmp_path / "planted"
        shutil.copytree(tiny_model, folder)
        if weights:
            tensors = load_file(folder / "model.safetensors")
            weights(tensors)
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        if template:
            (folder / "chat_template.jinja").write_text(template)
        return ask_probes(
            ReferenceEngine(folder), prompts=PROMPTS, new_tokens=48, progress=no_progress
        )

    return ask


def always(engine: ReferenceEngine, *words: str) -> Callable[[dict[str, torch.Tensor]], object]:
    """Weights that say one token whatever they are given: the residual stream is its embedding and
    nothing else."""
    [token] = (
        engine.tokenizer("".join(words)).input_ids
        if words
        else [engine.tokenizer.convert_tokens_to_ids(END)]
    )

    def change(tensors: dict[str, torch.Tensor]) -> None:
        embedding = tensors["model.embed_tokens.weight"]
        for name, tensor in tensors.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                tensor.zero_()
        direction = torch.zeros_like(embedding[0])
        direction[0] = 1.0
        embedding[:] = direction * 0.5
        embedding[token] = direction

    return change


def answers(
    *,
    free: Sequence[ProbeAnswer] = (answer("Hello there, my friend."),),
    tools: Sequence[str] = (CALL,),
    objects: Sequence[str] = (OBJECT,),
    renderings: Mapping[str, Sequence[int]] = {"one question": (1, 2)},
) -> ProbeAnswers:
    return ProbeAnswers(
        new_tokens=64,
        free=tuple(free),
        renderings=tuple(
            Rendering(shape=shape, ids=tuple(ids)) for shape, ids in renderings.items()
        ),
        tools=tuple(
            answer(text, prompt=prompt) for text, prompt in zip(tools, TOOL_PROMPTS, strict=False)
        ),
        json_objects=tuple(
            answer(text, prompt=prompt) for text, prompt in zip(objects, JSON_PROMPTS, strict=False)
        ),
    )


def by_name(results: Sequence[CheckResult]) -> dict[str, CheckResult]:
    return {result.name: result for result in results}


def failed(results: Sequence[CheckResult]) -> set[str]:
    return {result.name for result in results if result.passed is False}


def test_a_model_beside_itself_fails_nothing(parent: ProbeAnswers) -> None:
    results = by_name(check(parent, parent))
    assert list(results) == [
        "chat template",
        "empty answers",
        "endless repetition",
        "script of the answers",
        "function call",
        "JSON object",
    ]
    assert {name: result.passed for name, result in results.items()} == {
        "chat template": True,
        "empty answers": True,
        "endless repetition": True,
        "script of the answers": True,
        "function call": None,
        "JSON object": None,
    }, "a small model that cannot call or write JSON passes nothing of that"
    assert (
        results["endless repetition"].n == 3 and results["endless repetition"].parent_failures == 0
    )
    assert (
        results["function call"].why
        == "the parent's chat template does not offer functions to the model"
    )
    assert "the parent does not give an object" in results["JSON object"].why


def test_endless_repetition_is_caught(
    engine: ReferenceEngine, parent: ProbeAnswers, planted: Callable[..., ProbeAnswers]
) -> None:
    candidate = planted(weights=always(engine, " list"))
    assert candidate.free[0].text == " ".join(["list"] * 48) and not candidate.free[0].ended
    results = check(parent, candidate)
    assert failed(results) == {"endless repetition"}
    found = by_name(results)["endless repetition"]
    assert (found.n, found.parent_failures, found.candidate_failures, found.new_failures) == (
        3,
        0,
        3,
        3,
    )
    assert (
        found.examples[0].prompt == "hello"
        and found.examples[0].parent.startswith("Hello!")
        and "list list" in found.examples[0].candidate
    )


def test_empty_answers_are_caught(
    engine: ReferenceEngine, parent: ProbeAnswers, planted: Callable[..., ProbeAnswers]
) -> None:
    candidate = planted(weights=always(engine))
    assert [one.text for one in candidate.free] == ["", "", ""] and candidate.free[0].ended
    assert failed(check(parent, candidate)) == {"empty answers"}


@pytest.mark.parametrize(
    ("template", "shapes"),
    [
        # a line break less
        (TEMPLATE.replace("<|im_end|>\n{% endfor %}", "<|im_end|>{% endfor %}"), set(SHAPES)),
        (
            TEMPLATE.replace(
                "{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"
            ),
            {"instructions and a question"},
        ),
        (
            TEMPLATE.replace("{% for m in messages %}", "{% for m in messages[-1:] %}"),
            {"instructions and a question", "several turns"},
        ),
        (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{%"
            " endif %}" + TEMPLATE,
            {"instructions and a question"},
        ),
    ],
)
def test_a_changed_template_is_caught(
    parent: ProbeAnswers, planted: Callable[..., ProbeAnswers], template: str, shapes: set[str]
) -> None:
    results = check(parent, planted(template=template))
    found = by_name(results)["chat template"]
    assert found.passed is False and found.new_failures == len(shapes)
    assert all((shape in found.why) == (shape in shapes) for shape in SHAPES)
    assert ("no system role here" in found.why) == ("raise_exception" in template)


def test_a_template_that_loses_the_functions_is_caught(
    planted: Callable[..., ProbeAnswers], parent: ProbeAnswers
) -> None:
    offering = planted(template=WITH_FUNCTIONS)
    assert [one.shape for one in offering.renderings] == [*SHAPES, WITH_TOOLS] and [
        one.prompt for one in offering.tools
    ] == list(TOOL_PROMPTS)
    assert failed(check(offering, parent)) == {"chat template", "function call"}
    assert by_name(check(offering, offering))["function call"].passed is None, (
        "this model cannot call"
    )


def test_another_script_is_caught_where_the_parent_keeps_to_it() -> None:
    prompts = PROBE_PROMPTS[:3]
    before = [
        answer(text, prompt=prompt)
        for text, prompt in zip((CHINESE, ENGLISH, RUSSIAN), prompts, strict=True)
    ]
    english = [answer(ENGLISH, prompt=prompt) for prompt in prompts]
    found = by_name(check_answers(before, english))["script of the answers"]
    assert found.passed is False and (found.n, found.parent_failures, found.new_failures) == (
        3,
        0,
        2,
    )
    assert [example.candidate for example in found.examples] == [ENGLISH, ENGLISH]
    back = by_name(check_answers(english, before))["script of the answers"]
    assert back.passed and (back.parent_failures, back.candidate_failures) == (
        2,
        0,
    ), "better than the parent is no failure"
    one = by_name(check_answers(before, [english[0], *before[1:]]))["script of the answers"]
    assert one.passed and one.new_failures == 1, "one may be chance"


def test_a_translation_is_no_wrong_script() -> None:
    prompt = "Translate into Chinese: Beijing is the capital."
    found = by_name(
        check_answers([answer(CHINESE, prompt=prompt)] * 3, [answer(CHINESE, prompt=prompt)] * 3)
    )["script of the answers"]
    assert found.passed and found.new_failures == 0
    garbage = answer(
        "\u5317\u4eac city \u0433\u043e\u0440\u043e\u0434 \u0645\u062f\u064a\u0646\u0629"
        " \u092d\u093e\u0930\u0924",
        prompt=prompt,
    )
    assert (
        by_name(check_answers([answer(CHINESE, prompt=prompt)] * 3, [garbage] * 3))[
            "script of the answers"
        ].passed
        is False
    )


LOOP = answer("the best of " * 20, ended=False)


FINE = answer("Hello there, my friend.")


@pytest.mark.parametrize(
    ("new", "mended", "alike", "passed"),
    [
        (0, 0, 4, True),
        (1, 0, 3, True),
        (2, 0, 3, False),
        (2, 1, 3, True),
        (3, 1, 4, False),
        (4, 0, 96, True),
        (5, 0, 95, False),
        (20, 15, 65, True),
        (11, 0, 89, False),
        (0, 5, 0, True),
    ],
)
def test_a_loop_more_may_be_chance_and_more_may_not(
    new: int, mended: int, alike: int, passed: bool
) -> None:
    before, after = (
        [FINE] * new + [LOOP] * mended + [FINE] * alike,
        [LOOP] * new + [FINE] * mended + [FINE] * alike,
    )
    found = by_name(check_answers(before, after))["endless repetition"]
    assert (found.passed, found.new_failures, found.n) == (passed, new, new + mended + alike)


def test_a_parent_that_loops_is_no_evidence() -> None:
    results = by_name(check_answers([LOOP] * 5 + [answer("")] * 2, [LOOP] * 5 + [answer("  ")] * 2))
    assert (
        results["endless repetition"].passed
        and results["endless repetition"].candidate_failures == 5
    )
    assert results["empty answers"].passed and results["empty answers"].parent_failures == 2


def test_one_new_empty_answer_fails() -> None:
    assert failed(check_answers([FINE] * 9, [FINE] * 8 + [answer(" \n ")])) == {"empty answers"}


def test_without_answers_nothing_is_passed() -> None:
    assert {result.passed for result in check_answers([], [])} == {None}


@pytest.mark.parametrize(
    "text",
    [
        "The weather in Paris is fine.",
        '<tool_call>{"name": "get_wether", "arguments": {"city": "Paris"}}</tool_call>',
        '<tool_call>{"name": "get_weather", "arguments": {"town": "Paris"}}</tool_call>',
        '<tool_call>{"name": "get_weather", "arguments": {"city": "Par',
    ],
)
def test_a_broken_function_call_is_caught_where_the_parent_calls_well(text: str) -> None:
    results = check(answers(), answers(tools=[text]))
    assert (
        failed(results) == {"function call"}
        and by_name(results)["function call"].examples[0].candidate == text
    )
    assert by_name(check(answers(tools=[text]), answers()))["function call"].passed is None
    assert by_name(check(answers(), answers()))["function call"].passed is True


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Ann, 30, Rome",
        '{"name": "Ann", "age": 30}',
        '{"name": "Ann", "age": 30, "city": ',
        "[1, 2]",
    ],
)
def test_broken_json_is_caught_where_the_parent_writes_it(text: str) -> None:
    results = check(answers(), answers(objects=[text]))
    assert failed(results) == {"JSON object"}
    assert by_name(check(answers(objects=[text]), answers()))["JSON object"].passed is None


def test_long_texts_are_cut_in_examples() -> None:
    results = check_answers(
        [answer("word " * 500 + "end")] * 3, [answer("loop " * 500, ended=False)] * 3
    )
    assert all(
        len(example.candidate) <= 300 and len(example.parent) <= 300
        for result in results
        for example in result.examples
    )


def probes(items: Sequence[tuple[str, bool]]) -> list[ProbeAnswer]:
    return [answer(text, ended=ended) for text, ended in items]


@given(
    st.lists(
        st.tuples(st.sampled_from(["", ENGLISH, CHINESE, "no no " * 30]), st.booleans()),
        max_size=12,
    )
)
def test_no_answers_fail_beside_themselves(items: list[tuple[str, bool]]) -> None:
    found: list[Any] = [*check_answers(probes(items), probes(items))]
    assert not failed(found) and not any(result.new_failures for result in found)
