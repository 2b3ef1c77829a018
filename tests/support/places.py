"""What the tests of the registry share: stores of both kinds with judged models in them, and
damage."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from artifacts.manifest import Kind, Parent, canonical_json
from artifacts.records.evidence import EVIDENCE, DocumentScore, Evidence, KlDivergence
from artifacts.records.report import VERDICT, Verdict
from artifacts.registry import promotion, rollback
from artifacts.registry.change import StageChange
from artifacts.registry.proposal import Proposal
from artifacts.registry.refs import Decision, Stage
from artifacts.registry.rollback import Rollback
from artifacts.store.ancestors import lineage
from artifacts.store.local import LocalStore
from artifacts.store.open import open_store
from artifacts.store.protocol import Store
from configs.callbacks import Progress, no_progress
from configs.location import parse_s3
from configs.policy import Policy
from tests.support import s3_server
from tests.support.s3_server import Server

OPEN = Policy()  # asks for no signatures
OLD = 1_600_000_000.0  # a time that every age limit is after


@dataclass(frozen=True)
class Judged:
    """A candidate with everything that speaks for it; `all` in the order of lineage."""

    candidate: str
    report: str
    evidence: str
    parent: str
    texts: str

    @property
    def all(self) -> list[str]:
        return [self.parent, self.texts, self.candidate, self.evidence, self.report]


@dataclass(frozen=True)
class Place:
    """A store under test, and the folder that artifacts are made in, which for a local one is the
    store itself.

    `server`: where the store is on S3.
    """

    store: Store
    workshop: LocalStore
    server: Server | None = None

    def judged(self, name: str = "one", **more: Any) -> Judged:
        made = judged(self.workshop, name, **more)
        self.bring(made.report)
        return made

    def bring(self, digest: str) -> str:
        """Push what was made in the workshop, with all its ancestors."""
        if self.store is not self.workshop:
            for part in lineage(self.workshop, [digest]):
                self.store.push(self.workshop, part)
        return digest

    def spoil(self, what: str, name: str, *, byte: int | None = None) -> None:
        """Flip a byte of a blob or manifest where it lies, its size as before; the last one if none
        is named."""
        self._replace(
            what,
            name,
            lambda data: bytes(
                [
                    *data[: (at := len(data) - 1 if byte is None else byte)],
                    data[at] ^ 1,
                    *data[at + 1 :],
                ]
            ),
        )

    def remove(self, what: str, name: str) -> None:
        self._replace(what, name, lambda _data: None)

    def bytes_of(self, key: str) -> bytes | None:
        found = self.store.objects.get(key)
        return found[0] if found else None

    def _replace(self, what: str, name: str, change: Any) -> None:
        if isinstance(self.store, LocalStore):
            path = self.store.blob(name) if what == "blobs" else self.store.manifest_path(name)
            times, new = path.stat(), change(path.read_bytes())
            path.unlink()
            if new is not None:
                path.write_bytes(new)
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            return
        place = parse_s3(self.store.location)
        key = f"{place.prefix}/{what}/sha256/{name}{'.json' * (what == 'manifests')}"
        client = client_of(place.endpoint_url)
        new = change(client.get_object(Bucket=place.bucket, Key=key)["Body"].read())
        if new is None:
            client.delete_object(Bucket=place.bucket, Key=key)
        else:
            client.put_object(Bucket=place.bucket, Key=key, Body=new)


def client_of(endpoint: str | None) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=s3_server.ENVIRONMENT["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=s3_server.SECRET,
        region_name="us-east-1",
    )


def promote(
    store: Store,
    model: str,
    what: str,
    to_stage: Stage,
    *,
    who: str = "me",
    why: str = "",
    approved_by: str | None = None,
    policy: Policy = OPEN,
    progress: Progress = no_progress,
    **more: Any,
) -> StageChange:
    """Promote something; `more`: the other fields of a Proposal."""
    proposal = Proposal(model, to_stage, what, **more)
    return promotion.promote(store, proposal, Decision(who, why, approved_by), policy, progress)


def roll_back(
    store: Store,
    model: str,
    stage: Stage,
    *,
    who: str = "me",
    why: str = "",
    policy: Policy = OPEN,
    **more: Any,
) -> StageChange:
    """Take something back; `more`: the other fields of a Rollback."""
    return rollback.roll_back(store, Rollback(model, stage, **more), Decision(who, why), policy)


@contextmanager
def bucket() -> Iterator[Server]:
    """A server, with the credentials for it in this process's environment."""
    with s3_server.running() as server, mock.patch.dict(os.environ, s3_server.ENVIRONMENT):
        yield server


def place(server: Server | None, folder: Path) -> Place:
    """An empty store: on S3, or without a server in a folder."""
    workshop = LocalStore(folder / "workshop")
    return (
        Place(workshop, workshop)
        if server is None
        else Place(open_store(server.location(uuid.uuid4().hex)), workshop, server)
    )


def commit(
    store: LocalStore,
    kind: Kind,
    files: dict[str, bytes],
    parents: Sequence[tuple[str, str]] = (),
    **recipe: Any,
) -> str:
    with store.staging() as staging:
        for name, data in files.items():
            staging.write(name, data)
        return store.commit(
            staging,
            kind,
            parents=[Parent(role=role, digest=digest) for role, digest in parents],
            recipe=recipe,
        ).digest


def model(store: LocalStore, name: str, size: int = 2000) -> tuple[str, str, str]:
    """A quantized model, its parent and its calibration text."""
    texts = commit(store, "texts", {"calibration.jsonl": b"words " * 50})
    parent = commit(store, "fp16", {"config.json": b"{}", "model.safetensors": b"weights " * 100})
    candidate = commit(
        store,
        "w4a16",
        {"config.json": b'{"bits": 4}', "model.safetensors": name.encode().ljust(size, b".")},
        [("model", parent), ("texts", texts)],
        method="awq",
        name=name,
    )
    return candidate, parent, texts


def judged(
    store: LocalStore,
    name: str = "one",
    *,
    outcome: str = "PASS",
    variant: str = "w4a16",
    engine: str = "transformers",
    evidence: dict[str, Any] | None = None,
    verdict: dict[str, Any] | None = None,
    named: str | None = None,
    size: int = 2000,
) -> Judged:
    """A model with evidence and a report. `evidence`, `verdict`: what they say instead; `named`:
    what the report's manifest names as candidate."""
    candidate, parent, texts = model(store, name, size)
    found = Evidence.model_validate(
        {
            "variant": variant,
            "engine": engine,
            "runtime": "default",
            "parent": parent,
            "candidate": candidate,
            "texts": texts,
            "documents": (
                DocumentScore(
                    tokens=100, nll_parent=240.0, nll_candidate=241.0, kl=1.0, same_top=95
                ),
            ),
            "kl": KlDivergence(mean=0.01, median=0.005, p999=0.8, largest=2.9),
            "samples": (),
            "same_prompts": True,
            "versions": {"lmdeploy": "0.17.0"},
        }
        | (evidence or {})
    )
    proof = commit(
        store,
        "evidence",
        {EVIDENCE: canonical_json(found.model_dump(mode="json"))},
        [("candidate", candidate), ("parent", parent), ("texts", texts)],
    )
    said = Verdict.model_validate(
        {
            "outcome": outcome,
            "reasons": (f"it is a {outcome}",),
            "variant": variant,
            "candidate": candidate,
            "evidence": proof,
            "margin": 0.05,
            "difference": {
                "mean": 0.01,
                "low": 0.0,
                "high": 0.02,
                "confidence": 0.95,
                "documents": 30,
                "tokens": 3000,
                "smallest_detectable": 0.01,
            },
        }
        | (verdict or {})
    )
    report = commit(
        store,
        "report",
        {VERDICT: canonical_json(said.model_dump(mode="json")), "report.md": f"# {name}".encode()},
        [("candidate", named or candidate), ("evidence", proof), ("parent", parent)],
    )
    return Judged(candidate, report, proof, parent, texts)
