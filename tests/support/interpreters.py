"""Interpreters of other environments, as runtimes have them."""

from __future__ import annotations

import sysconfig
import venv
from pathlib import Path


def another_python(folder: Path) -> Path:
    """The interpreter of a new environment with no packages of its own, which sees those of this
    one."""
    venv.create(folder, symlinks=True, with_pip=False)
    [packages] = folder.glob("lib/python3*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def interpreter(folder: Path, version: str | None) -> Path:
    """A virtual environment, as a container would bring it, with a distribution called lmdeploy of
    that version."""
    venv.create(folder, symlinks=True)
    if version:
        info = next(folder.glob("lib/python3*/site-packages")) / f"lmdeploy-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: lmdeploy\nVersion: {version}\n"
        )
    return folder / "bin" / "python"
