"""What a model answers when it speaks for itself: the probes of the generation checks.

Questions in several scripts, requests for JSON and for a function call, and what the chat template
makes of conversations of several shapes. `tasks.quality.generation_checks` compares two models'
answers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from artifacts.records.checks import ProbeAnswer, ProbeAnswers, Rendering
from configs.callbacks import Progress
from configs.errors import EngineCrashed
from tasks.engines.protocol import Engine, Generation

Messages = Sequence[Mapping[str, str]]
Tools = Sequence[Mapping[str, Any]]

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


def ask_probes(
    engine: Engine,
    *,
    prompts: Sequence[str] = PROBE_PROMPTS[:4],
    new_tokens: int = 64,
    asked: Sequence[ProbeAnswer] = (),
    progress: Progress,
) -> ProbeAnswers:
    """Ask an engine the probes: one batch of free questions, requests for JSON, and for a function
    call if the template offers functions.

    Args:
        prompts: free questions. 64 tokens on two CPU cores take a model of 135M parameters 4
            seconds.
        new_tokens: the limit of an answer; below 48 few loops have closed.
        asked: answers that the caller has already, to be compared with the others.
    """
    tools = TOOLS if offers(engine, TOOLS) else ()
    progress(0.05, "rendered conversations")
    chats: list[tuple[str, Tools]] = [(prompt, ()) for prompt in (*prompts, *JSON_PROMPTS)]
    if tools:
        chats += [(prompt, tools) for prompt in TOOL_PROMPTS]
    ids = [
        engine.prompt_ids([{"role": "user", "content": prompt}], offered)
        for prompt, offered in chats
    ]
    progress(0.1, f"asking {len(ids)} probes")
    answers = [
        probe_answer(prompt, answer)
        for (prompt, _), answer in zip(chats, engine.generate(ids, new_tokens), strict=True)
    ]
    progress(1.0, f"asked {len(ids)} probes")
    json_begins = len(prompts)
    tools_begin = json_begins + len(JSON_PROMPTS)
    return ProbeAnswers(
        new_tokens=new_tokens,
        free=(*asked, *answers[:json_begins]),
        renderings=_renderings(engine, tools),
        tools=tuple(answers[tools_begin:]),
        json_objects=tuple(answers[json_begins:tools_begin]),
    )


def probe_answer(prompt: str, answer: Generation) -> ProbeAnswer:
    """What is kept of an engine's answer to a prompt."""
    return ProbeAnswer(
        prompt=prompt, text=answer.text, tokens=answer.tokens, ended=answer.finish_reason == "stop"
    )


def offers(engine: Engine, tools: Tools) -> bool:
    """Whether the chat template shows functions to the model: the prompt is another one with them,
    and another one again if they have other names."""
    renamed = copy.deepcopy(list(tools))
    for tool in renamed:
        tool["function"]["name"] += "_here"
    without, given, other = (
        _render(engine, "", SHAPES["one question"], offered) for offered in ((), tools, renamed)
    )
    if given.refused or other.refused:
        return False
    return without.ids != given.ids != other.ids


def _renderings(engine: Engine, tools: Tools) -> tuple[Rendering, ...]:
    found = [_render(engine, shape, messages, ()) for shape, messages in SHAPES.items()]
    if tools:
        found.append(_render(engine, WITH_TOOLS, SHAPES["instructions and a question"], tools))
    return tuple(found)


def _render(engine: Engine, shape: str, messages: Messages, tools: Tools) -> Rendering:
    try:
        return Rendering(shape=shape, ids=tuple(engine.prompt_ids(messages, tools)))
    except EngineCrashed:
        raise
    except Exception as error:
        # templates raise what their authors chose, for a role they do not know for example
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        return Rendering(shape=shape, refused=first_line)
