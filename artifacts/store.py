"""The local store: content-addressed blobs, immutable manifests, and a folder view of each artifact.

Layout below `root` (an S3 prefix has the same, without `trees` and `tmp`):

    blobs/sha256/<hex>            a file's bytes, once
    manifests/sha256/<hex>.json   canonical JSON; the hex is the artifact's digest
    refs/<model>/<stage>.json     the registry (artifacts.registry)
    trees/<hex>/                  the artifact as a folder that a library can load: hard links to the blobs
    tmp/<random>/                 what is being written, locked; removed on failure, swept when its process is gone

An artifact exists when its manifest does. The order blobs, manifest, tree makes a kill at any moment harmless.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from artifacts import files
from artifacts.manifest import FileEntry, Kind, Manifest, ModelArtifact, Parent, check_path
from configs.errors import ArtifactDamaged, ArtifactMissing

HASH_THREADS = 4  # sha256 releases the GIL; more threads than this wait for the disk


@dataclass(frozen=True)
class Problem:
    """One way in which an artifact differs from its manifest."""

    what: Literal["changed", "missing", "extra"]
    path: str

    def __str__(self) -> str:
        return f"{self.what}: {self.path}"


class Staging:
    """A folder being filled on its way to becoming an artifact. Made by `LocalStore.stage()`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, tuple[int, str]] = {}
        self.borrowed: set[str] = set()

    def target(self, name: str) -> Path:
        """The path to write `name` to, with its parent folders made."""
        target = self.path / check_path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def write(self, name: str, data: bytes) -> None:
        with self.target(name).open("xb") as file:  # never into a borrowed file
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.known[name] = (len(data), hashlib.sha256(data).hexdigest())

    def copy(self, source: Path, name: str) -> None:
        """Copy a file in, hashed on the way."""
        self.known[name] = files.copy_hashed(source, self.target(name))

    def borrow(self, source: Path, name: str) -> None:
        """Link a file that belongs to somebody else: no copy is made and its mode is left alone."""
        files.link_or_symlink(source, self.target(name))
        self.borrowed.add(name)

    def names(self) -> list[str]:
        """Every file in the folder, as sorted POSIX paths."""
        return tree_files(self.path)


class LocalStore:
    """A store in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r})"

    def blob(self, sha256: str) -> Path:
        return self.root / "blobs" / "sha256" / sha256

    def manifest_path(self, digest: str) -> Path:
        return self.root / "manifests" / "sha256" / f"{digest}.json"

    def tree(self, digest: str) -> Path:
        return self.root / "trees" / digest

    # -- reading -----------------------------------------------------------------------------------------------

    def manifest(self, digest: str) -> Manifest:
        """The manifest of an artifact.

        Raises:
            ArtifactMissing: the store has none of that digest.
            ArtifactDamaged: the stored manifest does not hash to its name.
        """
        path = self.manifest_path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise ArtifactMissing(f"no artifact {digest}", where=str(self.root),
                                  hint="`lmflows ls` shows what there is") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise ArtifactDamaged("the manifest does not hash to its name", where=str(path),
                                  hint="run the pipeline again: the step that made it will be repeated")
        return Manifest.from_bytes(data, where=str(path))

    def digests(self) -> list[str]:
        """The digests of all artifacts in the store, oldest first."""
        paths = (self.root / "manifests" / "sha256").glob("*.json")
        return [path.stem for path in sorted(paths, key=lambda path: path.stat().st_mtime)]

    def resolve(self, prefix: str) -> str:
        """The one digest that starts with `prefix` (at least 6 hex digits).

        Raises:
            ArtifactMissing: none does, or more than one.
        """
        digits = prefix.removeprefix("sha256:")
        if len(digits) < 6:
            raise ArtifactMissing(f"{prefix!r} is too short to name an artifact", where=str(self.root), hint="give at least 6 digits")
        found = [digest for digest in self.digests() if digest.startswith(digits)]
        if len(found) != 1:
            what = f"{len(found)} artifacts start with" if found else "no artifact starts with"
            raise ArtifactMissing(f"{what} {prefix!r}", where=str(self.root), hint="`lmflows ls` shows what there is")
        return found[0]

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
        """Hash every file of an artifact, in its tree and among the blobs; an empty list means it is whole."""
        manifest = self.manifest(digest)
        tree = self.tree(digest)
        problems = [] if not tree.exists() else [
            Problem("extra", name) for name in sorted(set(tree_files(tree)) - {entry.path for entry in manifest.files})]

        def check(entry: FileEntry) -> list[Problem]:
            places = [self.blob(entry.sha256)]
            if tree.exists():
                in_tree = tree / entry.path
                if not (in_tree.exists() and places[0].exists() and in_tree.samefile(places[0])):
                    places.append(in_tree)
            return [Problem("missing" if not place.exists() else "changed",
                            entry.path if place.is_relative_to(tree) or tree.exists() else str(place))
                    for place in places if not is_intact(place, entry)]

        with ThreadPoolExecutor(HASH_THREADS) as pool:
            for found in pool.map(check, manifest.files):
                problems += [problem for problem in found if problem not in problems]
        return problems

    def require_whole(self, digest: str) -> None:
        """Raise ArtifactDamaged, naming every file, unless `verify` finds nothing."""
        if problems := self.verify(digest):
            raise _damaged(self, digest, "; ".join(map(str, problems)))

    # -- writing -----------------------------------------------------------------------------------------------

    @contextmanager
    def stage(self) -> Iterator[Staging]:
        """A folder to fill; it is removed on the way out, unless `commit` has turned it into an artifact."""
        self.sweep()
        with files.disk_full_is_an_error(str(self.root)), self._scratch() as path:
            yield Staging(path)

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A folder below `tmp` that is ours as long as we live: its lock goes when the process does, however it goes."""
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

    def commit(self, staging: Staging, kind: Kind, *, parents: Iterable[Parent] = (),
               recipe: dict[str, Any] | None = None) -> ModelArtifact:
        """Turn a filled folder into an artifact: hash what is not hashed yet, then blobs, manifest, tree."""
        with files.disk_full_is_an_error(str(self.root)):
            entries = self._hash(staging)
            for entry in entries:
                self._keep_blob(staging.path / entry.path, entry)
            manifest = Manifest(kind=kind, files=tuple(entries), recipe=recipe or {},
                                parents=tuple(sorted(parents, key=lambda parent: (parent.role, parent.digest))))
            files.write_atomic(self.manifest_path(manifest.digest), manifest.to_bytes())
            self._build_tree(manifest)
        return ModelArtifact(digest=manifest.digest, kind=kind, path=self.tree(manifest.digest))

    def push(self, source: LocalStore, digest: str) -> Manifest:
        """Take an artifact over from another store, linked where the file system allows.

        Every blob is hashed once where it lies in the end: before it is counted as there already, or after it was
        written and before it gets its name. The manifest is written last, so a half sent artifact is never visible.
        """
        manifest = source.manifest(digest)
        with self.stage() as staging:
            for entry in manifest.files:
                if not is_intact(self.blob(entry.sha256), entry):
                    scratch = staging.path / entry.sha256
                    with _missing_is_damage(source, digest, entry):
                        files.link_or_copy(source.blob(entry.sha256), scratch)
                    if files.sha256_file(scratch) != (entry.size, entry.sha256):
                        raise _damaged(source, digest, str(Problem("changed", entry.path)))
                    self._move_blob(scratch, entry)
            files.write_atomic(self.manifest_path(digest), manifest.to_bytes())
            self._build_tree(manifest)
        return manifest

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

        with ThreadPoolExecutor(HASH_THREADS) as pool:  # one thread waits for the disk while another computes
            synced = [pool.submit(sync, name) for name in staging.names() if name not in staging.known and name not in staging.borrowed]
            entries = list(pool.map(entry, staging.names()))
            for job in synced:
                job.result()
            return entries

    def _keep_blob(self, path: Path, entry: FileEntry) -> None:
        blob = self.blob(entry.sha256)
        if blob.exists() and (blob.samefile(path) or is_intact(blob, entry)):
            return
        scratch = path.with_name(f".{uuid.uuid4().hex}")
        if path.is_symlink():
            os.symlink(path.resolve(), scratch)
        else:
            files.link_or_copy(path, scratch)
        self._move_blob(scratch, entry)

    def _move_blob(self, scratch: Path, entry: FileEntry) -> None:
        blob = self.blob(entry.sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        os.replace(scratch, blob)
        files.fsync_folder(blob.parent)

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
            while not _rename_folder(new, tree):  # a tree is there: from an earlier run, or from another process just now
                with suppress(FileNotFoundError):
                    os.rename(tree, old)
                shutil.rmtree(old, ignore_errors=True)
        files.fsync_folder(tree.parent)

    def _is_current(self, tree: Path, manifest: Manifest) -> bool:
        """Whether a tree has the manifest's files and each is its blob; what the bytes are is `verify`'s business."""
        try:
            return tree_files(tree) == [entry.path for entry in manifest.files] and all(
                (tree / entry.path).samefile(self.blob(entry.sha256)) for entry in manifest.files)
        except OSError:
            return False


def tree_files(folder: Path) -> list[str]:
    """Every file below a folder (links included, also those to folders), as sorted POSIX paths relative to it."""
    return sorted(path.relative_to(folder).as_posix() for base, folders, names in os.walk(folder)
                  for path in map(Path(base).joinpath, [*folders, *names]) if path.is_symlink() or not path.is_dir())


def is_intact(path: Path, entry: FileEntry) -> bool:
    """Whether a file exists and has the size and sha256 of its entry."""
    try:
        return path.stat().st_size == entry.size and files.sha256_file(path)[1] == entry.sha256
    except OSError:
        return False


def _damaged(store: LocalStore, digest: str, what: str) -> ArtifactDamaged:
    return ArtifactDamaged(what, where=f"artifact {digest[:12]} in {store.root}",
                           hint="run the pipeline again: the step that made it will be repeated")


@contextmanager
def _missing_is_damage(store: LocalStore, digest: str, entry: FileEntry) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise _damaged(store, digest, str(Problem("missing", entry.path))) from None


def _rename_folder(source: Path, target: Path) -> bool:
    """Rename a folder; False if another one with files in it has the name."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _lock(handle: int) -> bool:
    """Take the lock of an open folder if nobody has it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
