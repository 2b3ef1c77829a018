"""How long tests wait for what comes for certain, but late on a busy machine."""

from __future__ import annotations

PATIENCE = 600.0  # seconds for another process; only a test that fails waits so long
