"""What people type about a stage, checked: names, reasons, and what they believe it to point to."""

from __future__ import annotations

import re
import unicodedata

from pydantic import TypeAdapter, ValidationError

from artifacts.registry.refs import STAGES, ModelName, Ref
from configs.errors import ConfigError, StaleRef

MAX_WORDS = 4000  # characters of a reason
NOTHING = "nothing"  # for `expect`: the stage points to nothing yet


def check_names(model: str, stage: str) -> str:
    """The name of a stage of a model, for messages.

    Raises:
        ConfigError: there can be no such stage or model.
    """
    try:
        TypeAdapter(ModelName).validate_python(model)
    except ValidationError:
        raise ConfigError(
            f"{model!r} cannot be a model's name",
            where="model",
            hint="letters, digits and . _ -, at most 96, no path",
        ) from None
    if stage not in STAGES:
        raise ConfigError(f"no stage {stage!r}", where=model, hint=f"one of {', '.join(STAGES)}")
    return f"{model}/{stage}"


def check_words(where: str, *words: str | None) -> None:
    """Raise ConfigError for a text that cannot go into the history, where it stays for ever."""
    for text in words:
        if text is not None and (len(text) > MAX_WORDS or _has_odd_character(text)):
            raise ConfigError(
                f"{text[:40]!r} cannot go into the history",
                where=where,
                hint=f"plain text, at most {MAX_WORDS} characters",
            )


def _has_odd_character(text: str) -> bool:
    """Whether a text has escapes of a terminal, or what is no UTF-8."""
    odd = ("Cc", "Cs")
    return any(unicodedata.category(char) in odd and char not in "\n\t" for char in text)


def require_expected(ref: Ref, expect: str | None) -> None:
    """Do nothing if a stage points to what somebody believes it to, or if nobody says.

    Args:
        expect: a digest or its first digits, or NOTHING.

    Raises:
        StaleRef: it points to something else.
        ConfigError: `expect` cannot be a digest.
    """
    if expect is None:
        return
    digits = expect.removeprefix("sha256:")
    if expect != NOTHING and not re.fullmatch("[0-9a-f]{6,64}", digits):
        raise ConfigError(
            f"{expect!r} is no digest",
            where="--expect",
            hint=f"give at least 6 of its digits, or {NOTHING!r}",
        )
    now = ref.current.digest if ref.current else NOTHING
    as_expected = now == NOTHING if expect == NOTHING else now.startswith(digits)
    if not as_expected:
        raise StaleRef(
            f"points to {now[:12]}, not to {expect[:12]}",
            where=f"{ref.model}/{ref.stage}",
            hint="look at it and do it again if it still holds",
        )
