"""What the tests on Amazon share: names, keys, and what arrived where."""

from __future__ import annotations

import re

from tests.support.s3_amazon import HOME, Amazon, Key
from tests.support.s3_server import BUCKET

DOTTED = "my.models"
VIRTUAL = f"{BUCKET}.s3.{HOME}.amazonaws.com"
REGIONAL = f"s3.{HOME}.amazonaws.com"
GLOBAL = f"{BUCKET}.s3.amazonaws.com"
KEY = "test"
OTHER = Key("another-secret-that-no-message-may-show", "a-token-that-no-message-may-show")


def hosts(amazon: Amazon) -> set[str]:
    """Where all went, and nothing went elsewhere."""
    found = {seen.host for seen in amazon.requests}
    assert set(amazon.tunnels) == {seen.server_name for seen in amazon.requests} == found
    return found


def tops(amazon: Amazon) -> set[str]:
    """The paths that were asked for, without the store's own keys."""
    paths = {seen.target.partition("?")[0] for seen in amazon.requests}
    return {
        re.sub(r"/(blobs|manifests|refs|signatures|probes|gc\.json)(/.*)?$", "", path)
        for path in paths
    }
