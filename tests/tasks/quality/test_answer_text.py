"""What is read in one answer: loops, scripts, function calls, JSON, and what makes no
other answer."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.quality.answer_text import (
    MIXED,
    calls_well,
    function_calls,
    has_keys,
    normalized,
    periodic_tail,
    repeats,
    script,
)
from tasks.quality.probes import TOOLS
from tests.support.answers import CALL, CHINESE, ENGLISH, JAPANESE, OBJECT, RUSSIAN

ARGUMENTS = {"city": "Paris", "unit": "celsius"}
BODY = json.dumps(ARGUMENTS)


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
def test_nothing_that_a_model_can_say_breaks_its_reading(text: str) -> None:
    script(text), repeats(text, ended=False), calls_well(text, TOOLS), has_keys(text, ("name",))


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("Paris.", "paris", True),
        ("  the  \u201cBig\u201d Apple! ", "The big apple", True),
        ("\uff21\uff22\uff23", "abc", True),
        ("$1,000", "1000", True),
        ("1,000,000.", "1000000", True),
        ("3.5", "35", False),
        ("-5", "5", False),
        ("-5", "\u22125", True),
        (".5", "5", False),
        ("1-5", "15", False),
        ("10:30", "1030", False),
        ("1/2", "12", False),
        ("\u5317\u4eac\u3002", "\u5317\u4eac", True),
        ("a_b", "a b", True),
        ("2, 3", "23", False),
        ("x=-5", "x=5", False),
        ("42.", "42", True),
    ],
)
def test_what_makes_no_other_answer(left: str, right: str, same: bool) -> None:
    assert (normalized(left) == normalized(right)) is same


@given(st.text())
def test_normalizing_again_changes_nothing(text: str) -> None:
    once = normalized(text)
    assert once == once.strip() and normalized(once) == once
