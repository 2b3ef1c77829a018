"""Who shows a run: nobody by default, and whoever is set for a context."""

from __future__ import annotations

from flows.run.display import DISPLAY, NoDisplay, display


class Heard(NoDisplay):
    pass


def test_the_display_is_that_of_the_context() -> None:
    assert isinstance(display(), NoDisplay)
    heard = Heard()
    token = DISPLAY.set(heard)
    assert display() is heard
    DISPLAY.reset(token)
    assert display() is not heard
