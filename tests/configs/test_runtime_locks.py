"""The lock files of the engine runtimes that are shipped: everything pinned and hashed, and what
their inputs ask for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from configs.paths import PROJECT
from tasks.runner.runtime_probe import TOOLS

SHIPPED = sorted((PROJECT / "configs" / "runtimes").glob("*.lock"))


def entries(lock: Path) -> dict[Requirement, int]:
    """Each pinned requirement of a lock file, and how many hashes it has."""
    found: dict[Requirement, int] = {}
    for line in lock.read_text().splitlines():
        text = line.strip().removesuffix("\\").strip()
        if line.startswith(" "):
            assert re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", text), text
            found[next(reversed(found))] += 1
        else:
            found[Requirement(text)] = 0
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_lock_pins_and_hashes_everything(path: Path) -> None:
    found = entries(path)
    assert all(hashes > 0 for hashes in found.values())
    assert all(
        re.fullmatch(r"==[^*,]+", str(pinned.specifier)) and pinned.url is None for pinned in found
    )
    assert "://" not in path.read_text() and not re.search(r"^-", path.read_text(), re.MULTILINE)
    lmdeploy = [str(pinned.specifier) for pinned in found if pinned.name == "lmdeploy"]
    assert lmdeploy == ([] if path.stem in TOOLS else [f"=={path.stem.removeprefix('lmdeploy-')}"])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_lock_matches_its_input(path: Path) -> None:
    pinned: dict[str, list[Version]] = {}
    for entry in entries(path):
        pinned.setdefault(entry.name, []).append(Version(str(entry.specifier).removeprefix("==")))
    wanted = [
        Requirement(line.split(" #")[0])
        for line in path.with_suffix(".in").read_text().splitlines()
    ]
    assert wanted
    for requirement in wanted:
        assert pinned.get(requirement.name) and all(
            requirement.specifier.contains(version) for version in pinned[requirement.name]
        ), requirement


def test_every_input_has_its_lock_and_the_wheel_ships_them() -> None:
    folder = PROJECT / "configs" / "runtimes"
    assert len(SHIPPED) >= 2 and {path.stem for path in folder.glob("*.in")} == {
        path.stem for path in SHIPPED
    }
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert "configs" in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert "uv" in {Requirement(text).name for text in project["project"]["dependencies"]}
