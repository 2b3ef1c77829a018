"""`python -I -S guard.py PARENT SIGNAL PROGRAM [WORD ...]`: become a program that the kernel ends
with whoever started it.

`tasks.runner.process` runs this file by its path, before anything of ours can be imported;
`die_with` is also for a process that has only forked. The wish to be ended outlives the exec, but
not another fork. Knows nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
CANNOT_RUN = 127  # as a shell says it
# a Python ignores them, and what is ignored stays so after the exec
IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)


def die_with(parent: int, how: signal.Signals) -> None:
    """Ask the kernel to send this process a signal when its parent ends; end now if that has
    happened already."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, how)
    if os.getppid() != parent:
        os.kill(os.getpid(), how)


def main() -> None:
    parent, how, *command = sys.argv[1:]
    die_with(int(parent), signal.Signals(int(how)))
    for number in IGNORED:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execv(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(CANNOT_RUN)


if __name__ == "__main__":
    main()
