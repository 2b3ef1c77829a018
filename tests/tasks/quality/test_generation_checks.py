"""Generation checks: each catches what was planted for it, in a real model where weights or a
template can carry it, and says nothing where parent and candidate are alike."""

from __future__ import annotations

import json
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
from configs.engines import EngineTransformers
from tasks.engines.process import EngineProcess
from tasks.engines.protocol import EngineSpec
from tasks.engines.reference import ReferenceEngine
from tasks.quality.answer_text import (
    MIXED,
    calls_well,
    function_calls,
    has_keys,
    periodic_tail,
    repeats,
    script,
)
from tasks.quality.generation_checks import (
    JSON_PROMPTS,
    PROBE_PROMPTS,
    SHAPES,
    TOOL_PROMPTS,
    TOOLS,
    WITH_TOOLS,
    ask_probes,
    check,
    check_answers,
    offers,
)
from tests.support.tiny_model import END, TEMPLATE

PROMPTS = (
    "hello",
    "What is a list in Python?",
    "please provide three suggestions about ielts' preparation",
)
WITH_FUNCTIONS = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor"
    " %}<|im_end|>\n{% endif %}" + TEMPLATE
)
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
OBJECT = '{"name": "Ann", "age": 30, "city": "Rome"}'


def nobody(_done: float, _text: str) -> None:
    pass


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> ReferenceEngine:
    return ReferenceEngine(tiny_model)


@pytest.fixture(scope="module")
def parent(engine: ReferenceEngine) -> ProbeAnswers:
    return ask_probes(engine, prompts=PROMPTS, new_tokens=48, saw=nobody)


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
        return ask_probes(ReferenceEngine(folder), prompts=PROMPTS, new_tokens=48, saw=nobody)

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


def answer(text: str, *, ended: bool = True, prompt: str = "hello") -> ProbeAnswer:
    return ProbeAnswer(prompt=prompt, text=text, tokens=max(1, len(text) // 4), ended=ended)


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


# -- planted in a real model


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


def test_whether_a_template_offers_functions(
    engine: ReferenceEngine, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not offers(engine, TOOLS)
    monkeypatch.setattr(engine.tokenizer, "chat_template", WITH_FUNCTIONS)
    assert offers(engine, TOOLS) and "get_weather" in engine.tokenizer.decode(
        engine.prompt_ids([{"role": "user", "content": "hello"}], TOOLS)
    )
    monkeypatch.setattr(
        engine.tokenizer, "chat_template", "{% if tools %}You have functions.{% endif %}" + TEMPLATE
    )
    assert not offers(engine, TOOLS), "it does not say which"


def test_an_engine_in_its_own_process_answers_the_same(
    tiny_model: Path, tmp_path: Path, parent: ProbeAnswers
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(
        WITH_FUNCTIONS.replace(
            "{% for m in messages %}",
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{%"
            " endif %}{% for m in messages %}",
        )
    )
    with EngineProcess(
        EngineSpec(folder=folder, engine=EngineTransformers(name="transformers"))
    ) as there:
        found = ask_probes(there, prompts=PROMPTS[:1], new_tokens=16, saw=nobody)
    here = ask_probes(ReferenceEngine(folder), prompts=PROMPTS[:1], new_tokens=16, saw=nobody)
    assert (found.free, found.tools, found.json_objects) == (
        here.free,
        here.tools,
        here.json_objects,
    ) and len(found.tools) == 1
    for one, other in zip(found.renderings, here.renderings, strict=True):
        assert (one.shape, one.ids, bool(one.refused)) == (
            other.shape,
            other.ids,
            bool(other.refused),
        )
    assert [one.shape for one in found.renderings if one.refused] == [
        "instructions and a question",
        WITH_TOOLS,
    ]
    assert "no system role here" in found.renderings[1].refused
    assert ProbeAnswers.model_validate_json(found.model_dump_json()) == found


def test_the_callers_own_answers_are_judged_with_the_rest(engine: ReferenceEngine) -> None:
    said: list[float] = []
    own = answer("Hello! How can I help?", prompt="hi")
    found = ask_probes(
        engine,
        prompts=PROMPTS[:1],
        new_tokens=4,
        asked=[own],
        saw=lambda done, _: said.append(done),
    )
    assert (
        [one.prompt for one in found.free] == ["hi", "hello"]
        and found.free[0] == own
        and said[-1] == 1.0
    )
    with pytest.raises(ValueError, match="different probes"):
        check(
            found, ask_probes(engine, prompts=PROMPTS[1:2], new_tokens=4, asked=[own], saw=nobody)
        )


# -- planted in answers

CHINESE = "\u5317\u4eac\u662f\u4e2d\u56fd\u7684\u9996\u90fd\uff0c\u5386\u53f2\u60a0\u4e45\u3002"
RUSSIAN = (
    "\u0421\u043e\u043d \u043d\u0443\u0436\u0435\u043d, \u0447\u0442\u043e\u0431\u044b"
    " \u043e\u0442\u0434\u043e\u0445\u043d\u0443\u0442\u044c."
)
JAPANESE = (
    "\u65e5\u672c\u306b\u306f\u56db\u3064\u306e\u5b63\u7bc0\u304c\u3042\u308a\u307e\u3059\u3002"
)
ENGLISH = "Beijing is the capital of China and has a long history."


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


# -- one answer


@pytest.mark.parametrize(
    "text",
    [
        "I like it. " * 12,
        "A start that is its own. " + "and then he said that " * 12,
        "aaaaaaaa" * 8,
        "!" * 40,
        "1. 2. 3. 4. 5. 6. 7. 8. 9. 10. 11. 12.",
        "\u54c8" * 20,
        "\u5317\u4eac\u662f\u4e00\u5bb6\u7f8e\u4e3d\u7684\u57ce\u5e02\uff0c" * 5,
        "\u0627\u0644\u062a\u064a\u0646\u064a\u0629 " * 10,
        "Step 1: press it.\nStep 2: press it.\nStep 3: press it.\nStep 4: press it.",
        "One two three four five six. " * 6 + "One two thr",
    ],
)
def test_endless_repetition_is_seen(text: str) -> None:
    assert repeats(text, ended=False) and not repeats(text, ended=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello!",
        ENGLISH,
        CHINESE,
        "no no no",
        (
            "A list in Python is a collection of items that can be processed using the list"
            " function. Here is a list of"
        ),
        "| name | age |\n|------|-----|\n| Ann | 30 |\n| Bob | 31 |\n| Eve | 25 |\n| Joe | 44 |",
        (
            "def fib(n):\n    if n <= 0:\n        return 0\n    elif n == 1:\n        return 1\n   "
            " return fib(n - 1) + fib(n - 2)\n\nprint(fib(1"
        ),
        (
            "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily,"
            " life is but a dream."
        ),
    ],
)
def test_what_was_cut_by_the_limit_alone_is_no_loop(text: str) -> None:
    assert not repeats(text, ended=False)


@given(st.lists(st.sampled_from("ab"), max_size=40))
def test_the_periodic_tail_is_the_definitions(units: list[str]) -> None:
    expected = max(
        (
            length
            for length in range(1, len(units) + 1)
            for period in range(1, length // 3 + 1)
            if all(
                units[-place] == units[-place - period] for place in range(1, length - period + 1)
            )
        ),
        default=0,
    )
    assert periodic_tail(units) == expected


@given(st.text(min_size=1, max_size=12).filter(lambda text: text.strip()), st.integers(30, 60))
def test_any_text_said_often_enough_is_a_loop(text: str, times: int) -> None:
    assert repeats("A start of its own: " + (text + " ") * times, ended=False)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (ENGLISH, "Latin"),
        (CHINESE, "Han"),
        (RUSSIAN, "Cyrillic"),
        (JAPANESE, "Japanese"),
        ("\ud55c\uad6d\uc758 \uc804\ud1b5 \uc74c\uc2dd", "Hangul"),
        (
            (
                "\u0645\u0627 \u0647\u064a \u0639\u0627\u0635\u0645\u0629"
                " \u0641\u0631\u0646\u0633\u0627\u061f"
            ),
            "Arabic",
        ),
        ("", None),
        ("42 + 1 = 43", None),
        ("ok", None),
        (CHINESE + " Python list comprehension", "Han"),
        ("\uff28\uff45\uff4c\uff4c\uff4f one two three", "Latin"),
        (CHINESE + "```python\n" + "print(word) " * 30 + "```", "Han"),
        (CHINESE + "```\n" + "print(word) " * 30, "Han"),
        ("one two \u0441\u043e\u043d \u043c\u0438\u0440 \u5317\u4eac", MIXED),
    ],
)
def test_the_script_of_a_text(text: str, found: str | None) -> None:
    assert script(text) == found


def test_each_probe_is_in_a_script_of_its_own_but_for_english_and_code() -> None:
    assert [script(prompt) for prompt in PROBE_PROMPTS] == [
        "Han",
        "Latin",
        "Cyrillic",
        "Latin",
        "Japanese",
        "Arabic",
        "Hangul",
    ]


ARGUMENTS = {"city": "Paris", "unit": "celsius"}
BODY = json.dumps(ARGUMENTS)


@pytest.mark.parametrize(
    "text",
    [
        CALL,
        f'<tool_call>{{"name": "get_weather", "arguments": {BODY}}}</tool_call>',
        f'{{"name": "get_weather", "parameters": {BODY}}}',
        f'<|python_tag|>{{"type": "function", "name": "get_weather", "parameters": {BODY}}}',
        (
            'I look it up.<|action_start|><|plugin|>\n{"name": "get_weather", "parameters":'
            f" {BODY}}}<|action_end|>"
        ),
        f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {BODY}}}]',
        f'[{{"name": "get_weather", "arguments": {BODY}}}]',
        f"[TOOL_CALLS]get_weather[ARGS]{BODY}",
        f"get_weather{BODY}",
        f'{{"type": "function", "function": {{"name": "get_weather", "arguments": {BODY}}}}}',
        '{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}',
        f"<\uff5ctool\u2581call\u2581begin\uff5c>function<\uff5ctool\u2581sep\uff5c>get_weather\n```json\n{BODY}\n```<\uff5ctool\u2581call\u2581end\uff5c>",
        f"functions.get_weather:0<|tool_call_argument_begin|>{BODY}",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>",
        '[get_weather(city="Paris", unit="celsius")]',
    ],
)
def test_function_calls_of_all_families_are_read(text: str) -> None:
    [call] = function_calls(text, ["get_weather"])
    assert (
        call.name == "get_weather" and call.arguments["city"] == "Paris" and calls_well(text, TOOLS)
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "get_weather",
        "I would call get_weather for Paris.",
        '{"city": "Paris"}',
        json.dumps(TOOLS[0]),
        json.dumps(TOOLS[0]["function"]),
        '{"name": "get_weather", "arguments": {"city": 3}}',
        '{"name": "get_weather", "arguments": {"city": "Paris", "unit": "kelvin"}}',
        '{"name": "get_weather", "arguments": [1]}',
        '{"name": "get_weather", "arguments": "{"}',
        'get_weather("Paris")',
        "get_weather(city=Paris)",
        CALL + '{"name": "get_time", "arguments": {}}',
        "{" * 5000,
    ],
)
def test_what_is_no_good_call(text: str) -> None:
    assert not calls_well(text, TOOLS)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (OBJECT, True),
        (f"Here it is:\n```json\n{OBJECT}\n```\nEnjoy!", True),
        ('{"a": 1}', False),
        ("{'name': 1, 'age': 2, 'city': 3}", False),
        (f"[{OBJECT}]", False),
        ("", False),
    ],
)
def test_json_with_its_keys(text: str, good: bool) -> None:
    assert has_keys(text, ("name", "age", "city")) is good


@given(st.text(max_size=80))
def test_nothing_that_a_model_can_say_breaks_a_judge(text: str) -> None:
    script(text), repeats(text, ended=False), calls_well(text, TOOLS), has_keys(text, ("name",))


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
