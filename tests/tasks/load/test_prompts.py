"""Prompts have the length that was asked, and no two are alike."""

from __future__ import annotations

from tasks.load.prompts import TYPICAL_TOKENS_PER_WORD, WordCount, fit, prompt, vocabulary


def test_every_request_has_its_own_words() -> None:
    texts = [prompt(32, seed=seed, number=number) for seed in range(5) for number in range(200)]
    # another beginning: no prefix is in a cache
    assert len({text[:40] for text in texts}) == len(texts)
    assert all(len(text.split()) == 32 for text in texts)
    assert prompt(32, seed=1, number=7) == prompt(32, seed=1, number=7)
    assert len(vocabulary()) > 2000


def test_words_for_a_number_of_tokens() -> None:
    known = fit([(16, 16 * 1.5 + 10), (32, 32 * 1.5 + 10), (64, 64 * 1.5 + 10)])  # type: ignore[list-item]
    assert known.words(310) == 200
    assert known.words(1) == 1


def test_without_a_count_the_typical_one() -> None:
    assert fit([]) == WordCount() == fit([(16, 30), (16, 31)])
    assert WordCount().words(140) == round(140 / TYPICAL_TOKENS_PER_WORD)
