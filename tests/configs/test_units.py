"""Sizes as text."""

from __future__ import annotations

from configs.units import size


def test_from_a_gigabyte_on_sizes_are_gigabytes() -> None:
    assert (size(999_900_000), size(1_330_000_000)) == ("999.9 MB", "1.33 GB")
