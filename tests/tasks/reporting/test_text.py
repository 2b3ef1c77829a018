"""Foreign text in a report: in one line, as code, and cut."""

from __future__ import annotations

from tasks.reporting.text import quoted


def test_an_answer_is_quoted_in_one_line_and_cut() -> None:
    assert quoted("") == "` (nothing) `" and len(quoted("x" * 10_000)) < 700
