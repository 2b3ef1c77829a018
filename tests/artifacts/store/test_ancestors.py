"""Lineage has ancestors first, however deep."""

from __future__ import annotations

from pathlib import Path

from artifacts.manifest import Parent
from artifacts.store.ancestors import lineage
from artifacts.store.local import LocalStore


def commit(store: LocalStore, name: str, *parents: str) -> str:
    with store.staging() as staging:
        staging.write(name, name.encode())
        return store.commit(
            staging,
            "fp16",
            parents=[
                Parent(role=f"p{number}", digest=digest) for number, digest in enumerate(parents)
            ],
        ).digest


def test_lineage_has_ancestors_first_and_each_once(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    root = commit(store, "root")
    left, right = commit(store, "left", root), commit(store, "right", root)
    leaf = commit(store, "leaf", left, right)
    assert lineage(store, [leaf, right]) == [root, left, right, leaf]


def test_a_lineage_deeper_than_the_stack_is_walked(tmp_path: Path) -> None:
    store, digest, wanted = LocalStore(tmp_path), "", []
    for number in range(1200):
        digest = commit(store, f"file{number}", *([digest] if digest else []))
        wanted.append(digest)
    assert lineage(store, [digest]) == wanted
