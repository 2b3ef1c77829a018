"""`lmflows ls`, `show` and `verify`: the artifacts on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from configs.errors import LmflowsError
from configs.units import mb
from flows.cli.terminal import out, say, say_err, show_rows
from flows.run.lookup import find, resolve, stores

Digest = Annotated[str, typer.Argument(help="a digest, or its first digits")]


def ls(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """List the artifacts on this machine, oldest first, and the stages that point to them."""
    from artifacts.registry.refs import Registry
    from flows.cli.registry_tables import parents_as_text, stages_by_digest

    known = stores()
    stages = stages_by_digest(ref for store in known for ref in Registry(store.objects).refs())
    rows = []
    for digest in dict.fromkeys(digest for store in known for digest in store.digests()):
        try:
            manifest = find(digest).manifest(digest)
        except LmflowsError as error:
            say_err(str(error))
            continue
        uploaded = any(store.manifest_path(digest).exists() for store in known[1:])
        rows.append(
            {
                "digest": digest if as_json else digest[:12],
                "kind": manifest.kind,
                "size": manifest.size if as_json else mb(manifest.size),
                "files": len(manifest.files),
                "uploaded": "yes" if uploaded else "",
                "stages": ", ".join(stages.get(digest, [])),
                "parents": parents_as_text(manifest),
            }
        )
    show_rows(rows, as_json, "no artifacts yet")


def show(digest: Digest) -> None:
    """Show an artifact: its report if it is one, else its manifest."""
    from rich.markdown import Markdown

    from artifacts.records.report import MARKDOWN

    store, full = resolve(digest)
    artifact = store.open(full)
    if artifact.kind == "report":
        text = (artifact.path / MARKDOWN).read_text()
        out.print(Markdown(text) if out.is_terminal else text)
    else:
        out.print_json(store.manifest(full).model_dump_json())
        say(f"folder: {artifact.path}")


def verify(digest: Digest) -> None:
    """Hash every file of an artifact, wherever it lies; status 1 if one is changed, missing or
    extra."""
    _, full = resolve(digest)
    damaged = False
    for store in stores():
        if not store.manifest_path(full).exists():
            continue
        problems = store.verify(full)
        damaged = damaged or bool(problems)
        for problem in problems:
            say(f"{store.root.name}: {problem}")
        if not problems:
            files = len(store.manifest(full).files)
            say(f"{store.root.name}: {files} files, all as in manifest {full}")
    if damaged:
        raise typer.Exit(1)
