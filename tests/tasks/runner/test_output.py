"""What a child process wrote, as a person would have seen it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.runner.output import LAST_LINES, TAIL_BYTES, Tail, last_lines


def test_the_last_lines_are_indented_below_their_name(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("".join(f"line {number}\n" for number in range(100)))
    expected = "its last lines:" + "".join(f"\n    line {n}" for n in range(100 - LAST_LINES, 100))
    assert last_lines(log) == expected
    assert last_lines(log, 1) == "its last lines:\n    line 99"
    assert last_lines([f"line {number}" for number in range(100)]) == expected


@pytest.mark.parametrize("text", ["", "\n\n", None])
def test_who_wrote_nothing_said_nothing(tmp_path: Path, text: str | None) -> None:
    log = tmp_path / "log.txt"
    if text is not None:
        log.write_text(text)
    assert last_lines(log) == last_lines([]) == "its last lines:\n    (none)"


def test_a_progress_bar_is_its_last_state_and_bytes_that_are_no_text_hurt_nobody(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log.txt"
    log.write_bytes(b"\r 10%\r 90%\n\nWindows\r\n\xff\xfe unfinished")
    assert last_lines(log) == "its last lines:\n     90%\n    Windows\n    \ufffd\ufffd unfinished"


def test_a_log_of_gigabytes_is_not_read_whole(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with log.open("wb") as file:
        file.truncate(8 << 30)
        file.seek(0, 2)
        file.write(b"\n" + b"x" * TAIL_BYTES + b"\nthe end\n")
    assert last_lines(log, 1) == "its last lines:\n    the end"


def test_a_growing_file_is_followed_by_whole_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    tail = Tail(log)
    assert tail.lines() == [], "not there yet"
    with log.open("w", buffering=1) as file:
        file.write("one\ntw")
        file.flush()
        assert tail.lines() == ["one"]
        file.write("o\nthree")
        file.flush()
        assert tail.lines() == ["two"] and tail.lines() == []
    assert tail.lines(last=True) == ["three"]
