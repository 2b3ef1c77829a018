"""The S3 store: the interface and layout of the local store below a prefix of a bucket, on AWS S3
and servers that speak its protocol.

    blobs/sha256/<hex> a file's bytes, once manifests/sha256/<hex>.json canonical JSON; the hex is
    the artifact's digest refs/, signatures/, serving/ small files (artifacts.store.s3.objects);
    refs change by conditional writes gc.json who collects garbage, and until when probes/<random> a
    moment's test of the server's conditional writes
"""

from __future__ import annotations

import hashlib
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from botocore import exceptions as aws

from artifacts.manifest import MAX_BYTES, FileEntry, Manifest, ModelArtifact
from artifacts.store.local import LocalStore
from artifacts.store.protocol import Held, Problem, What
from artifacts.store.s3 import lease as s3_lease
from artifacts.store.s3.client import Bucket, Tuning, status_of
from artifacts.store.s3.download import Download, require_space
from artifacts.store.s3.objects import S3Objects
from artifacts.store.s3.transfer import Differs, Team, differs
from artifacts.store.s3.upload import Upload, blob_key, fits
from configs.callbacks import Progress, no_progress
from configs.errors import ArtifactDamaged, ArtifactMissing, StoreBusy, TransferError
from configs.location import S3Location

__all__ = ["S3Objects", "S3Store", "Tuning"]

ROUNDS = 10  # of sending blobs that were collected under our hands


class S3Store:
    """A store below an S3 prefix. Nothing is asked of the server before the first use; one object
    serves all threads."""

    def __init__(self, location: S3Location, tuning: Tuning | None = None) -> None:
        self.bucket = Bucket(location, tuning)
        self._objects = S3Objects(self.bucket)

    def __repr__(self) -> str:
        return f"S3Store({self.location!r})"

    @property
    def location(self) -> str:
        return str(self.bucket.location)

    @property
    def objects(self) -> S3Objects:
        return self._objects

    # -- reading

    def has(self, digest: str) -> bool:
        return self.bucket.retrying(lambda: self.bucket.head(manifest_key(digest))) is not None

    def manifest(self, digest: str) -> Manifest:
        for _ in range(2):  # the first difference may have come on the way
            found = self.bucket.read(manifest_key(digest), MAX_BYTES + 1)
            if found is None:
                raise ArtifactMissing(
                    f"no artifact {digest}",
                    where=self.location,
                    hint="`lmflows registry ls --artifacts` shows what there is",
                )
            if hashlib.sha256(found[0]).hexdigest() == digest:
                return Manifest.from_bytes(
                    found[0], where=f"{manifest_key(digest)} in {self.location}"
                )
        raise ArtifactDamaged(
            "the manifest does not hash to its name",
            where=f"{manifest_key(digest)} in {self.location}",
            hint=f"`lmflows registry push {digest[:12]}` from a machine that has it whole",
        )

    def digests(self) -> list[str]:
        return [
            held.name
            for held in sorted(self.inventory("manifests"), key=lambda held: held.modified)
        ]

    def verify(self, digest: str) -> list[Problem]:
        return self._check(digest, lambda team, entry: differs(team, blob_key(entry.sha256), entry))

    def absent(self, digest: str) -> list[Problem]:
        def look(team: Team, entry: FileEntry) -> str | None:
            facts = team.retrying(lambda: self.bucket.head(blob_key(entry.sha256)))
            return None if fits(facts, entry) else "changed" if facts else "missing"

        return self._check(digest, look)

    def _check(self, digest: str, look: Callable[[Team, FileEntry], str | None]) -> list[Problem]:
        """What is wrong with each file; equal files are looked at once."""
        manifest = self.manifest(digest)
        with Team(self.bucket).working() as team:
            entries = _distinct(manifest)
            found = dict(
                zip(
                    (entry.sha256 for entry in entries),
                    team.each(lambda entry: look(team, entry), entries),
                    strict=True,
                )
            )
        return [
            Problem(what, entry.path)  # type: ignore[arg-type]
            for entry in manifest.files
            if (what := found[entry.sha256])
        ]

    def read(self, digest: str, name: str) -> bytes:
        entry = self.manifest(digest).entry(name)
        found = None
        for _ in range(2):
            found = self.bucket.read(blob_key(entry.sha256))
            if found and hashlib.sha256(found[0]).hexdigest() == entry.sha256:
                return found[0]
        raise self._damaged(digest, [(entry, "changed" if found else "missing")])

    # -- writing

    def push(self, source: LocalStore, digest: str, progress: Progress = no_progress) -> int:
        manifest = source.manifest(digest)
        entries, sent = _distinct(manifest), 0
        with Team(self.bucket).working() as team:
            upload = Upload(team)

            def keep(entry: FileEntry) -> int:
                try:
                    return upload.keep(source.blob(entry.sha256), entry)
                except Differs as error:
                    raise ArtifactDamaged(
                        f"{error.what}: {entry.path}",
                        where=f"artifact {digest[:12]} in {source.root}",
                        hint="run the pipeline again: the step that made it will be repeated",
                    ) from error

            def report(done: int) -> None:
                progress(
                    min(1.0, done / max(1, manifest.size)),
                    f"{done / 1e6:.0f} of {manifest.size / 1e6:.0f} MB",
                )

            data, before = manifest.to_bytes(), s3_lease.look(self.objects)
            for _ in range(ROUNDS):
                ordered = sorted(entries, key=lambda entry: -entry.size)
                upload.expect(len(ordered))
                counts = team.each(keep, ordered, report)
                sent += sum(counts)
                # those that were there already may have been deleted while the others were sent
                if entries := self._gone(
                    team, [entry for entry, count in zip(ordered, counts, strict=True) if not count]
                ):
                    continue
                team.retrying(lambda: self._put_manifest(digest, data))
                # a collection that has begun before knew nothing of the manifest: it may have taken
                # it, or what was there already
                after = s3_lease.wait(
                    self.objects, lambda who: progress(1.0, f"waiting: {who} is collecting garbage")
                )
                if before is not None and after == before:
                    return sent
                before = after
                if not (entries := self._gone(team, _distinct(manifest))) and self.has(digest):
                    return sent
        raise StoreBusy(
            f"blobs of artifact {digest[:12]} vanish as they are sent",
            where=self.location,
            hint="is somebody deleting there?",
        )

    def _gone(self, team: Team, entries: list[FileEntry]) -> list[FileEntry]:
        """Those whose blob is not there, by existence and size."""
        there = team.each(
            lambda entry: fits(
                team.retrying(lambda: self.bucket.head(blob_key(entry.sha256))), entry
            ),
            entries,
        )
        return [entry for entry, is_there in zip(entries, there, strict=True) if not is_there]

    def _put_manifest(self, digest: str, data: bytes) -> None:
        """Make the artifact visible. Without a condition: what is there can only be the same, not
        as young, or damaged."""
        with self.bucket.explained(f"writing {manifest_key(digest)}"):
            self.bucket.client.put_object(
                Bucket=self.bucket.name,
                Key=self.bucket.key(manifest_key(digest)),
                Body=data,
                ChecksumSHA256=b64encode(bytes.fromhex(digest)).decode(),
            )
        if (found := self.bucket.read(manifest_key(digest))) is None or found[0] != data:
            raise TransferError(
                "the server does not store the manifest as it was sent",
                where=self.location,
                hint="run again",
            )

    def pull(
        self, digest: str, target: LocalStore, progress: Progress = no_progress
    ) -> ModelArtifact:
        manifest = self.manifest(digest)
        entries = sorted(_distinct(manifest), key=lambda entry: -entry.size)
        with target.staging() as staging, target.writing():
            require_space(target, entries)
            with Team(self.bucket).working() as team:
                download = Download(team, target, staging.path)

                def keep(entry: FileEntry) -> None:
                    try:
                        download.keep(entry)
                    except Differs as error:
                        raise self._damaged(digest, [(entry, error.what)]) from error

                team.each(
                    keep,
                    entries,
                    lambda done: progress(
                        min(1.0, done / max(1, manifest.size)),
                        f"{done / 1e6:.0f} of {manifest.size / 1e6:.0f} MB",
                    ),
                )
            target.keep_manifest(manifest)
        return target.open(digest)

    def _damaged(self, digest: str, found: list[tuple[FileEntry, str]]) -> ArtifactDamaged:
        keys = ", ".join(self.bucket.key(blob_key(entry.sha256)) for entry, _ in found)
        return ArtifactDamaged(
            "; ".join(f"{what}: {entry.path}" for entry, what in found),
            where=f"artifact {digest[:12]} in {self.location}",
            hint=(
                f"delete the object {keys}, then push the artifact again from a machine that has it"
                " whole"
            ),
        )

    # -- garbage

    def touch(self, digest: str) -> None:
        manifest = self.manifest(digest)
        self.bucket.retrying(lambda: self.bucket.refresh(manifest_key(digest)))
        with Team(self.bucket).working() as team:
            team.each(
                lambda entry: team.retrying(lambda: self.bucket.refresh(blob_key(entry.sha256))),
                _distinct(manifest),
            )

    def inventory(self, what: What) -> Iterator[Held]:
        for item in self.bucket.below(f"{what}/sha256/"):
            name = item.key.rpartition("/")[2].removesuffix(".json" if what == "manifests" else "")
            if len(name) == 64:
                yield Held(name=name, size=item.size, modified=item.modified)

    def discard(self, what: What, name: str, *, unless_after: float) -> bool:
        key = manifest_key(name) if what == "manifests" else blob_key(name)
        facts = self.bucket.retrying(lambda: self.bucket.head(key))
        if facts is None:
            return True
        if facts.modified > unless_after:
            return False
        self.bucket.delete(key)
        return True

    def clear_leftovers(self, *, older_than: float) -> int:
        bucket = self.bucket

        def abandoned() -> list[tuple[str, str]]:
            with bucket.explained("looking for interrupted uploads"):
                pages = bucket.client.get_paginator("list_multipart_uploads").paginate(
                    Bucket=bucket.name, Prefix=bucket.key("blobs/")
                )
                try:
                    return [
                        (upload["Key"], upload["UploadId"])
                        for page in pages
                        for upload in page.get("Uploads", ())
                        if upload["Initiated"].timestamp() < older_than
                    ]
                except aws.ClientError as error:
                    # not known there, or as rclone says that there are none
                    if status_of(error) not in (404, 501):
                        raise
                    return []

        def abort(key: str, upload: str) -> int:
            with (
                bucket.explained(f"removing an interrupted upload of {key}"),
                suppress(bucket.client.exceptions.NoSuchUpload),
            ):
                bucket.client.abort_multipart_upload(Bucket=bucket.name, Key=key, UploadId=upload)
                return 1
            return 0

        return sum(
            bucket.retrying(partial(abort, *upload)) for upload in bucket.retrying(abandoned)
        )

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Nobody else collects. Those who push go on: they make young what they need, and what is
        young is not collected."""
        lease = s3_lease.Lease(self.objects, self.location)
        lease.take()
        stop = threading.Event()
        renewing = threading.Thread(
            target=lease.renew_until, args=(stop,), name="s3-lease", daemon=True
        )
        renewing.start()
        try:
            yield
        finally:
            stop.set()
            renewing.join()
            lease.release()


def manifest_key(digest: str) -> str:
    return f"manifests/sha256/{digest}.json"


def _distinct(manifest: Manifest) -> list[FileEntry]:
    """One entry for each blob: the first that names it."""
    return list({entry.sha256: entry for entry in reversed(manifest.files)}.values())
