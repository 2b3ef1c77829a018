"""Answers in several scripts and forms, for the tests of what is read in them."""

from __future__ import annotations

from artifacts.records.checks import ProbeAnswer
from tests.support.tiny_model import TEMPLATE

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
CHINESE = "\u5317\u4eac\u662f\u4e2d\u56fd\u7684\u9996\u90fd\uff0c\u5386\u53f2\u60a0\u4e45\u3002"
RUSSIAN = (
    "\u0421\u043e\u043d \u043d\u0443\u0436\u0435\u043d, \u0447\u0442\u043e\u0431\u044b"
    " \u043e\u0442\u0434\u043e\u0445\u043d\u0443\u0442\u044c."
)
JAPANESE = (
    "\u65e5\u672c\u306b\u306f\u56db\u3064\u306e\u5b63\u7bc0\u304c\u3042\u308a\u307e\u3059\u3002"
)
ENGLISH = "Beijing is the capital of China and has a long history."


def answer(text: str, *, ended: bool = True, prompt: str = "hello") -> ProbeAnswer:
    return ProbeAnswer(prompt=prompt, text=text, tokens=max(1, len(text) // 4), ended=ended)
