"""The channel between a step and its engine's process: JSON messages, each with numpy arrays behind
it if it has any.

Both ends may be different Python and numpy versions (an engine's runtime is an environment of its
own), so nothing is pickled.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]


def send(
    channel: Connection,
    message: Mapping[str, Any],
    arrays: Mapping[str, npt.NDArray[Any]] | None = None,
) -> None:
    """Send a message with named arrays."""
    channel.send_bytes(json.dumps({"message": message, "arrays": bool(arrays)}).encode())
    if arrays:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes the names for options
        channel.send_bytes(buffer.getbuffer())


def receive(channel: Connection) -> tuple[dict[str, Any], Arrays]:
    """Wait for a message. EOFError or ConnectionError when the other end is gone."""
    frame = json.loads(channel.recv_bytes())
    arrays: Arrays = {}
    if frame["arrays"]:
        with np.load(io.BytesIO(channel.recv_bytes()), allow_pickle=False) as loaded:
            arrays = dict(loaded.items())
    return frame["message"], arrays
