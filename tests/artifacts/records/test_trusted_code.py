"""The one rule by which a model's own Python files may run."""

from __future__ import annotations

import pytest

from artifacts.manifest import FileEntry, Manifest
from artifacts.records.trusted_code import TRUSTED_CODE, may_run_code

FILES = (FileEntry(path="config.json", size=2, sha256="cd" * 32),)
REVIEWED = Manifest(kind="fp16", files=FILES, recipe={TRUSTED_CODE: {"modeling_x.py": "ab" * 32}})
PLAIN = [
    Manifest(kind="fp16", files=FILES, recipe={TRUSTED_CODE: {}}),
    Manifest(kind="w4a16", files=FILES),
]


@pytest.mark.parametrize("asked", [False, True])
def test_an_artifacts_code_runs_exactly_if_somebody_has_reviewed_it(asked: bool) -> None:
    assert may_run_code(REVIEWED, asked=asked)
    assert not any(may_run_code(manifest, asked=asked) for manifest in PLAIN)


def test_a_folders_code_runs_only_if_the_user_says_so() -> None:
    assert may_run_code(None, asked=True)
    assert not may_run_code(None)
