"""What is shown on a run's page has keys that Prefect takes."""

from __future__ import annotations

import pytest

from flows.run.publish import artifact_key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("report SmolLM2-135M", "report-smollm2-135m"),
        ("page a_b.c", "page-a-b-c"),
        ("  two   words ", "two-words"),
        ("Ärger ½", "rger"),
        ("bench http://127.0.0.1:23333/v1", "bench-http-127-0-0-1-23333-v1"),
    ],
)
def test_a_key_has_lower_case_letters_digits_and_dashes(text: str, key: str) -> None:
    assert artifact_key(text) == key
