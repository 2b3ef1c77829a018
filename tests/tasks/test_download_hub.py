"""The hub: a repository at a pinned commit, through the real client, from a server that speaks the
hub's protocol."""

# covers tasks/download.py

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from artifacts.store.local import LocalStore
from configs.errors import SourceError, TransferError
from configs.sources import HubSource
from configs.texts import HubDataset
from tasks.download import DownloadRequest, DownloadResult, download
from tasks.quality.documents import read_source
from tasks.runner.parent import Placement, run_child

COMMIT = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """One repository, `team/tiny`, at one commit. `cut` breaks off that many transfers of weights
    in the middle."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.cut = folder, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:4] == ["api", "models", "team", "tiny"] and parts[5:] == [COMMIT]:
            files = [{"rfilename": path.name} for path in self.server.folder.iterdir()]
            return self._send(
                json.dumps({"id": "team/tiny", "sha": COMMIT, "siblings": files}).encode(),
                "application/json",
            )
        if (
            parts[:4] == ["team", "tiny", "resolve", COMMIT]
            and (self.server.folder / parts[4]).exists()
        ):
            return self._send(
                (self.server.folder / parts[4]).read_bytes(), "application/octet-stream"
            )
        self.send_response(404)
        self.send_header("X-Error-Code", "RevisionNotFound" if "team" in parts else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _send(self, data: bytes, kind: str) -> None:
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            whole = not (self.server.cut and self.path.endswith(".safetensors"))
            self.server.cut -= not whole
            self.wfile.write(data[start:] if whole else data[start : start + 1000])

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub(tiny_model)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    yield server
    server.shutdown()


def fetch(tmp_path: Path, repo: str = "team/tiny", revision: str = COMMIT) -> DownloadResult:
    """In a child process, as always: the client reads its settings when it is imported."""
    source = HubSource(type="hub", repo=repo, revision=revision)
    return run_child(
        download,
        DownloadRequest(source=source),
        Placement(tmp_path / "step", LocalStore(tmp_path / "store"), timeout_s=100),
    )[0]


def test_a_repository_arrives_whole(hub: Hub, tiny_model: Path, tmp_path: Path) -> None:
    model = fetch(tmp_path).model
    assert (model.path / "model.safetensors").read_bytes() == (
        tiny_model / "model.safetensors"
    ).read_bytes()
    assert LocalStore(tmp_path / "store").manifest(model.digest).recipe["source"] == {
        "type": "hub",
        "repo": "team/tiny",
        "revision": COMMIT,
    }
    assert not list((tmp_path / "store" / "partial").iterdir())


@pytest.mark.parametrize(
    ("repo", "revision"), [("team/tiny", "0" * 40), ("nobody/nothing", COMMIT)]
)
def test_what_is_not_there_is_said_at_once(
    hub: Hub, tmp_path: Path, repo: str, revision: str
) -> None:
    with pytest.raises(SourceError, match="NotFoundError"):
        fetch(tmp_path, repo, revision)


def test_a_dead_hub_can_be_tried_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TransferError) as caught:
        fetch(tmp_path)
    assert caught.value.retryable
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    assert fetch(tmp_path).model.kind == "fp16"


def test_a_transfer_that_breaks_off_ends_complete(
    hub: Hub, tiny_model: Path, tmp_path: Path
) -> None:
    hub.cut = 1
    try:
        model = fetch(tmp_path).model
    except TransferError:  # the client gave up: what a retry of the step is for
        model = fetch(tmp_path).model
    assert hub.cut == 0
    assert (model.path / "model.safetensors").read_bytes() == (
        tiny_model / "model.safetensors"
    ).read_bytes()


def test_a_data_set_is_read_by_name_and_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text(
        "".join(json.dumps({"story": f"document {i}"}) + "\n" for i in range(5))
    )
    source = HubDataset(type="hub", dataset=str(folder), column="story", max_documents=3)
    assert list(read_source(source)) == [{"text": f"document {i}"} for i in range(3)]
    with pytest.raises(SourceError, match="no column 'text'"):
        list(read_source(source.model_copy(update={"column": "text"})))


def test_a_data_set_that_is_not_there_is_an_error_with_a_way_out() -> None:
    with pytest.raises(SourceError, match="give a file of your own"):
        list(read_source(HubDataset(type="hub", dataset="nobody/no-such-set")))
