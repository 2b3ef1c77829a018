"""What is being written is swept only when its process is gone."""

from __future__ import annotations

import subprocess
import sys

from artifacts.store.local import LocalStore
from configs.paths import PROJECT


def test_sweeping_spares_the_living(store: LocalStore) -> None:
    with store.staging() as staging:
        staging.write("config.json", b"{}")
        subprocess.run(
            [
                sys.executable,
                "-c",
                (
                    "import sys; from pathlib import Path; from artifacts.store.local import"
                    " LocalStore\nLocalStore(Path(sys.argv[1])).sweep()"
                ),
                store.root,
            ],
            cwd=PROJECT,
            check=True,
        )
        assert staging.names() == ["config.json"]
