"""`lmflows` from its first moment: Ctrl-C ends it in one line even while the commands are still
being imported, so nothing is imported here that takes time."""

from __future__ import annotations

from flows.cli.signals import interrupt_ends_at_once


def main() -> None:
    """Console script."""
    with interrupt_ends_at_once():
        from flows.cli.app import run_command_line
    run_command_line()


if __name__ == "__main__":
    main()
