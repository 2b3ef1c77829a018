"""An engine runtime for tests: this environment's interpreter under another name, in which engines
may be replaced.

LMDeploy's engines need a GPU, so what happens around one that fails is shown with a stand-in for
the engine alone: its process, the channel to it, the step and the flow are real. What runs there
can tell its runtime by `MARK`.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tasks.runner import runtimes

MARK = "LMFLOWS_TEST_RUNTIME"
ABORTS = """
import ctypes, os
os.write(2, b"terminate called after throwing an instance of 'std::runtime_error'\\n")
ctypes.CDLL(None).abort()
"""
# every engine is the reference engine, except for the specs that a test names
HOST = """
import importlib
import sys
from tasks.engines import MODULES, host
from tasks.engines.reference import ReferenceEngine

def load(spec):
    if {fails}:
{how}
    return ReferenceEngine(spec.folder)

for name in MODULES.values():
    importlib.import_module(name).load = load
host.main()
"""


def adopt(name: str, folder: Path, *, fails: str = "False", how: str = ABORTS) -> None:
    """Adopt a runtime in the home folder of the environment.

    Args:
        fails: an expression over `spec` (an EngineSpec): for which the engine fails when it is
            loaded.
        how: the statements by which it fails; default: it aborts from C.
    """
    folder.mkdir()
    script, program = folder / "host.py", folder / "python"
    script.write_text(
        HOST.format(
            fails=fails, how="".join(f"        {line}\n" for line in how.strip().splitlines())
        )
    )
    python = shlex.quote(sys.executable)
    planted = shlex.quote(str(script))
    program.write_text(f"""#!/bin/sh
export {MARK}={shlex.quote(name)}
case "$2 $3" in "-m tasks.engines.host") exec {python} -P {planted} "$4" ;; esac
exec {python} "$@"
""")
    program.chmod(0o755)
    runtimes.adopt(name, program)
