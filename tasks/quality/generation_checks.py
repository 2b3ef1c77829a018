"""Generation checks: damage that perplexity does not show. A model may score held-out text well and
still, once it speaks for itself, repeat itself without end, say nothing, slip into another script,
call functions wrongly, or be fed another chat template.

`ask_probes` collects what a model answers, `check` sets a candidate's answers beside its parent's.
The candidate fails only where its parent does better: a parent that loops on a prompt is no
evidence against its candidate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from artifacts.records.checks import CheckResult, Example, ProbeAnswer, ProbeAnswers, Rendering
from configs.errors import EngineCrashed
from tasks.engines.protocol import Engine, Generation
from tasks.quality.answer_text import MIXED, calls_well, has_keys, repeats, script
from tasks.quality.mcnemar import mcnemar

Saw = Callable[[float, str], None]
Messages = Sequence[Mapping[str, str]]

# In the order of how many are asked; each is to be answered in its own script.
PROBE_PROMPTS = (
    "请简单介绍一下北京这座城市。",
    "Explain in two sentences why the sky is blue.",
    "Расскажи коротко, зачем людям нужен сон.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "日本の四季について短く説明してください。",
    "ما هي عاصمة فرنسا؟ أجب بجملة كاملة.",
    "한국의 전통 음식을 짧게 소개해 주세요.",
)
TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The current weather in a city.",
            "parameters": {
                "type": "object",
                "additionalProperties": False,
                "required": ["city"],
                "properties": {
                    "city": {"type": "string", "description": "name of the city"},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                },
            },
        },
    },
)
TOOL_PROMPTS = ("What is the weather in Paris right now?",)
JSON_KEYS = ("name", "age", "city")
JSON_PROMPTS = (
    (
        'Give me a JSON object with the keys "name", "age" and "city" for a made-up person. Answer'
        " with the JSON only."
    ),
)
SHAPES: Mapping[str, Messages] = {
    "one question": [{"role": "user", "content": "hello"}],
    "instructions and a question": [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "hello"},
    ],
    "several turns": [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": "Say it in Chinese: 你好"},
    ],
}
WITH_TOOLS = "functions and a question"

ALPHA = 0.05
TOLERATED_SHARE = 0.1
SHOWN, LONGEST = 3, 300  # examples, characters of each text


# -- asking


def ask_probes(
    engine: Engine,
    *,
    prompts: Sequence[str] = PROBE_PROMPTS[:4],
    new_tokens: int = 64,
    asked: Sequence[ProbeAnswer] = (),
    saw: Saw,
) -> ProbeAnswers:
    """Ask an engine the probes: one batch of free questions, requests for JSON, and for a function
    call if the template offers functions.

    Args:
        prompts: free questions. 64 tokens on two CPU cores take a model of 135M parameters 4
            seconds.
        new_tokens: the limit of an answer; below 48 few loops have closed.
        asked: answers that the caller has already, to be judged with the others.
        saw: hears the share that is done, 0 to 1, and what that is.
    """
    tools = TOOLS if offers(engine, TOOLS) else ()
    saw(0.05, "rendered conversations")
    chats: list[tuple[str, Sequence[Mapping[str, Any]]]] = [
        *((prompt, ()) for prompt in (*prompts, *JSON_PROMPTS)),
        *((prompt, tools) for prompt in TOOL_PROMPTS if tools),
    ]
    ids = [
        engine.prompt_ids([{"role": "user", "content": prompt}], offered)
        for prompt, offered in chats
    ]
    saw(0.1, f"asking {len(ids)} probes")
    answers = [
        probe_answer(prompt, answer)
        for (prompt, _), answer in zip(chats, engine.generate(ids, new_tokens), strict=True)
    ]
    saw(1.0, f"asked {len(ids)} probes")
    count, behind = len(prompts), len(prompts) + len(JSON_PROMPTS)
    return ProbeAnswers(
        new_tokens=new_tokens,
        free=(*asked, *answers[:count]),
        renderings=_renderings(engine, tools),
        tools=tuple(answers[behind:]),
        json_objects=tuple(answers[count:behind]),
    )


def probe_answer(prompt: str, answer: Generation) -> ProbeAnswer:
    """What is kept of an engine's answer to a prompt."""
    return ProbeAnswer(
        prompt=prompt, text=answer.text, tokens=answer.tokens, ended=answer.finish_reason == "stop"
    )


def offers(engine: Engine, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the chat template shows functions to the model: the prompt is another one with them,
    and another one again if they have other names."""
    renamed = copy.deepcopy(list(tools))
    for tool in renamed:
        tool["function"]["name"] += "_here"
    without, given, other = (
        _render(engine, "", SHAPES["one question"], offered) for offered in ((), tools, renamed)
    )
    return not given.refused and not other.refused and without.ids != given.ids != other.ids


def _renderings(engine: Engine, tools: Sequence[Mapping[str, Any]]) -> tuple[Rendering, ...]:
    found = [_render(engine, shape, messages, ()) for shape, messages in SHAPES.items()]
    return (
        *found,
        *(
            [_render(engine, WITH_TOOLS, SHAPES["instructions and a question"], tools)]
            if tools
            else []
        ),
    )


def _render(
    engine: Engine, shape: str, messages: Messages, tools: Sequence[Mapping[str, Any]]
) -> Rendering:
    try:
        return Rendering(shape=shape, ids=tuple(engine.prompt_ids(messages, tools)))
    except EngineCrashed:
        raise
    except Exception as error:
        # templates raise what their authors chose, for a role they do not know for example
        return Rendering(
            shape=shape, refused=(str(error).splitlines() or [type(error).__name__])[0]
        )


# -- judging


def check(parent: ProbeAnswers, candidate: ProbeAnswers) -> tuple[CheckResult, ...]:
    """All checks of a candidate's answers beside its parent's: template, empty, repetition, script,
    function call, JSON.

    Raises:
        ValueError: the two were asked different questions, or within different limits.
    """
    if parent.new_tokens != candidate.new_tokens or any(
        [one.prompt for one in left] != [one.prompt for one in right]
        for left, right in (
            (parent.free, candidate.free),
            (parent.json_objects, candidate.json_objects),
        )
    ):
        raise ValueError("parent and candidate were asked different probes")
    return (
        _same_template(parent, candidate),
        *check_answers(parent.free, candidate.free),
        _calls(parent, candidate),
        _ability(
            "JSON object",
            parent.json_objects,
            candidate.json_objects,
            lambda text: has_keys(text, JSON_KEYS),
            f"an object with the keys {', '.join(JSON_KEYS)}",
        ),
    )


def check_answers(
    parent: Sequence[ProbeAnswer], candidate: Sequence[ProbeAnswer]
) -> tuple[CheckResult, ...]:
    """The checks of free answers to the same prompts: empty answers, endless repetition, the
    script.

    One new empty answer fails: to end at once, the end token must have overtaken every word, which
    no rounding error does to an answer. Loops and scripts of small models flip both ways by chance,
    so there one more than before is tolerated, and beyond that as many as are neither significant
    (one-sided exact McNemar test, 5 %) nor a tenth of the prompts.
    """
    pairs = list(zip(parent, candidate, strict=True))
    empty = [(_is_empty(one), _is_empty(other)) for one, other in pairs]
    loops = [
        (repeats(one.text, one.ended), repeats(other.text, other.ended)) for one, other in pairs
    ]
    scripts = {
        number: found
        for number, (one, other) in enumerate(pairs)
        if (found := _wrong_script(one, other)) is not None
    }
    return (
        _result("empty answers", pairs, empty, 0),
        _result("endless repetition", pairs, loops, None),
        _result(
            "script of the answers",
            [pairs[number] for number in scripts],
            list(scripts.values()),
            None,
        ),
    )


def _is_empty(answer: ProbeAnswer) -> bool:
    return not answer.text.strip()


def _wrong_script(parent: ProbeAnswer, candidate: ProbeAnswer) -> tuple[bool, bool] | None:
    """Whether each of the two is in a wrong script; None if one of the texts is too short to say.

    Right are the prompt's script, and for the candidate also its parent's: a prompt may ask for a
    translation.
    """
    asked, before, after = script(parent.prompt), script(parent.text), script(candidate.text)
    if before is None or after is None:
        return None
    right = asked or before
    if before not in (right, MIXED) and after not in (right, before):
        return False, True  # what the parent does may be what was asked for; a third script is not
    return before != right, after != right


def _same_template(parent: ProbeAnswers, candidate: ProbeAnswers) -> CheckResult:
    left, right = (
        {one.shape: one for one in answers.renderings} for answers in (parent, candidate)
    )
    shapes = list(dict.fromkeys([*left, *right]))
    changed = [
        shape
        for shape in shapes
        if shape not in left or shape not in right or left[shape].ids != right[shape].ids
    ]
    refused = [shape for shape in changed if shape in right and right[shape].refused]
    why = (
        f"{len(shapes)} shapes of conversation give the same tokens"
        if not changed
        else (f"other tokens than its parent's for: {'; '.join(changed)}")
        + "".join(f"; it refuses {shape}: {right[shape].refused}" for shape in refused)
    )
    return CheckResult(
        name="chat template",
        n=len(shapes),
        parent_failures=sum(bool(one.refused) for one in left.values()),
        candidate_failures=len(changed),
        new_failures=len(changed),
        passed=not changed if shapes else None,
        why=why,
    )


def _calls(parent: ProbeAnswers, candidate: ProbeAnswers) -> CheckResult:
    name = "function call"
    if not parent.tools:
        return _not_applicable(
            name, 0, "the parent's chat template does not offer functions to the model"
        )
    if not candidate.tools:
        return CheckResult(
            name=name,
            n=len(parent.tools),
            parent_failures=0,
            candidate_failures=len(parent.tools),
            passed=False,
            new_failures=len(parent.tools),
            why="the candidate's chat template does not offer functions, its parent's does",
        )
    return _ability(
        name,
        parent.tools,
        candidate.tools,
        lambda text: calls_well(text, TOOLS),
        "a call with arguments that fit the JSON schema",
    )


def _ability(
    name: str,
    parent: Sequence[ProbeAnswer],
    candidate: Sequence[ProbeAnswer],
    well: Callable[[str], bool],
    what: str,
) -> CheckResult:
    """A check of what not every model can do: the parent's failure makes it not applicable, the
    candidate's fails it."""
    pairs = list(zip(parent, candidate, strict=True))
    found = [(not well(one.text), not well(other.text)) for one, other in pairs]
    if all(before for before, _ in found):
        return _not_applicable(
            name,
            len(pairs),
            f"the parent does not give {what} either",
            candidate_failures=sum(after for _, after in found),
        )
    return _result(name, pairs, found, 0)


def _not_applicable(name: str, n: int, why: str, *, candidate_failures: int = 0) -> CheckResult:
    return CheckResult(
        name=name,
        n=n,
        parent_failures=n,
        candidate_failures=candidate_failures,
        new_failures=0,
        passed=None,
        why=why,
    )


def _result(
    name: str,
    pairs: Sequence[tuple[ProbeAnswer, ProbeAnswer]],
    found: Sequence[tuple[bool, bool]],
    tolerated: int | None,
) -> CheckResult:
    """The decision about pairs of (parent fails, candidate fails): up to `tolerated` new failures,
    or None for the rule of chance."""
    new = [number for number, (before, after) in enumerate(found) if after and not before]
    mended = sum(before and not after for before, after in found)
    passed: bool | None = (
        len(new) <= tolerated
        if tolerated is not None
        else _may_be_chance(len(new), mended, len(found))
    )
    figures = f"{len(new)} new, {mended} mended of {len(found)}"
    if not found:
        passed, figures = None, "no answer could be judged"
    examples = [
        Example(
            prompt=pairs[number][0].prompt[:LONGEST],
            parent=pairs[number][0].text[:LONGEST],
            candidate=pairs[number][1].text[:LONGEST],
        )
        for number in new[:SHOWN]
    ]
    return CheckResult(
        name=name,
        n=len(found),
        parent_failures=sum(before for before, _ in found),
        examples=tuple(examples),
        passed=passed,
        candidate_failures=sum(after for _, after in found),
        new_failures=len(new),
        why=figures,
    )


def _may_be_chance(new: int, mended: int, n: int) -> bool:
    more = new - mended
    return more <= 1 or (more <= TOLERATED_SHARE * n and mcnemar(new, mended)[1] > ALPHA)
