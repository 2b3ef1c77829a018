"""The S3 store: the interface and layout of the local store below a prefix of a bucket, on AWS S3
and servers that speak its protocol (`artifacts.store.layout`)."""

from __future__ import annotations

import hashlib
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from botocore import exceptions as aws

from artifacts.manifest import MAX_BYTES, FileEntry, Manifest, ModelArtifact
from artifacts.store.damage import damaged
from artifacts.store.layout import What, blob_key, folder_of, key_of, manifest_key, name_of
from artifacts.store.protocol import Folder, Held, Problem, Source
from artifacts.store.s3 import lease
from artifacts.store.s3.client import Bucket
from artifacts.store.s3.connection import Tuning
from artifacts.store.s3.download import Download, require_space
from artifacts.store.s3.errors import status_of
from artifacts.store.s3.objects import S3Objects
from artifacts.store.s3.ranges import Difference, Differs, difference, read_difference
from artifacts.store.s3.team import Team
from artifacts.store.s3.upload import Upload
from configs.callbacks import Progress, no_progress
from configs.errors import ArtifactDamaged, ArtifactMissing, StoreBusy, TransferError
from configs.location import S3Location

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
        where = f"{manifest_key(digest)} in {self.location}"
        for _ in range(2):  # the first difference may have come on the way
            found = self.bucket.read(manifest_key(digest), MAX_BYTES + 1)
            if found is None:
                raise ArtifactMissing(
                    f"no artifact {digest}",
                    where=self.location,
                    hint="`lmflows registry ls --artifacts` shows what there is",
                )
            if hashlib.sha256(found[0]).hexdigest() == digest:
                return Manifest.from_bytes(found[0], where=where)
        raise ArtifactDamaged(
            "the manifest does not hash to its name",
            where=where,
            hint=f"`lmflows registry push {digest[:12]}` from a machine that has it whole",
        )

    def digests(self) -> list[str]:
        oldest_first = sorted(self.inventory("manifests"), key=lambda held: held.modified)
        return [held.name for held in oldest_first]

    def verify(self, digest: str) -> list[Problem]:
        return self._check(
            digest, lambda team, entry: read_difference(team, blob_key(entry.sha256), entry)
        )

    def absent(self, digest: str) -> list[Problem]:
        return self._check(digest, self._look)

    def _look(self, team: Team, entry: FileEntry) -> Difference | None:
        """What is wrong with a blob, by existence and size."""
        facts = team.retrying(lambda: self.bucket.head(blob_key(entry.sha256)))
        return difference(facts, entry)

    def _check(
        self, digest: str, look: Callable[[Team, FileEntry], Difference | None]
    ) -> list[Problem]:
        """What is wrong with each file; equal files are looked at once."""
        manifest = self.manifest(digest)
        entries = _distinct(manifest)
        with Team(self.bucket).working() as team:
            differences = team.each(lambda entry: look(team, entry), entries)
        found = {
            entry.sha256: what for entry, what in zip(entries, differences, strict=True) if what
        }
        return [
            Problem(found[entry.sha256], entry.path)
            for entry in manifest.files
            if entry.sha256 in found
        ]

    def read(self, digest: str, name: str) -> bytes:
        entry = self.manifest(digest).entry(name)
        found = None
        for _ in range(2):
            found = self.bucket.read(blob_key(entry.sha256))
            if found is not None and hashlib.sha256(found[0]).hexdigest() == entry.sha256:
                return found[0]
        raise self._damaged(digest, entry, "missing" if found is None else "changed")

    def _damaged(self, digest: str, entry: FileEntry, what: Difference) -> ArtifactDamaged:
        return ArtifactDamaged(
            f"{what}: {entry.path}",
            where=f"artifact {digest[:12]} in {self.location}",
            hint=f"delete the object {self.bucket.key(blob_key(entry.sha256))}, then push the"
            " artifact again from a machine that has it whole",
        )

    # -- writing

    def push(self, source: Source, digest: str, progress: Progress = no_progress) -> int:
        manifest = source.manifest(digest)
        entries = _distinct(manifest)
        report = _report_to(progress, manifest.size)
        sent = 0
        with Team(self.bucket).working() as team:
            upload = Upload(team)

            def keep(entry: FileEntry) -> int:
                try:
                    return upload.keep(source.blob(entry.sha256), entry)
                except Differs as error:
                    raise damaged(source, digest, Problem(error.what, entry.path)) from error

            before = lease.look(self.objects)
            for _ in range(ROUNDS):
                ordered = sorted(entries, key=lambda entry: -entry.size)
                upload.expect(len(ordered))
                counts = team.each(keep, ordered, report)
                sent += sum(counts)
                # those that were there already may have been deleted while the others were sent
                kept = [entry for entry, count in zip(ordered, counts, strict=True) if not count]
                entries = self._gone(team, kept)
                if entries:
                    continue
                team.retrying(lambda: self._put_manifest(manifest))
                # a collection that has begun before knew nothing of the manifest: it may have taken
                # it, or what was there already
                after = lease.wait(self.objects, lambda text: progress(1.0, text))
                if before is not None and after == before:
                    return sent
                before = after
                entries = self._gone(team, _distinct(manifest))
                if not entries and self.has(digest):
                    return sent
        raise StoreBusy(
            f"blobs of artifact {digest[:12]} vanish as they are sent",
            where=self.location,
            hint="is somebody deleting there?",
        )

    def _gone(self, team: Team, entries: list[FileEntry]) -> list[FileEntry]:
        """Those whose blob is not there, by existence and size."""
        found = team.each(lambda entry: self._look(team, entry), entries)
        return [entry for entry, what in zip(entries, found, strict=True) if what]

    def _put_manifest(self, manifest: Manifest) -> None:
        """Make the artifact visible. Without a condition: what is there can only be the same, not
        as young, or damaged."""
        key = manifest_key(manifest.digest)
        data = manifest.to_bytes()
        with self.bucket.explained(f"writing {key}"):
            self.bucket.client.put_object(
                Bucket=self.bucket.name,
                Key=self.bucket.key(key),
                Body=data,
                ChecksumSHA256=b64encode(bytes.fromhex(manifest.digest)).decode(),
            )
        found = self.bucket.read(key)
        if found is None or found[0] != data:
            raise TransferError(
                "the server does not store the manifest as it was sent",
                where=self.location,
                hint="run again",
            )

    def pull(self, digest: str, target: Folder, progress: Progress = no_progress) -> ModelArtifact:
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
                        raise self._damaged(digest, entry, error.what) from error

                team.each(keep, entries, _report_to(progress, manifest.size))
            target.keep_manifest(manifest)
        return target.open(digest)

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
        for item in self.bucket.below(folder_of(what)):
            name = name_of(what, item.key)
            if name is not None:
                yield Held(name=name, size=item.size, modified=item.modified)

    def discard(self, what: What, name: str, *, unless_after: float) -> bool:
        key = key_of(what, name)
        facts = self.bucket.retrying(lambda: self.bucket.head(key))
        if facts is None:
            return True
        if facts.modified > unless_after:
            return False
        self.bucket.delete(key)
        return True

    def clear_leftovers(self, *, older_than: float) -> int:
        abandoned = self.bucket.retrying(partial(self._abandoned, older_than))
        return sum(self.bucket.retrying(partial(self._abort, *upload)) for upload in abandoned)

    def _abandoned(self, older_than: float) -> list[tuple[str, str]]:
        """The keys and ids of uploads that were begun before a Unix time."""
        with self.bucket.explained("looking for interrupted uploads"):
            pages = self.bucket.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket.name, Prefix=self.bucket.key("blobs/")
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

    def _abort(self, key: str, upload: str) -> int:
        """Give up an upload; returns how many that were."""
        client = self.bucket.client
        with (
            self.bucket.explained(f"removing an interrupted upload of {key}"),
            suppress(client.exceptions.NoSuchUpload),
        ):
            client.abort_multipart_upload(Bucket=self.bucket.name, Key=key, UploadId=upload)
            return 1
        return 0

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Nobody else collects. Those who push go on: they make young what they need, and what is
        young is not collected."""
        held = lease.Lease(self.objects, self.location)
        held.take()
        stop = threading.Event()
        renewing = threading.Thread(
            target=held.renew_until, args=(stop,), name="s3-lease", daemon=True
        )
        renewing.start()
        try:
            yield
        finally:
            stop.set()
            renewing.join()
            held.release()


def _distinct(manifest: Manifest) -> list[FileEntry]:
    """One entry for each blob: the first that names it."""
    return list({entry.sha256: entry for entry in reversed(manifest.files)}.values())


def _report_to(progress: Progress, size: int) -> Callable[[int], None]:
    """What turns bytes that have moved, of `size`, into progress."""

    def report(done: int) -> None:
        progress(min(1.0, done / max(1, size)), f"{done / 1e6:.0f} of {size / 1e6:.0f} MB")

    return report
