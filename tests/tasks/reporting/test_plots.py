"""The plots: how large they become, and which variants are hollow in them."""

# covers tasks/reporting/drawing.py

from __future__ import annotations

from tasks.reporting import plots
from tasks.reporting.plots import Option, with_dominated


def test_a_load_test_of_many_requests_stays_small() -> None:
    """A curve has no more points than a screen can show."""
    short = plots.distributions([("s", {"w4a16": [1 + number / 50 for number in range(50)]})])
    long = plots.distributions(
        [("s", {"w4a16": [1 + number / 50_000 for number in range(50_000)]})]
    )
    assert len(long) < len(short) + 60 * plots.MOST_STEPS


def test_what_another_variant_beats_is_dominated() -> None:
    options = [
        Option("slow and good", 1.0, 10),
        Option("fast and worse", 1.05, 20),
        Option("slow and worse", 1.05, 10),
        Option("twin", 1.0, 10),
    ]
    assert [option.dominated for option in with_dominated(options, more_is_better=True)] == [
        False,
        False,
        True,
        False,
    ]
    assert [option.dominated for option in with_dominated(options, more_is_better=False)] == [
        False,
        True,
        True,
        False,
    ]
