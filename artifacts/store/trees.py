"""The folder view of an artifact, which a library can load: one link to a blob for each file."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from artifacts.manifest import Manifest
from artifacts.store import files
from artifacts.store.damage import missing_is_damage
from artifacts.store.protocol import Source
from artifacts.store.scratch import scratch_folder


def build_tree(source: Source, manifest: Manifest, root: Path, tree: Path) -> None:
    """Make `tree` the view of an artifact whose blobs `source` has, unless it is that already.

    It is built in a scratch folder of `root`, on the same file system, and appears whole.

    Raises:
        ArtifactDamaged: a blob is gone.
    """
    if _is_current(source, manifest, tree):
        return
    tree.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(root) as scratch:
        new = scratch / "new"
        old = scratch / "old"
        for entry in manifest.files:
            target = new / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with missing_is_damage(source, manifest.digest, entry):
                files.link_or_symlink(source.blob(entry.sha256), target)
        # a tree is there: from an earlier run, or from another process just now
        while not files.rename_folder(new, tree):
            with suppress(FileNotFoundError):
                os.rename(tree, old)
            shutil.rmtree(old, ignore_errors=True)
    files.fsync_folder(tree.parent)


def _is_current(source: Source, manifest: Manifest, tree: Path) -> bool:
    """Whether a tree has the manifest's files and each is its blob; what the bytes are is for
    `verify` to find out."""
    try:
        return files.tree_files(tree) == [entry.path for entry in manifest.files] and all(
            (tree / entry.path).samefile(source.blob(entry.sha256)) for entry in manifest.files
        )
    except OSError:
        return False
