"""The deploy step: a new server takes over only if it answers and scores as the evidence says;
otherwise all is as before.

Real artifacts of the small model, real servers under a real supervisord. A start takes seconds, so
the tests that need a running endpoint share one: `live` and `running` deploy it again only if they
must.
"""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from safetensors.torch import load_file, save_file

from artifacts.manifest import ModelArtifact, canonical_json
from artifacts.records.evidence import PROBES
from artifacts.registry import serving
from artifacts.registry.signing import sign
from artifacts.store.local import LocalStore
from configs import paths
from configs.deployment import Deploy
from configs.engines import EngineTransformers, EngineTurbomind
from configs.errors import ArtifactDamaged, ConfigError, EndpointError, SignatureRefused
from configs.policy import Policy
from tasks.deploy import HELLO, DeployRequest, DeployResult, check_scores, deploy
from tasks.engines.reference import ReferenceEngine
from tasks.machine.ports import port_problem
from tasks.runner.step import Context
from tasks.serving import endpoints, supervisor
from tasks.serving.endpoints import KEYS, LOG, RECORD, Endpoint
from tests.support import s3_server
from tests.support.keys import Keys

KEYS_VARIABLE = "LMFLOWS_TEST_KEYS"


@dataclass(frozen=True)
class Site:
    """A store with some artifacts, and a port to serve them on. `damaged` has a cut off weight
    file, `noisy` other weights."""

    store: LocalStore
    model: ModelArtifact
    sibling: ModelArtifact
    noisy: ModelArtifact
    damaged: ModelArtifact
    evidence: ModelArtifact
    hello: str
    port: int

    def deploy(
        self,
        artifact: ModelArtifact | None = None,
        *,
        name: str = "tiny",
        policy: Policy | None = None,
        **options: Any,
    ) -> DeployResult:
        engine = EngineTransformers(name="transformers")
        request = DeployRequest(
            name=name,
            artifact=artifact or self.model,
            report=self.evidence,
            evidence=self.evidence,
            engine=engine,
            store=self.store.location,
            policy=policy or Policy(),
            options=Deploy.model_validate(
                {"port": self.port, "api_keys_env": KEYS_VARIABLE, "ready_timeout_minutes": 1}
                | options
            ),
        )
        return deploy(request, Context(self.store))


@pytest.fixture(scope="module")
def site(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    engine = ReferenceEngine(tiny_model)
    store = LocalStore(tmp_path_factory.mktemp("store"))

    def model(changed: dict[str, bytes]) -> ModelArtifact:
        with store.staging() as staging:
            for path in tiny_model.iterdir():
                if path.name not in changed:
                    staging.copy(path, path.name)
            for name, data in changed.items():
                staging.write(name, data)
            return store.commit(staging, "fp16")

    def noisy_weights() -> bytes:
        tensors = load_file(tiny_model / "model.safetensors")
        tensors["model.norm.weight"] *= 0.5
        scratch = store.root / "noisy.safetensors"
        save_file(tensors, scratch, metadata={"format": "pt"})
        return scratch.read_bytes()

    probes = [
        engine.tokenizer(text).input_ids
        for text in ("A list is a mutable sequence of objects.", "The with statement")
    ]
    with store.staging() as staging:
        staging.write(
            PROBES,
            canonical_json(
                [{"ids": ids, "nll": float(engine.score([ids])[0].nll.mean())} for ids in probes]
            ),
        )
        evidence = store.commit(staging, "evidence")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMFLOWS_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv(KEYS_VARIABLE, "secret, other")
        yield Site(
            store=store,
            model=model({}),
            sibling=model({"README.md": b"another"}),
            noisy=model({"model.safetensors": noisy_weights()}),
            damaged=model(
                {"model.safetensors": (tiny_model / "model.safetensors").read_bytes()[:5000]}
            ),
            evidence=evidence,
            port=port,
            hello=engine.generate([engine.prompt_ids(HELLO)], 16)[0].text,
        )
        for endpoint in endpoints.list_all():
            supervisor.stop(endpoint)


@pytest.fixture
def live(site: Site) -> Endpoint:
    """The running endpoint `tiny`, serving `site.model` with the keys of the environment."""
    site.deploy()
    return endpoints.get("tiny")


@pytest.fixture
def running(site: Site) -> Endpoint:
    """The running endpoint `tiny`, whatever it serves."""
    before = endpoints.read("tiny")
    if before is None or supervisor.state(before)[0] != "RUNNING":
        site.deploy()
    return endpoints.get("tiny")


def pid(endpoint: Endpoint) -> int:
    return supervisor.state(endpoint)[1]


def listed_models(endpoint: Endpoint, key: str) -> int:
    """The HTTP status of asking for the models with a key."""
    return httpx.get(
        f"{endpoint.url}/v1/models", headers={"Authorization": f"Bearer {key}"}
    ).status_code


def answers_again(endpoint: Endpoint) -> bool:
    """Whether the server of an endpoint comes to answer within a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            endpoint.call("/health", timeout_s=5)
            return True
        except EndpointError:
            time.sleep(0.2)
    return False


def test_it_is_ready_when_it_has_answered_and_scored(site: Site) -> None:
    result = site.deploy()
    assert (result.first_words, result.reused, result.score_difference < 1e-4) == (
        site.hello,
        False,
        True,
    )


def test_the_same_again_is_reused(site: Site, live: Endpoint) -> None:
    before = pid(live)
    assert site.deploy().reused
    assert pid(live) == before


def test_the_keys_come_from_the_environment_variable(live: Endpoint) -> None:
    assert [listed_models(live, key) for key in ("secret", "other", "wrong")] == [200, 200, 401]


def test_only_the_owner_can_read_the_keys(live: Endpoint) -> None:
    assert (live.folder / KEYS).stat().st_mode & 0o777 == 0o600


def test_an_empty_key_variable_is_refused_and_nothing_is_touched(
    site: Site, live: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = pid(live)
    monkeypatch.setenv(KEYS_VARIABLE, " , ")
    with pytest.raises(ConfigError, match=KEYS_VARIABLE):
        site.deploy()
    assert pid(live) == before


def test_a_taken_port_is_named_and_the_old_server_untouched(site: Site, live: Endpoint) -> None:
    before = pid(live)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EndpointError, match=str(port)):
            site.deploy(site.sibling, port=port)
    assert (pid(live), endpoints.get("tiny")) == (before, live)


def test_the_old_server_runs_again_if_the_new_one_is_not_ready_in_time(
    site: Site, live: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the old server keeps its keys, whatever the environment holds by now
    monkeypatch.delenv(KEYS_VARIABLE)
    with pytest.raises(EndpointError, match=r"not ready after .*its last lines"):
        site.deploy(site.sibling, api_keys_env=None, ready_timeout_minutes=0.001)
    assert endpoints.get("tiny") == live
    assert answers_again(live)
    assert [listed_models(live, key) for key in ("secret", "wrong")] == [200, 401]


def test_changed_keys_are_not_served_by_the_old_server(
    site: Site, live: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, "new")
    site.deploy()
    assert [listed_models(live, key) for key in ("secret", "new")] == [401, 200]


def test_another_artifact_takes_over_the_port(site: Site, running: Endpoint) -> None:
    result = site.deploy(site.sibling)
    assert (result.url, result.reused, endpoints.get("tiny").artifact) == (
        running.url,
        False,
        site.sibling,
    )


def announced(site: Site, name: str = "tiny") -> list[str]:
    return [one.digest for one in serving.everywhere(site.store) if one.endpoint == name]


def test_the_store_is_told_what_is_served_and_by_whom(site: Site, running: Endpoint) -> None:
    [one] = [one for one in serving.everywhere(site.store) if one.endpoint == "tiny"]
    assert (one.digest, one.machine) == (running.artifact.digest, serving.this_machine())
    other = site.model if running.artifact == site.sibling else site.sibling
    site.deploy(other)
    assert announced(site) == [other.digest]  # and not the one before, which nobody serves
    with pytest.raises(EndpointError, match="nats a token off the evidence"):
        site.deploy(site.noisy)
    assert announced(site) == [other.digest]


def test_while_a_server_takes_over_both_artifacts_are_announced(
    site: Site, running: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill at any moment of it leaves a store that keeps what still runs and what may run
    already."""
    other, seen = site.model if running.artifact == site.sibling else site.sibling, list[set[str]]()
    start = supervisor.start

    def looked(endpoint: Endpoint) -> None:
        seen.append(set(announced(site)))
        start(endpoint)

    monkeypatch.setattr(supervisor, "start", looked)
    site.deploy(other)
    assert seen == [{running.artifact.digest, other.digest}] and announced(site) == [other.digest]


def test_one_store_that_cannot_be_told_does_not_keep_the_others_from_hearing_it(
    site: Site, running: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    elsewhere = running.model_copy(update={"stores": ("s3://models/team", *running.stores)})
    try:
        [problem] = elsewhere.withdraw()
        assert "no usable AWS credentials" in str(problem) and announced(site) == []
    finally:
        running.announce()


def test_one_flipped_byte_is_refused_and_the_endpoint_goes_on(
    site: Site, running: Endpoint
) -> None:
    weights = site.store.open(site.sibling.digest).path / "README.md"
    before = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(bytes([before[0] ^ 1]) + before[1:])
    try:
        with pytest.raises(ArtifactDamaged, match=r"changed: README\.md"):
            site.deploy(site.sibling)
    finally:
        weights.write_bytes(before)
        weights.chmod(0o444)
    assert endpoints.get("tiny") == running and supervisor.state(running)[0] == "RUNNING"


def test_what_nobody_has_signed_is_not_served_if_the_policy_says_so(
    site: Site, running: Endpoint, tmp_path: Path
) -> None:
    ours, theirs = Keys(tmp_path).pair("signer")
    policy = Policy(require_signature=True, trusted=(theirs,))
    with pytest.raises(SignatureRefused):
        site.deploy(policy=policy)
    assert supervisor.state(running)[0] == "RUNNING"
    for artifact in (site.model, site.evidence):
        sign(site.store, artifact.digest, ours)
    assert site.deploy(policy=policy).score_difference == 0.0


def test_a_server_that_scores_unlike_the_evidence_is_taken_back(
    site: Site, running: Endpoint
) -> None:
    with pytest.raises(EndpointError, match="nats a token off the evidence"):
        site.deploy(site.noisy)
    assert endpoints.get("tiny") == running
    assert supervisor.state(running)[0] in ("STARTING", "RUNNING")


def test_without_an_old_server_a_failed_one_leaves_nothing_but_its_log(
    site: Site, free_port: int
) -> None:
    started = time.monotonic()
    with pytest.raises(EndpointError, match=r"the server died(.|\n)*safetensors") as caught:
        site.deploy(site.damaged, name="damaged", port=free_port)
    log = paths.endpoints() / "damaged" / LOG
    assert str(log) in caught.value.hint
    assert "Traceback" in log.read_text()
    assert time.monotonic() - started < 55  # it did not wait for the whole minute
    assert announced(site, "damaged") == []
    assert (endpoints.read("damaged"), port_problem("127.0.0.1", free_port)) == (None, None)
    record = str(paths.endpoints() / "damaged" / RECORD)
    assert [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if record in (process.info["cmdline"] or [])
    ] == []


def stand_in(body: bytes) -> http.server.ThreadingHTTPServer:
    """A server that answers every POST with `body`."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def record(site: Site, **options: Any) -> Endpoint:
    return Endpoint(
        name=options.pop("name", "other"),
        model_name="m",
        artifact=site.model,
        since=datetime.now(UTC),
        engine=EngineTransformers(name="transformers"),
        options=Deploy.model_validate(options),
    )


def test_a_score_that_is_no_number_is_refused(site: Site) -> None:
    with stand_in(b'{"ppl": NaN}') as server, pytest.raises(EndpointError, match="nan nats"):
        check_scores(record(site, port=server.server_port), site.evidence)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("box", "http://box:80"),
    ],
)
def test_the_url_is_one_that_a_client_on_this_machine_can_open(
    site: Site, host: str, url: str
) -> None:
    assert record(site, host=host, port=80).url == url


def test_a_proxy_in_the_environment_is_not_asked_for_an_endpoint(
    site: Site, home: Path, free_port: int
) -> None:
    environment = os.environ | {"http_proxy": f"http://127.0.0.1:{free_port}", "no_proxy": ""}
    with stand_in(b"{}") as server:
        record(site, port=server.server_port).save([])
        subprocess.run(
            [
                sys.executable,
                "-c",
                "from tasks.serving import endpoints; endpoints.get('other').call('/x', {})",
            ],
            env=environment,
            cwd=paths.PROJECT,
            check=True,
            timeout=30,
        )


@pytest.mark.parametrize(
    "change",
    [
        {"engine": EngineTransformers(name="transformers", session_len=2048)},
        {"engine": EngineTurbomind(name="turbomind")},
        {"engine": EngineTransformers(name="transformers", runtime="other")},
        {"options": Deploy(variant="w4a16-kv8", port=80)},
        {"gpus": ("GPU-a",)},
        {"trust_remote_code": True},
        {"model_name": "n"},
    ],
    ids=str,
)
def test_what_is_served_in_another_way_is_not_reused(site: Site, change: dict[str, Any]) -> None:
    endpoint = record(site, port=80)
    later = endpoint.model_copy(update={"since": datetime.now(UTC)})
    assert (
        endpoint.same_service(later)
        and not endpoint.same_service(later.model_copy(update=change))
        and not endpoint.same_service(None)
    )


def test_the_engine_comes_back_from_a_written_record_with_its_options(
    site: Site, home: Path
) -> None:
    engine = EngineTurbomind(
        name="turbomind", runtime="lmdeploy-0.18.0", tp=2, cache_max_entry_count=0.4
    )
    endpoint = record(site).model_copy(
        update={
            "engine": engine,
            "gpus": ("GPU-a", "GPU-b"),
            "options": Deploy(variant="w4a16-kv8"),
        }
    )
    endpoint.save([])
    assert endpoints.from_file(endpoint.folder / RECORD) == endpoint


def test_a_record_of_another_version_is_an_error_that_names_it(site: Site, home: Path) -> None:
    endpoint = record(site)
    endpoint.save([])
    path = endpoint.folder / RECORD
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"options": values["options"] | values.pop("engine")}))
    with pytest.raises(
        EndpointError, match=r"unreadable record: .* -> stop its server, then remove the folder"
    ) as caught:
        endpoints.get("other")
    assert caught.value.where == str(path)
    endpoint.forget()


def test_a_record_survives_being_written(site: Site, home: Path) -> None:
    endpoint = record(site)
    endpoint.save(["a key", "two"])
    assert (endpoints.get(None), endpoint.keys()) == (endpoint, ["a key", "two"])


@pytest.mark.parametrize(
    ("known", "asked", "words"),
    [
        ((), None, "no endpoint is deployed"),
        (("one", "two"), None, "which endpoint"),
        (("one", "two"), "three", "no endpoint 'three'"),
    ],
)
def test_an_endpoint_that_cannot_be_told_is_an_error_that_lists_what_there_is(
    site: Site, home: Path, known: tuple[str, ...], asked: str | None, words: str
) -> None:
    for name in known:
        record(site, name=name).save([])
    with pytest.raises(EndpointError, match=f"endpoints: {', '.join(known) or 'none'}: .*{words}"):
        endpoints.get(asked)
