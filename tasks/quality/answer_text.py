"""One answer as text: does it repeat itself without end, which script is it written in, does it
call a function, is it JSON, and which differences do not count?

Pure functions of text. LMDeploy has parsers of function calls as well, but importing them takes a
server's modules, they differ from release to release, and each wants to be told the model's family;
here whatever a family writes is understood.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from tasks.quality.passages import WORD

PERIODS = 3  # said three times over is a loop; a refrain of two is not
SHARE = 3  # a loop fills the last third of a text, or this much of it, whatever comes first:
WORDS, CHARACTERS = 60, 300
FEWEST_WORDS, FEWEST_CHARACTERS = 8, 24
FEWEST_FOR_SCRIPT = 4  # words, or characters of a script without spaces
KANA_SHARE = 0.1  # Japanese prose has 0.5 of kana and more; Chinese none
FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
MIXED = "Mixed"


# -- repetition


def repeats(text: str, ended: bool) -> bool:
    """Whether an answer repeats itself without end: the limit cut it, and its tail is periodic, in
    words or in characters.

    All numbers count as the same word, so that "1. 2. 3. 4." is a loop too. A character of a script
    without spaces is a word. An answer that the model ended itself is none, however often it says
    the same.
    """
    if ended:
        return False
    folded = re.sub(r"\d+", "0", text.strip())
    words = WORD.findall(folded.casefold())
    # the limit may have cut the last word
    return _loops(words[:-1], FEWEST_WORDS, WORDS) or _loops(folded, FEWEST_CHARACTERS, CHARACTERS)


def _loops(units: Sequence[str], fewest: int, enough: int) -> bool:
    tail = periodic_tail(units)
    return tail >= max(fewest, min(-(-len(units) // SHARE), enough))


def periodic_tail(units: Sequence[str]) -> int:
    """Length of the longest tail that is one sequence said at least PERIODS times over, the first
    time perhaps in part.

    A text's beginning of length L has the smallest period L - border(L) (Knuth, Morris, Pratt);
    here the text is read backwards.
    """
    backwards = units[::-1]
    borders = [0]
    longest = 0
    for length in range(2, len(backwards) + 1):
        border = borders[-1]
        while border and backwards[border] != backwards[length - 1]:
            border = borders[border - 1]
        border += backwards[border] == backwards[length - 1]
        borders.append(border)
        if length >= PERIODS * (length - border):
            longest = length
    return longest


# -- script


def script(text: str) -> str | None:
    """The script that most of a text is written in: Latin, Han, Japanese (Han with kana), Hangul,
    Cyrillic, Arabic, ...

    Words are counted, or characters where a script has no spaces between words; code between fences
    is not. Languages that share a script are not told apart.

    Returns:
        The script's Unicode name; MIXED if none has half of the text; None if there is too little
        text to say.
    """
    prose = FENCE.sub(" ", unicodedata.normalize("NFKC", text))
    scripts = (next(filter(None, map(_script_of, word)), None) for word in WORD.findall(prose))
    counts = Counter(found for found in scripts if found)
    kana = counts["Kana"]
    han = counts["Han"]
    if kana:
        del counts["Kana"]
        counts["Japanese"] = kana
        if kana >= KANA_SHARE * (kana + han):
            counts["Japanese"] += counts.pop("Han", 0)
    total = counts.total()
    if total < FEWEST_FOR_SCRIPT:
        return None
    [(most, count)] = counts.most_common(1)
    return most if 2 * count >= total else MIXED


@functools.cache
def _script_of(character: str) -> str | None:
    """A letter's script: the first word of its Unicode name."""
    if not character.isalpha():
        return None
    first = unicodedata.name(character, "").partition(" ")[0]
    if first.startswith(("HIRAGANA", "KATAKANA")):
        return "Kana"
    return "Han" if first == "CJK" else first.title() or None


# -- function calls and JSON


OPENING = re.compile(r"[\[{]")
NAME_BEFORE = re.compile(r"([\w.-]+?)(?::\d+)?(?:<[^<>\s]*>|\[ARGS\]|```json|\s)*$")
FUNCTION_TAG = re.compile(r"<function=([\w.-]+)>(.*?)</function>", re.DOTALL)
PARAMETER_TAG = re.compile(r"<parameter=([\w.-]+)>(.*?)</parameter>", re.DOTALL)
ARGUMENT_TAGS = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
NAME_AND_ARGUMENTS = re.compile(
    r"([\w.-]+)\s*((?:<arg_key>.*?</arg_key>\s*<arg_value>.*?</arg_value>\s*)+)", re.DOTALL
)


@dataclass(frozen=True)
class FunctionCall:
    name: str
    arguments: Mapping[str, Any]


def json_values(text: str) -> Iterator[tuple[int, Any]]:
    """All JSON objects and arrays in a text, outermost first, each with the place where it
    begins."""
    decoder = json.JSONDecoder()
    opening = OPENING.search(text)
    while opening is not None:
        try:
            value, place = decoder.raw_decode(text, opening.start())
            yield opening.start(), value
        except (ValueError, RecursionError):
            place = opening.end()
        opening = OPENING.search(text, place)


def function_calls(text: str, names: Sequence[str]) -> list[FunctionCall]:
    """The function calls in an answer, in the forms of the common model families.

    An engine may have left out special tokens such as `<|python_tag|>`, `<|action_start|>` and
    `[TOOL_CALLS]`, so what is read is what stands between them: an object with a name and its
    arguments (Hermes, Qwen, InternLM2, Llama 3, Mistral), a name and an object (Mistral Large,
    DeepSeek, Kimi), tags (Qwen3-Coder, GLM), or a call in Python (Llama 4).

    Args:
        names: the functions that were offered; prose that mentions another one is no call.
    """
    found = [
        call
        for place, value in json_values(text)
        for call in _from_value(value, _word_before(text[:place]), names)
    ]
    return found or [*_from_tags(text, names), *_from_python(text, names)]


def _word_before(text: str) -> str:
    """The word that a text ends with, but for a call's number, tags, fences and spaces."""
    match = NAME_BEFORE.search(text)
    return match[1].removeprefix("functions.") if match else ""


def _from_value(value: Any, before: str, names: Sequence[str]) -> list[FunctionCall]:
    if isinstance(value, dict) and before in names:
        return [FunctionCall(before, value)]
    calls = [_from_json(part) for part in (value if isinstance(value, list) else [value])]
    return [call for call in calls if call is not None]


def _from_json(value: Any) -> FunctionCall | None:
    value = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    return FunctionCall(value["name"], arguments) if isinstance(arguments, dict) else None


def _from_tags(text: str, names: Sequence[str]) -> Iterator[FunctionCall]:
    for name, body in FUNCTION_TAG.findall(text):
        yield FunctionCall(name, {key: value.strip() for key, value in PARAMETER_TAG.findall(body)})
    for name, body in NAME_AND_ARGUMENTS.findall(text):
        if name in names:
            arguments = ARGUMENT_TAGS.findall(body)
            yield FunctionCall(name, {key.strip(): value.strip() for key, value in arguments})


def _from_python(text: str, names: Sequence[str]) -> Iterator[FunctionCall]:
    for name in names:
        for match in re.finditer(rf"\b{re.escape(name)}\([^()]*\)", text):
            try:
                call = ast.parse(match.group(), mode="eval").body
                assert isinstance(call, ast.Call)
                if not call.args:
                    arguments = {
                        keyword.arg: ast.literal_eval(keyword.value)
                        for keyword in call.keywords
                        if keyword.arg
                    }
                    yield FunctionCall(name, arguments)
            except (SyntaxError, ValueError):
                continue


def calls_well(text: str, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an answer calls a function, every call is of one that was offered, and its arguments
    fit that one's JSON schema.

    Args:
        tools: the functions that were offered, in OpenAI's form.
    """
    offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    calls = function_calls(text, list(offered))
    return bool(calls) and all(
        call.name in offered and Draft202012Validator(offered[call.name]).is_valid(call.arguments)
        for call in calls
    )


def has_keys(text: str, keys: Sequence[str]) -> bool:
    """Whether the first JSON value of an answer is an object that has at least these keys. Words
    and a code fence around it are allowed."""
    value = next((value for _, value in json_values(text)), None)
    return isinstance(value, dict) and all(key in value for key in keys)


# -- what makes no other answer

PUNCTUATION = frozenset({"Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sc"})
# signs, decimal points and the like that belong to a number, and where they are kept meanwhile
IN_NUMBERS = re.compile(r"(?<![\w)])-(?=\.?\d)|(?<=\d)[.,:/](?=\d)|(?<!\w)\.(?=\d)")
SHELTER = 0xE000


def normalized(text: str) -> str:
    """Without what does not make an answer another one: case, spaces, width, punctuation and
    currency signs outside numbers, the commas of thousands. Signs and decimal points of numbers
    stay."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text).replace("\N{MINUS SIGN}", "-")
    text = IN_NUMBERS.sub(lambda match: chr(SHELTER + ord(match.group())), text)
    text = "".join(
        " " if unicodedata.category(character) in PUNCTUATION else character for character in text
    )
    text = re.sub("[\ue000-\ue0ff]", lambda match: chr(ord(match.group()) - SHELTER), text)
    return " ".join(text.split())
