"""The registry: of those who write from the same reading exactly one wins, nothing of the history
is lost, and no change of it is overlooked."""

# covers artifacts/store/objects.py

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from artifacts.manifest import canonical_json
from artifacts.registry.refs import Decision, Ref, RefEntry, Registry, Seen, Served, Stage
from artifacts.store.objects import LocalObjects
from configs.errors import ArtifactDamaged, StaleRef

REPORT = "f" * 64
KEY = "refs/model/dev.json"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(LocalObjects(tmp_path))


def digest(number: int) -> str:
    return f"{number:064x}"


def served(number: int) -> Served:
    return Served(digest=digest(number), report=REPORT, variant="w4a16", engine="turbomind")


def promoted(registry: Registry, number: int, seen: Seen | None = None) -> Ref:
    return registry.append(
        seen or registry.read("model", "dev"),
        served(number),
        Decision("me", "better"),
    )


def rolled_back(registry: Registry, number: int | None = None) -> Ref:
    seen = registry.read("model", "dev")
    target = seen.ref.previous if number is None else number
    assert target is not None
    return registry.append(
        seen,
        seen.ref.entries[target].served,
        Decision("me", "worse"),
        back_to=target,
    )


def current(registry: Registry) -> int:
    entry = registry.read("model", "dev").ref.current
    assert entry is not None
    return int(entry.digest, 16)


def test_a_stage_that_nobody_promoted_to_is_empty(registry: Registry) -> None:
    seen = registry.read("model", "production")
    assert (seen.ref.model, seen.ref.stage, seen.ref.current, seen.ref.previous, seen.version) == (
        "model",
        "production",
        None,
        None,
        None,
    )


def test_what_was_written_is_read_with_its_history(registry: Registry) -> None:
    for number in (1, 2, 1):
        written = promoted(registry, number)
        assert registry.read("model", "dev").ref == written
    entries = registry.read("model", "dev").ref.entries
    assert [entry.served for entry in entries] == [served(1), served(2), served(1)]
    assert [(entry.who, entry.why, entry.action) for entry in entries] == [
        ("me", "better", "promote")
    ] * 3
    assert sorted(entry.when for entry in entries) == [entry.when for entry in entries]
    assert [entry.before for entry in entries] == [None, entries[0].hash, entries[1].hash]


def test_a_stale_write_changes_nothing(registry: Registry) -> None:
    stale = registry.read("model", "dev")
    promoted(registry, 1, stale)
    before = registry.objects.get(KEY)
    with pytest.raises(StaleRef, match=f"moved to {digest(1)[:12]}"):
        promoted(registry, 2, stale)
    assert registry.objects.get(KEY) == before


def test_setting_back_to_an_earlier_digest_still_makes_older_readings_stale(
    registry: Registry,
) -> None:
    promoted(registry, 1)
    seen = registry.read("model", "dev")
    promoted(registry, 2)
    rolled_back(registry)
    with pytest.raises(StaleRef):
        promoted(registry, 3, seen)


def test_stages_and_models_are_independent_and_listed_in_order(registry: Registry) -> None:
    places: list[tuple[str, Stage]] = [
        ("b", "production"),
        ("a", "production"),
        ("a", "dev"),
        ("a", "staging"),
    ]
    for number, (model, stage) in enumerate(places):
        registry.append(registry.read(model, stage), served(number), Decision("me", ""))
    assert [
        (ref.model, ref.stage, ref.current and ref.current.digest) for ref in registry.refs()
    ] == [
        ("a", "dev", digest(2)),
        ("a", "staging", digest(3)),
        ("a", "production", digest(1)),
        ("b", "production", digest(0)),
    ]


def test_a_model_name_cannot_leave_the_registry(registry: Registry) -> None:
    with pytest.raises(ValidationError):
        registry.read("../other", "dev")


def test_an_entry_that_names_no_artifact_is_not_made(registry: Registry) -> None:
    with pytest.raises(ValidationError):
        Served(digest="latest", report=REPORT, variant="w4a16", engine="turbomind")


# -- the way back


def test_rollbacks_are_like_undo(registry: Registry) -> None:
    for number in (1, 2, 3):
        promoted(registry, number)
    rolled_back(registry)
    assert current(registry) == 2
    rolled_back(registry)
    assert current(registry) == 1 and registry.read("model", "dev").ref.previous is None
    promoted(registry, 4)  # after this, 1 is what was there before, and 3 is forgotten
    rolled_back(registry)
    assert current(registry) == 1 and registry.read("model", "dev").ref.previous is None


def test_a_rollback_to_anything_counts_from_there(registry: Registry) -> None:
    for number in (1, 2, 3, 4):
        promoted(registry, number)
    rolled_back(registry, 1)
    assert current(registry) == 2
    rolled_back(registry)
    assert current(registry) == 1


@given(st.lists(st.one_of(st.just("back"), st.integers(1, 9)), max_size=25))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
def test_undo_is_a_stack(tmp_path_factory: pytest.TempPathFactory, moves: list[Any]) -> None:
    """Promotions push, rollbacks pop: the same as a plain list does it."""
    registry, stack = Registry(LocalObjects(tmp_path_factory.mktemp("undo"))), []
    for move in moves:
        if move != "back":
            promoted(registry, move)
            stack.append(move)
        elif len(stack) > 1:
            rolled_back(registry)
            stack.pop()
        else:
            assert registry.read("model", "dev").ref.previous is None
        assert not stack or current(registry) == stack[-1]


@pytest.mark.parametrize("back_to", [2, 5])
def test_a_rollback_to_what_was_not_there_is_not_written(registry: Registry, back_to: int) -> None:
    promoted(registry, 1)
    promoted(registry, 2)
    before = registry.objects.get(KEY)
    with pytest.raises(ValidationError):
        registry.append(
            registry.read("model", "dev"),
            served(1),
            Decision("me", ""),
            back_to=back_to,
        )
    with pytest.raises(ValidationError, match="is not what entry 0"):
        registry.append(registry.read("model", "dev"), served(2), Decision("me", ""), back_to=0)
    assert registry.objects.get(KEY) == before


@pytest.mark.parametrize("change", [{"action": "rollback"}, {"back_to": 0}])
def test_an_entry_goes_back_to_something_if_and_only_if_it_is_a_rollback(
    registry: Registry, change: dict[str, Any]
) -> None:
    promoted(registry, 1)
    first, second = promoted(registry, 1).entries
    with pytest.raises(ValidationError, match="goes back to an entry that was not before it"):
        Ref(model="model", stage="dev", entries=(first, second.model_copy(update=change)))


# -- changes behind our back


def history(length: int = 6) -> list[dict[str, Any]]:
    """A real history, as it lies in the store."""
    entries: list[RefEntry] = []
    for number in range(length):
        back = {"action": "rollback", "back_to": 1} if number == 4 else {"action": "promote"}
        what = entries[1].served if number == 4 else served(number)
        entries.append(
            RefEntry.model_validate(
                {
                    **what.model_dump(),
                    **back,
                    "id": f"{number:032x}",
                    "who": f"me{number}",
                    "why": "better",
                    "when": f"2026-01-0{number + 1}T00:00:00Z",
                    "before": entries[-1].hash if entries else None,
                }
            )
        )
    found: list[dict[str, Any]] = json.loads(
        Ref(model="model", stage="dev", entries=tuple(entries)).to_bytes()
    )["entries"]
    return found


def read_back(
    entries: list[dict[str, Any]], folder: Path, more: dict[str, Any] | None = None
) -> Ref:
    """A ref's file with these entries, and the hash over the newest one as it was in `history`."""
    objects, head = LocalObjects(folder), hashlib.sha256(canonical_json(history()[-1])).hexdigest()
    objects.swap(
        KEY,
        canonical_json(
            {"model": "model", "stage": "dev", "entries": entries, "head": head} | (more or {})
        ),
        seen=None,
    )
    return Registry(objects).read("model", "dev").ref


def test_the_history_of_these_tests_is_sound(tmp_path: Path) -> None:
    assert [entry.who for entry in read_back(history(), tmp_path).entries] == [
        f"me{number}" for number in range(6)
    ]


@given(st.data())
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150
)
def test_an_entry_that_was_removed_changed_moved_or_put_in_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The newest too; but whoever may write to the store can write a whole new file."""
    entries = history()
    place = data.draw(st.integers(0, len(entries) - 1), label="place")
    how = data.draw(st.sampled_from(["remove", "change", "swap", "insert", "repeat"]), label="how")
    if how == "remove":
        del entries[place]
    elif how == "change":
        field, value = data.draw(
            st.sampled_from(
                [
                    ("digest", "a" * 64),
                    ("report", "b" * 64),
                    ("variant", "fp16"),
                    ("engine", "pytorch"),
                    ("who", "mallory"),
                    ("why", "worse"),
                    ("when", "2030-01-01T00:00:00Z"),
                    ("forced", "hurry"),
                    ("approved_by", "mallory"),
                    ("id", "e" * 32),
                    ("before", "c" * 64),
                ]
            )
        )
        entries[place][field] = value
    elif how == "swap":
        other = data.draw(
            st.integers(0, len(entries) - 1).filter(lambda number: number != place), label="other"
        )
        entries[place], entries[other] = entries[other], entries[place]
    elif how == "insert":
        entries.insert(
            place, {**entries[place], "id": "e" * 32, "action": "promote", "back_to": None}
        )
    else:
        entries.insert(
            place, dict(entries[data.draw(st.integers(0, len(entries) - 1), label="which")])
        )
    with pytest.raises(ArtifactDamaged, match="ref model/dev"):
        read_back(entries, tmp_path_factory.mktemp("changed"))


@given(st.binary(max_size=80))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)
def test_a_file_that_is_no_ref_is_found(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    objects = LocalObjects(tmp_path_factory.mktemp("bytes"))
    objects.swap(KEY, content, seen=None)
    with pytest.raises(ArtifactDamaged):
        Registry(objects).read("model", "dev")


@pytest.mark.parametrize(("model", "stage"), [("other", "dev"), ("model", "production")])
def test_a_ref_under_another_name_is_found(tmp_path: Path, model: str, stage: str) -> None:
    with pytest.raises(ArtifactDamaged, match=f"is the ref of {model}/{stage}"):
        read_back(history(), tmp_path, {"model": model, "stage": stage})


@pytest.mark.parametrize(
    "more",
    [
        {"extra": 1},
        {"head": None},
        {"head": 1},
        {"head": "a" * 64},
        {"entries": []},
        {"entries": "none"},
        {"entries": [{}]},
        {"stage": "live"},
        {"model": "../up"},
    ],
)
def test_a_ref_with_more_or_less_than_one_has_is_found(
    tmp_path: Path, more: dict[str, Any]
) -> None:
    with pytest.raises(ArtifactDamaged):
        read_back(history(), tmp_path, more)


class Deaf(LocalObjects):
    """Writes, loses the answer, and before the second attempt somebody else has gone on."""

    def swap(self, key: str, data: bytes, *, seen: str | None) -> None:
        super().swap(key, data, seen=seen)
        other = Registry(LocalObjects(self.root))
        other.append(other.read("m", "dev"), served(2), Decision("other", "next"))
        raise StaleRef("moved", where=key)


def test_a_write_whose_answer_was_lost_is_a_success_even_if_somebody_has_gone_on(
    tmp_path: Path,
) -> None:
    registry = Registry(Deaf(tmp_path))
    written = registry.append(registry.read("m", "dev"), served(1), Decision("me", "first"))
    assert [entry.who for entry in written.entries] == ["me"]
    assert [entry.who for entry in registry.read("m", "dev").ref.entries] == ["me", "other"]
