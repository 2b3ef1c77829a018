"""LMDeploy's own command line, which says what a server of its engines is told."""

from __future__ import annotations

import argparse
import functools


@functools.cache
def api_server_parser() -> argparse.ArgumentParser:
    """The parser of the `lmdeploy` program with `serve api_server`."""
    from lmdeploy.cli.cli import CLI
    from lmdeploy.cli.serve import SubCliServe

    SubCliServe.add_parsers()
    parser: argparse.ArgumentParser = CLI.parser
    return parser
