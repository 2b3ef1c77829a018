"""The store in a folder: content-addressed blobs, immutable manifests, and a folder view of each
artifact (`artifacts.store.layout`).

An artifact exists when its manifest does. The order blobs, manifest, tree makes a kill at any
moment harmless.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from artifacts.manifest import MAX_BYTES, FileEntry, Kind, Manifest, ModelArtifact, Parent
from artifacts.store import files, layout, locks
from artifacts.store.damage import damaged, missing_is_damage
from artifacts.store.layout import What
from artifacts.store.objects import LocalObjects
from artifacts.store.protocol import Folder, Held, Problem, Source
from artifacts.store.scratch import scratch_folder, sweep
from artifacts.store.staging import Staging
from artifacts.store.trees import build_tree
from configs.callbacks import Progress, no_progress
from configs.errors import ArtifactDamaged, ArtifactMissing


class LocalStore:
    """A store in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @classmethod
    def holding(cls, artifact: ModelArtifact) -> LocalStore:
        """The store that an artifact's folder is in."""
        return cls(artifact.path.parents[1])

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    @property
    def location(self) -> str:
        return str(self.root)

    @property
    def objects(self) -> LocalObjects:
        return LocalObjects(self.root)

    def blob(self, sha256: str) -> Path:
        """Where the blob of that hex sha256 lies, if it is there."""
        return self.root / layout.blob_key(sha256)

    def manifest_path(self, digest: str) -> Path:
        """Where the manifest of that digest lies, if it is there."""
        return self.root / layout.manifest_key(digest)

    def tree(self, digest: str) -> Path:
        """The folder view of an artifact, if it was built."""
        return self.root / "trees" / digest

    # -- reading

    def has(self, digest: str) -> bool:
        """Whether the artifact exists."""
        return self.manifest_path(digest).exists()

    def manifest(self, digest: str) -> Manifest:
        """The manifest of an artifact.

        Raises:
            ArtifactMissing: the store has none of that digest.
            ArtifactDamaged: the stored manifest does not hash to its name.
            UnsafeManifest: it does, and tries to leave its folder or contradicts itself.
        """
        path = self.manifest_path(digest)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)  # it may be a link to anything
        except FileNotFoundError:
            raise ArtifactMissing(
                f"no artifact {digest}",
                where=self.location,
                hint="`lmflows ls` shows what there is",
            ) from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise ArtifactDamaged(
                "the manifest does not hash to its name",
                where=str(path),
                hint="run the pipeline again: the step that made it will be repeated",
            )
        return Manifest.from_bytes(data, where=str(path))

    def digests(self) -> list[str]:
        """The digests of all artifacts in the store, oldest first."""
        oldest_first = sorted(self.inventory("manifests"), key=lambda held: held.modified)
        return [held.name for held in oldest_first]

    def open(self, digest: str) -> ModelArtifact:
        """The artifact as a folder; its tree is rebuilt from the blobs if it is gone.

        Raises:
            ArtifactMissing: the store has none of that digest.
            ArtifactDamaged: the tree is gone, and a blob with it.
        """
        manifest = self.manifest(digest)
        tree = self.tree(digest)
        if not tree.is_dir():
            build_tree(self, manifest, self.root, tree)
        return ModelArtifact(digest=digest, kind=manifest.kind, path=tree)

    def verify(self, digest: str) -> list[Problem]:
        """Hash every file of an artifact, in its tree and among the blobs; an empty list means it
        is whole."""
        manifest = self.manifest(digest)
        problems: list[Problem] = []
        tree = self.tree(digest) if self.tree(digest).exists() else None
        if tree is not None:
            known = {entry.path for entry in manifest.files}
            problems += [
                Problem("extra", name) for name in files.tree_files(tree) if name not in known
            ]
        with ThreadPoolExecutor(files.HASH_THREADS) as pool:
            for found in pool.map(lambda entry: self._check(entry, tree), manifest.files):
                problems += [problem for problem in found if problem not in problems]
        return problems

    def _check(self, entry: FileEntry, tree: Path | None) -> list[Problem]:
        """Hash a blob, and the file of the tree if that is another one."""
        blob = self.blob(entry.sha256)
        places = [blob]
        if tree is not None:
            in_tree = tree / entry.path
            if not (in_tree.exists() and blob.exists() and in_tree.samefile(blob)):
                places.append(in_tree)
        name = str(blob) if tree is None else entry.path
        return [
            Problem("changed" if place.exists() else "missing", name)
            for place in places
            if not files.is_intact(place, entry)
        ]

    def absent(self, digest: str) -> list[Problem]:
        """What `verify` finds by existence and size alone: quick, and blind to a flipped byte."""
        problems = []
        for entry in self.manifest(digest).files:
            try:
                if self.blob(entry.sha256).stat().st_size != entry.size:
                    problems.append(Problem("changed", entry.path))
            except OSError:
                problems.append(Problem("missing", entry.path))
        return problems

    def read(self, digest: str, name: str) -> bytes:
        """One small file of an artifact, checked against its hash.

        Raises:
            ArtifactMissing: no such artifact, or no such file in it.
            ArtifactDamaged: it is not what the manifest says.
        """
        entry = self.manifest(digest).entry(name)
        blob = self.blob(entry.sha256)
        with missing_is_damage(self, digest, entry):
            data = blob.read_bytes() if files.is_plausible(blob, entry) else b""
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise damaged(self, digest, Problem("changed", name))
        return data

    def require_whole(self, digest: str) -> None:
        """Raise ArtifactDamaged, naming every file, unless `verify` finds nothing."""
        problems = self.verify(digest)
        if problems:
            raise damaged(self, digest, *problems)

    # -- writing

    @contextmanager
    def staging(self) -> Iterator[Staging]:
        """A folder to fill; it is removed on the way out, unless `commit` has turned it into an
        artifact.

        Raises:
            DiskFull: there is no room for what was written inside.
        """
        self.sweep()
        with files.disk_full_is_an_error(self.location), scratch_folder(self.root) as path:
            yield Staging(path)

    def commit(
        self,
        staging: Staging,
        kind: Kind,
        *,
        parents: Iterable[Parent] = (),
        recipe: dict[str, Any] | None = None,
    ) -> ModelArtifact:
        """Turn a filled folder into an artifact: hash what is not hashed yet, then blobs, manifest,
        tree."""
        with files.disk_full_is_an_error(self.location), self.writing():
            entries = staging.entries()
            for entry in entries:
                self._keep_blob(staging.path / entry.path, entry)
            manifest = Manifest(
                kind=kind,
                files=tuple(entries),
                recipe=recipe or {},
                parents=tuple(sorted(parents, key=lambda parent: (parent.role, parent.digest))),
            )
            self.keep_manifest(manifest)
        return ModelArtifact(digest=manifest.digest, kind=kind, path=self.tree(manifest.digest))

    def _keep_blob(self, path: Path, entry: FileEntry) -> None:
        blob = self.blob(entry.sha256)
        if blob.exists() and (blob.samefile(path) or files.is_intact(blob, entry)):
            return
        scratch = path.with_name(f".{uuid.uuid4().hex}")
        if path.is_symlink():
            os.symlink(path.resolve(), scratch)
        else:
            files.link_or_copy(path, scratch)
        self.move_blob(scratch, entry)

    def push(self, source: Source, digest: str, progress: Progress = no_progress) -> int:
        """Take an artifact over from another folder, linked where the file system allows. Returns
        the bytes that were not there.

        Every blob is hashed once where it lies in the end: before it is counted as there already,
        or after it was written and before it gets its name. The manifest is written last, so a half
        sent artifact is never visible.

        Raises:
            ArtifactDamaged: the source is not what its manifest says; nothing becomes visible.
        """
        manifest = source.manifest(digest)
        new = 0
        done = 0
        with self.staging() as staging, self.writing():
            for entry in manifest.files:
                progress(done / max(1, manifest.size), entry.path)
                if not files.is_intact(self.blob(entry.sha256), entry):
                    self._take_blob(source, digest, entry, staging.path / entry.sha256)
                    new += entry.size
                done += entry.size
            self.keep_manifest(manifest)
        return new

    def _take_blob(self, source: Source, digest: str, entry: FileEntry, scratch: Path) -> None:
        blob = source.blob(entry.sha256)
        with missing_is_damage(source, digest, entry):
            if not files.is_plausible(blob, entry):
                raise damaged(source, digest, Problem("changed", entry.path))
            files.link_or_copy(blob, scratch)
        if files.sha256_file(scratch) != (entry.size, entry.sha256):
            raise damaged(source, digest, Problem("changed", entry.path))
        self.move_blob(scratch, entry)

    def pull(self, digest: str, target: Folder, progress: Progress = no_progress) -> ModelArtifact:
        """Bring an artifact into another folder."""
        target.push(self, digest, progress)
        return target.open(digest)

    def move_blob(self, scratch: Path, entry: FileEntry) -> None:
        """Give a file of our scratch folder, complete, checked and durable, its name among the
        blobs; `keep_manifest` makes the names durable."""
        blob = self.blob(entry.sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch, blob)

    def keep_manifest(self, manifest: Manifest) -> None:
        """Make an artifact visible whose blobs are all here: the last act of whatever brings one
        in."""
        files.fsync_folder(self.root / layout.folder_of("blobs"))
        files.write_atomic(self.manifest_path(manifest.digest), manifest.to_bytes())
        build_tree(self, manifest, self.root, self.tree(manifest.digest))

    def sweep(self) -> int:
        """Remove what processes that are gone left half written; returns how many folders."""
        return sweep(self.root)

    # -- garbage

    def touch(self, digest: str) -> None:
        """Make an artifact and its blobs young again, so that a garbage collection beside us spares
        them."""
        blobs = [self.blob(entry.sha256) for entry in self.manifest(digest).files]
        for path in (self.manifest_path(digest), *blobs):
            # a borrowed file of somebody else's keeps its time: whose manifest is young is kept
            with suppress(OSError):
                os.utime(path, follow_symlinks=False)

    def inventory(self, what: What) -> Iterator[Held]:
        """All manifests or blobs, in any order."""
        folder = self.root / layout.folder_of(what)
        with suppress(FileNotFoundError), os.scandir(folder) as found:
            for item in found:
                name = layout.name_of(what, item.name)
                if name is None:
                    continue
                with suppress(FileNotFoundError):
                    facts = item.stat(follow_symlinks=False)
                    yield Held(name=name, size=facts.st_size, modified=facts.st_mtime)

    def discard(self, what: What, name: str, *, unless_after: float) -> bool:
        """Remove a manifest with its tree, or a blob; False if it was written or touched after that
        time."""
        path = self.root / layout.key_of(what, name)
        with suppress(FileNotFoundError):
            if path.lstat().st_mtime > unless_after:
                return False
            path.unlink()
        if what == "manifests":
            with scratch_folder(self.root) as scratch, suppress(FileNotFoundError):
                os.rename(self.tree(name), scratch / "old")
        return True

    def collecting(self) -> AbstractContextManager[None]:
        """Nobody else collects, and nobody writes: those who come wait."""
        return locks.collecting(self.root)

    def writing(self) -> AbstractContextManager[None]:
        """Between the look whether a blob is there and the manifest that names it, nobody
        collects."""
        return locks.writing(self.root)

    def clear_leftovers(self, *, older_than: float) -> int:
        """Remove what processes that are gone left half written, however young it is."""
        return self.sweep()
