"""How often a test repeats what chance decides, and how large a thing it takes: little in `make
test`, much in `make soak`.

`make soak` sets LMFLOWS_TEST_SOAK and runs the tests that bear the mark `soak`; a release runs it.
"""

from __future__ import annotations

import os

SOAK = bool(os.environ.get("LMFLOWS_TEST_SOAK"))


def rounds(few: int, *, soak: int) -> int:
    """`few`, or with LMFLOWS_TEST_SOAK set as many as `soak`."""
    return soak if SOAK else few
