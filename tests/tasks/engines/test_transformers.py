"""The engine transformers: how its server is started."""

from __future__ import annotations

import sys
from pathlib import Path

from configs.engines import EngineTransformers
from tasks.serving.endpoints import RECORD
from tests.support.endpoint_records import served, words_of


def test_the_reference_server_is_told_only_where_its_record_is(home: Path, tmp_path: Path) -> None:
    endpoint = served(tmp_path, keys=("secret",)).model_copy(
        update={"engine": EngineTransformers(name="transformers")}
    )
    record = endpoint.folder / RECORD
    assert words_of(endpoint) == [
        sys.executable,
        "-P",
        "-m",
        "tasks.serving.reference_server",
        str(record),
    ]
