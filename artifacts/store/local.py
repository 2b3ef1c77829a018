"""The local store: content-addressed blobs, immutable manifests, and a folder view of each
artifact.

Layout below `root` (an S3 prefix has the same, without `trees` and `tmp`):

    blobs/sha256/<hex> a file's bytes, once manifests/sha256/<hex>.json canonical JSON; the hex is
    the artifact's digest refs/<model>/<stage>.json the registry (artifacts.registry.refs)
    signatures/, serving/ who has signed what, and who serves it (artifacts.registry.signing,
    artifacts.registry.serving) trees/<hex>/ the artifact as a folder that a library can load: hard
    links to the blobs tmp/<random>/ what is being written, locked; removed on failure, swept when
    its process is gone

An artifact exists when its manifest does. The order blobs, manifest, tree makes a kill at any
moment harmless.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from artifacts.manifest import MAX_BYTES, FileEntry, Kind, Manifest, ModelArtifact, Parent
from artifacts.store import files
from artifacts.store.objects import LocalObjects
from artifacts.store.protocol import Held, Problem, What
from artifacts.store.staging import Staging
from configs.callbacks import Progress, no_progress
from configs.errors import ArtifactDamaged, ArtifactMissing, StoreBusy

GATE_SECONDS = 600.0  # hashing a large artifact takes minutes
HASH_THREADS = 4  # sha256 releases the GIL; more threads than this wait for the disk


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
        return self.root / "blobs" / "sha256" / sha256

    def manifest_path(self, digest: str) -> Path:
        return self.root / "manifests" / "sha256" / f"{digest}.json"

    def tree(self, digest: str) -> Path:
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
        """
        path = self.manifest_path(digest)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)  # it may be a link to anything
        except FileNotFoundError:
            raise ArtifactMissing(
                f"no artifact {digest}",
                where=str(self.root),
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
        return [
            held.name
            for held in sorted(self.inventory("manifests"), key=lambda held: held.modified)
        ]

    def open(self, digest: str) -> ModelArtifact:
        """The artifact as a folder; its tree is rebuilt from the blobs if it is gone.

        Raises:
            ArtifactMissing: the store has none of that digest.
            ArtifactDamaged: the tree is gone, and a blob with it.
        """
        manifest = self.manifest(digest)
        if not self.tree(digest).is_dir():
            self._build_tree(manifest)
        return ModelArtifact(digest=digest, kind=manifest.kind, path=self.tree(digest))

    def verify(self, digest: str) -> list[Problem]:
        """Hash every file of an artifact, in its tree and among the blobs; an empty list means it
        is whole."""
        manifest = self.manifest(digest)
        tree = self.tree(digest)
        problems = (
            []
            if not tree.exists()
            else [
                Problem("extra", name)
                for name in sorted(
                    set(files.tree_files(tree)) - {entry.path for entry in manifest.files}
                )
            ]
        )

        def check(entry: FileEntry) -> list[Problem]:
            places = [self.blob(entry.sha256)]
            if tree.exists():
                in_tree = tree / entry.path
                if not (in_tree.exists() and places[0].exists() and in_tree.samefile(places[0])):
                    places.append(in_tree)
            return [
                Problem(
                    "missing" if not place.exists() else "changed",
                    entry.path if place.is_relative_to(tree) or tree.exists() else str(place),
                )
                for place in places
                if not files.is_intact(place, entry)
            ]

        with ThreadPoolExecutor(HASH_THREADS) as pool:
            for found in pool.map(check, manifest.files):
                problems += [problem for problem in found if problem not in problems]
        return problems

    def absent(self, digest: str) -> list[Problem]:
        """What `verify` finds by existence and size alone: quick, and blind to a flipped byte."""

        def check(entry: FileEntry) -> Problem | None:
            try:
                return (
                    None
                    if self.blob(entry.sha256).stat().st_size == entry.size
                    else Problem("changed", entry.path)
                )
            except OSError:
                return Problem("missing", entry.path)

        return [problem for problem in map(check, self.manifest(digest).files) if problem]

    def read(self, digest: str, name: str) -> bytes:
        """One small file of an artifact, checked against its hash."""
        entry = self.manifest(digest).entry(name)
        with _missing_is_damage(self, digest, entry):
            data = (
                self.blob(entry.sha256).read_bytes()
                if files.is_plausible(self.blob(entry.sha256), entry)
                else b""
            )
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise _damaged(self, digest, str(Problem("changed", name)))
        return data

    def require_whole(self, digest: str) -> None:
        """Raise ArtifactDamaged, naming every file, unless `verify` finds nothing."""
        if problems := self.verify(digest):
            raise _damaged(self, digest, "; ".join(map(str, problems)))

    # -- writing

    @contextmanager
    def staging(self) -> Iterator[Staging]:
        """A folder to fill; it is removed on the way out, unless `commit` has turned it into an
        artifact."""
        self.sweep()
        with files.disk_full_is_an_error(str(self.root)), self._scratch() as path:
            yield Staging(path)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder below `tmp` that is ours as long as we live: its lock goes when the process
        does, however it goes."""
        while True:
            path = self.root / "tmp" / uuid.uuid4().hex
            path.mkdir(parents=True)
            try:
                handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue  # a sweep was faster
            if _lock(handle) and path.exists():
                break
            os.close(handle)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            os.close(handle)

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
        with files.disk_full_is_an_error(str(self.root)), self.writing():
            entries = self._hash(staging)
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

    def push(self, source: LocalStore, digest: str, progress: Progress = no_progress) -> int:
        """Take an artifact over from another store, linked where the file system allows. Returns
        the bytes that were not there.

        Every blob is hashed once where it lies in the end: before it is counted as there already,
        or after it was written and before it gets its name. The manifest is written last, so a half
        sent artifact is never visible.
        """
        manifest, new, done = source.manifest(digest), 0, 0
        with self.staging() as staging, self.writing():
            for entry in manifest.files:
                progress(done / max(1, manifest.size), entry.path)
                if not files.is_intact(self.blob(entry.sha256), entry):
                    scratch = staging.path / entry.sha256
                    with _missing_is_damage(source, digest, entry):
                        if not files.is_plausible(source.blob(entry.sha256), entry):
                            raise _damaged(source, digest, str(Problem("changed", entry.path)))
                        files.link_or_copy(source.blob(entry.sha256), scratch)
                    if files.sha256_file(scratch) != (entry.size, entry.sha256):
                        raise _damaged(source, digest, str(Problem("changed", entry.path)))
                    self.move_blob(scratch, entry)
                    new += entry.size
                done += entry.size
            self.keep_manifest(manifest)
        return new

    def pull(
        self, digest: str, target: LocalStore, progress: Progress = no_progress
    ) -> ModelArtifact:
        """Bring an artifact into another folder."""
        target.push(self, digest, progress)
        return target.open(digest)

    def keep_manifest(self, manifest: Manifest) -> None:
        """Make an artifact visible whose blobs are all here: the last act of whatever brings one
        in."""
        files.fsync_folder(self.root / "blobs" / "sha256")
        files.write_atomic(self.manifest_path(manifest.digest), manifest.to_bytes())
        self._build_tree(manifest)

    def sweep(self) -> None:
        """Remove what processes that are gone left half written."""
        for path in (self.root / "tmp").glob("*"):
            with suppress(FileNotFoundError):
                handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    if _lock(handle):
                        shutil.rmtree(path, ignore_errors=True)
                finally:
                    os.close(handle)

    # -- garbage

    def touch(self, digest: str) -> None:
        """Make an artifact and its blobs young again, so that a garbage collection beside us spares
        them."""
        for path in (
            self.manifest_path(digest),
            *(self.blob(entry.sha256) for entry in self.manifest(digest).files),
        ):
            # a borrowed file of somebody else's keeps its time: whose manifest is young is kept
            with suppress(OSError):
                os.utime(path, follow_symlinks=False)

    def inventory(self, what: What) -> Iterator[Held]:
        """All manifests or blobs, in any order."""
        with suppress(FileNotFoundError), os.scandir(self.root / what / "sha256") as found:
            for item in found:
                name = item.name.removesuffix(".json") if what == "manifests" else item.name
                if len(name) == 64:  # not what `write_atomic` is writing
                    with suppress(FileNotFoundError):
                        facts = item.stat(follow_symlinks=False)
                        yield Held(name=name, size=facts.st_size, modified=facts.st_mtime)

    def discard(self, what: What, name: str, *, unless_after: float) -> bool:
        """Remove a manifest with its tree, or a blob; False if it was written or touched after that
        time."""
        path = self.manifest_path(name) if what == "manifests" else self.blob(name)
        with suppress(FileNotFoundError):
            if path.lstat().st_mtime > unless_after:
                return False
            path.unlink()
        if what == "manifests":
            with self._scratch() as scratch, suppress(FileNotFoundError):
                os.rename(self.tree(name), scratch / "old")
        return True

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Nobody else collects, and nobody writes: those who come wait."""
        with self._gate(fcntl.LOCK_EX):
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Between the look whether a blob is there and the manifest that names it, nobody
        collects."""
        with self._gate(fcntl.LOCK_SH):
            yield

    @contextmanager
    def _gate(self, how: int) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            deadline = time.monotonic() + GATE_SECONDS
            while not _lock(handle, how):
                if time.monotonic() > deadline:
                    raise StoreBusy(
                        f"somebody else uses it for more than {GATE_SECONDS:.0f} s",
                        where=self.location,
                        hint=(
                            "`lmflows registry gc` and what writes to a store wait for each other:"
                            " try again when it is done"
                        ),
                    )
                time.sleep(0.05)
            yield
        finally:
            os.close(handle)

    def clear_leftovers(self, *, older_than: float) -> int:
        """Remove what processes that are gone left half written, however young it is."""
        before = len(list((self.root / "tmp").glob("*")))
        self.sweep()
        return before - len(list((self.root / "tmp").glob("*")))

    def _hash(self, staging: Staging) -> list[FileEntry]:
        def sync(name: str) -> None:
            with (staging.path / name).open("rb") as file:
                os.fsync(file.fileno())

        def entry(name: str) -> FileEntry:
            path = staging.path / name
            if name not in staging.known:
                staging.known[name] = files.sha256_file(path)
            if name not in staging.borrowed:
                path.chmod(0o444)
            size, sha256 = staging.known[name]
            return FileEntry(path=name, size=size, sha256=sha256)

        # one thread waits for the disk while another computes
        with ThreadPoolExecutor(HASH_THREADS) as pool:
            synced = [
                pool.submit(sync, name)
                for name in staging.names()
                if name not in staging.known and name not in staging.borrowed
            ]
            entries = list(pool.map(entry, staging.names()))
            for job in synced:
                job.result()
            return entries

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

    def move_blob(self, scratch: Path, entry: FileEntry) -> None:
        """Give a file of our scratch folder, complete, checked and durable, its name among the
        blobs; `keep_manifest` makes the names durable."""
        blob = self.blob(entry.sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch, blob)

    def _build_tree(self, manifest: Manifest) -> None:
        tree = self.tree(manifest.digest)
        if self._is_current(tree, manifest):
            return
        tree.parent.mkdir(parents=True, exist_ok=True)
        with self._scratch() as scratch:
            new, old = scratch / "new", scratch / "old"
            for entry in manifest.files:
                target = new / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                with _missing_is_damage(self, manifest.digest, entry):
                    files.link_or_symlink(self.blob(entry.sha256), target)
            # a tree is there: from an earlier run, or from another process just now
            while not files.rename_folder(new, tree):
                with suppress(FileNotFoundError):
                    os.rename(tree, old)
                shutil.rmtree(old, ignore_errors=True)
        files.fsync_folder(tree.parent)

    def _is_current(self, tree: Path, manifest: Manifest) -> bool:
        """Whether a tree has the manifest's files and each is its blob; what the bytes are is
        `verify`'s business."""
        try:
            return files.tree_files(tree) == [entry.path for entry in manifest.files] and all(
                (tree / entry.path).samefile(self.blob(entry.sha256)) for entry in manifest.files
            )
        except OSError:
            return False


def _damaged(store: LocalStore, digest: str, what: str) -> ArtifactDamaged:
    return ArtifactDamaged(
        what,
        where=f"artifact {digest[:12]} in {store.root}",
        hint="run the pipeline again: the step that made it will be repeated",
    )


@contextmanager
def _missing_is_damage(store: LocalStore, digest: str, entry: FileEntry) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise _damaged(store, digest, str(Problem("missing", entry.path))) from None


def _lock(handle: int, how: int = fcntl.LOCK_EX) -> bool:
    """Take the lock of an open file or folder if nobody has it."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
