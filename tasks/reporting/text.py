"""Figures and foreign text as a report shows them.

What a model has said is hostile input: it is shown, never obeyed.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST_TEXT = 4000  # characters of an answer that the page shows
LONGEST_ANSWER = 600  # characters in the markdown
# what turns the direction of writing
BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def percent(share: float) -> str:
    """A confidence: 0.95 is 95%, and 0.9875 is not 99%."""
    return f"{share * 100:.4g}%"


def one_line(text: str) -> str:
    return " ".join(text.split()) or "(nothing)"


def quoted(text: str) -> str:
    """An answer as code in one line, so that nothing in it is taken for markdown or HTML."""
    line = one_line(re.sub(r"[^\S \n]|[\x00-\x1f\x7f]", " ", text))
    if len(line) > LONGEST_ANSWER:
        line = line[:LONGEST_ANSWER] + " …"
    longest_run = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (1 + longest_run)
    return f"{fence} {line} {fence}"


def shown(text: str) -> str:
    """Text of a model as a person can see it: control characters and what turns the direction of
    writing as visible signs, and cut."""
    cut = len(text) - LONGEST_TEXT
    visible = "".join(_sign(character) for character in text[:LONGEST_TEXT].replace("\r\n", "\n"))
    return f"{visible} … ({cut:,} more characters)" if cut > 0 else visible


def _sign(character: str) -> str:
    if character in "\n\t":
        return character
    if ord(character) < 0x20:
        return chr(0x2400 + ord(character))
    kind = unicodedata.category(character)
    if kind == "Cs":
        return "\ufffd"
    if kind == "Cc" or unicodedata.bidirectional(character) in BIDI_CONTROLS:
        return f"⟨U+{ord(character):04X}⟩"
    return character
