"""One table of engines: what each of them offers stands in a module of its own.

An engine is a class in `configs.engines` (its options, and what it can do), a module here that has
all of `tasks.engines.protocol.EngineModule`, and its line below. This package imports no engine
before somebody asks for it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from configs.engines import EngineOptions

if TYPE_CHECKING:
    from tasks.engines.protocol import EngineModule

MODULES = {
    "transformers": "tasks.engines.transformers",
    "turbomind": "tasks.engines.turbomind",
    "pytorch": "tasks.engines.pytorch",
}


def module_of(options: EngineOptions) -> EngineModule:
    """What the engine of these options offers."""
    return cast("EngineModule", importlib.import_module(MODULES[options.name]))
