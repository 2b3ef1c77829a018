"""32 processes that promote the same stage at once, round after round, locally and on S3: one wins
each round, and the history has every win."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from artifacts.registry.names import NOTHING
from artifacts.registry.refs import Decision, Registry, Served
from artifacts.store.open import open_store
from artifacts.store.protocol import Store
from configs.errors import StaleRef
from tests.support import places
from tests.support.patience import PATIENCE
from tests.support.places import Judged, promote
from tests.support.rounds import rounds

RACERS = 32
ROUNDS = rounds(5, soak=50)
WHOLE_ON_S3 = rounds(2, soak=50)  # each takes four seconds on two cores
Outcome = tuple[str, int, int, str]  # which race, round, racer, and what became of it


@dataclass(frozen=True)
class Race:
    """`whole`: through `promote` with all its checks; else only the write that decides, after
    everybody has read."""

    location: str
    rounds: int
    whole: bool
    rivals: tuple[Judged, Judged]

    @property
    def name(self) -> str:
        return (
            f"{'s3' if self.location.startswith('s3') else 'local'}"
            f" {'promote' if self.whole else 'write'}"
        )


def run(race: Race, store: Store, me: int, start: Barrier) -> Iterator[Outcome]:
    for number in range(race.rounds):
        mine = race.rivals[number % 2]
        before = race.rivals[number % 2 - 1].candidate if number else NOTHING
        start.wait()
        try:
            if race.whole:
                promote(
                    store,
                    "m",
                    mine.candidate,
                    "dev",
                    report=mine.report,
                    expect=before,
                    who=f"racer {me}",
                    why=f"round {number}",
                )
            else:
                registry = Registry(store.objects)
                seen = registry.read("m", "production")
                start.wait()
                registry.append(
                    seen,
                    Served(
                        digest=mine.candidate,
                        report=mine.report,
                        variant="w4a16",
                        engine="transformers",
                    ),
                    Decision(f"racer {me}", f"round {number}"),
                )
            yield race.name, number, me, "won"
        except StaleRef:
            yield race.name, number, me, "lost"


def racer(
    races: list[Race], me: int, start: Barrier, outcomes: multiprocessing.Queue[Outcome]
) -> None:
    stores = {location: open_store(location) for location in {race.location for race in races}}
    for race in races:
        for outcome in run(race, stores[race.location], me, start):
            outcomes.put(outcome)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Race], list[Outcome]]]:
    """The races, all run by the same 32 processes, and what became of everybody in every round."""
    # each is forked from a process that has imported everything and opened nothing
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload([__name__])
    with places.bucket() as server:
        here, there = (places.place(one, tmp_path_factory.mktemp("race")) for one in (None, server))
        races = [
            Race(place.store.location, rounds, whole, (place.judged("one"), place.judged("two")))
            for place, rounds, whole in (
                (here, ROUNDS, True),
                (there, ROUNDS, False),
                (there, WHOLE_ON_S3, True),
            )
        ]
        start, outcomes = forkserver.Barrier(RACERS, timeout=PATIENCE), forkserver.Queue()
        racers = [
            forkserver.Process(target=racer, args=(races, me, start, outcomes), daemon=True)
            for me in range(RACERS)
        ]
        for one in racers:
            one.start()
        found: list[Outcome] = []
        while len(found) < RACERS * sum(race.rounds for race in races) and any(
            one.is_alive() or one.exitcode == 0 for one in racers
        ):
            try:
                found.append(outcomes.get(timeout=PATIENCE))
            except queue.Empty:
                break
        for one in racers:
            one.join(timeout=PATIENCE)
        assert [one.exitcode for one in racers] == [0] * RACERS
        yield races, found


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "number",
    range(3),
    ids=["local, whole promotions", "s3, the deciding write", "s3, whole promotions"],
)
def test_exactly_one_wins_each_round_and_the_history_has_no_gap_and_no_fork(
    results: tuple[list[Race], list[Outcome]], number: int
) -> None:
    races, outcomes = results
    race = races[number]
    mine = [outcome for outcome in outcomes if outcome[0] == race.name]
    # everybody took part in every round
    assert len({outcome[1:3] for outcome in mine}) == RACERS * race.rounds
    winners = sorted((round_, me) for _, round_, me, became in mine if became == "won")
    assert [round_ for round_, _ in winners] == list(range(race.rounds))
    # checks the chain
    entries = (
        Registry(open_store(race.location).objects)
        .read("m", "dev" if race.whole else "production")
        .ref.entries
    )
    assert [(entry.why, entry.who) for entry in entries] == [
        (f"round {round_}", f"racer {me}") for round_, me in winners
    ]
    assert [entry.digest for entry in entries] == [
        race.rivals[round_ % 2].candidate for round_, _ in winners
    ]
    assert len({entry.id for entry in entries}) == race.rounds
    assert [entry.before for entry in entries] == [None, *(entry.hash for entry in entries[:-1])]


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_not_always_the_same_one_wins(
    results: tuple[list[Race], list[Outcome]], tmp_path: Path
) -> None:
    _, outcomes = results
    assert len({me for _, _, me, became in outcomes if became == "won"}) > 3, (
        "the rounds were no races"
    )
