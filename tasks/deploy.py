"""The deploy step: from an artifact to an endpoint that has answered, and that scores text as the
evidence says.

A new server takes over an endpoint's name and port only if it becomes ready; otherwise the one
before it is started again. Knows nothing of Prefect; the server runs under
`tasks.serving.supervisor` and outlives everybody.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from datetime import UTC, datetime

from artifacts.manifest import ModelArtifact
from artifacts.records.evidence import read_probes
from artifacts.records.trusted_code import may_run_code
from artifacts.registry.signing import require_signed
from artifacts.store.local import LocalStore
from artifacts.store.open import open_store
from configs import paths
from configs.callbacks import Progress
from configs.deployment import Deploy
from configs.engines import Engine
from configs.errors import EndpointError
from configs.location import Location
from configs.policy import Policy
from tasks.machine.ports import port_problem
from tasks.runner.output import last_lines
from tasks.runner.step import Context, Request, Result, step
from tasks.serving import endpoints, supervisor
from tasks.serving.endpoints import LOG, Endpoint

POLL_SECONDS = 0.5
GAVE_UP = ("FATAL", "EXITED", "STOPPED", "UNKNOWN")
HELLO = [{"role": "user", "content": "hello"}]


class DeployRequest(Request):
    """What to serve, and where.

    Attributes:
        evidence: the artifact with the scores that the live endpoint must reproduce.
        store: where the signatures lie that the policy may ask for; with `report`, the artifact
            with the verdict.
        gpus: the UUIDs of those it may use.
    """

    name: str
    artifact: ModelArtifact
    report: ModelArtifact
    evidence: ModelArtifact
    store: Location
    policy: Policy = Policy()
    engine: Engine
    options: Deploy
    gpus: tuple[str, ...] = ()

    @property
    def frees_gpu_memory(self) -> bool:
        """The server that it replaces gives its memory back."""
        return endpoints.read(self.name) is not None


class DeployResult(Result):
    """Where the endpoint is. `first_words_seconds`: from the start of the deployment to the first
    completed answer; `ready_seconds`: until its scores were checked, too. `score_difference`:
    largest |mean NLL live - evidence| over the probes, nats a token."""

    url: str
    model_name: str
    reused: bool
    first_words_seconds: float
    ready_seconds: float
    first_words: str
    score_difference: float


# a server takes a share of what is free while it starts: two that start at once take each other's
@step(gpu=True, child=False, cached=False)
def deploy(request: DeployRequest, context: Context) -> DeployResult:
    """Serve the artifact under a supervisor, and return when it has answered and scored as the
    evidence says."""
    keys = endpoints.api_keys(request.options.api_keys_env)
    require_signed(
        open_store(request.store), [request.artifact.digest, request.report.digest], request.policy
    )
    for artifact in (request.artifact, request.evidence):
        context.progress(0.0, f"hashing {artifact.kind} {artifact.short}")
        LocalStore.holding(artifact).require_whole(artifact.digest)
    with _one_at_a_time(request.name):
        return _deploy(request, keys, context)


@contextlib.contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    """Two deployments to one endpoint wait for each other: each must be able to put back what it
    found."""
    paths.endpoints().mkdir(parents=True, exist_ok=True)
    with (paths.endpoints() / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _deploy(request: DeployRequest, keys: list[str], context: Context) -> DeployResult:
    started = time.monotonic()
    old = endpoints.read(request.name)
    old_keys = old.keys() if old is not None else []
    held = LocalStore.holding(request.artifact)
    new = Endpoint(
        name=request.name,
        model_name=request.options.model_name or request.name,
        artifact=request.artifact,
        engine=request.engine,
        options=request.options,
        stores=_stores(request),
        gpus=request.gpus,
        trust_remote_code=may_run_code(held.manifest(request.artifact.digest)),
        since=datetime.now(UTC),
    )
    state, _ = supervisor.state(new)
    reused = new.same_service(old) and old_keys == keys and state == "RUNNING"
    if old is None or old.options.port != new.options.port:
        _require_free_port(new)
    new.announce()  # from now on no collection of garbage takes it, wherever that runs
    try:
        if not reused:
            _replace(old, new, keys, context)
        words = wait_until_ready(new, context.progress)
        spoke = time.monotonic() - started
        difference = check_scores(new, request.evidence)
    except BaseException:
        if not reused:
            _put_back(old, old_keys, new)
        _withdraw(new, but=old, context=context)
        raise
    _withdraw(new, but=new, context=context)
    if old is not None:
        _withdraw(old, but=new, context=context)
    return DeployResult(
        url=new.url,
        model_name=new.model_name,
        reused=reused,
        first_words=words,
        score_difference=difference,
        first_words_seconds=round(spoke, 2),
        ready_seconds=round(time.monotonic() - started, 2),
    )


def _stores(request: DeployRequest) -> tuple[Location, ...]:
    return tuple(dict.fromkeys([request.store, LocalStore.holding(request.artifact).location]))


def _withdraw(endpoint: Endpoint, but: Endpoint | None, context: Context) -> None:
    for problem in endpoint.withdraw(but=but):
        context.log(
            f"a store believes that another artifact is still served as {endpoint.name}: {problem}"
        )


def _replace(old: Endpoint | None, new: Endpoint, keys: list[str], context: Context) -> None:
    """Start the new server in the place of the old one. They may share the port, so the old one
    goes first."""
    if old is not None:
        context.log(f"stopping {old.name} ({old.artifact.short})")
        supervisor.stop(old)
    _require_free_port(new)
    new.save(keys)
    supervisor.start(new)


def _require_free_port(new: Endpoint) -> None:
    problem = port_problem(new.options.host, new.options.port)
    if problem is not None:
        raise EndpointError(
            problem,
            where=f"endpoint {new.name}",
            hint="set deploy.port to a free one, or stop what uses it",
        )


def _put_back(old: Endpoint | None, old_keys: list[str], new: Endpoint) -> None:
    """Undo a deployment that failed: the old server runs again, or nothing does and the port is
    free. The log stays."""
    supervisor.stop(new)
    if old is None:
        new.forget(keep_log=True)
    else:
        old.save(old_keys)
        supervisor.start(old)


def wait_until_ready(endpoint: Endpoint, progress: Progress) -> str:
    """Wait for a healthy server that has completed a real chat request; returns its words.

    Raises:
        EndpointError: the server died, the time ran out, or it answers with nothing.
    """
    limit = endpoint.options.ready_timeout_minutes * 60
    started = time.monotonic()
    _wait_until_healthy(endpoint, limit, progress)
    progress(0.92, "first completion")
    answer = endpoint.call(
        "/v1/chat/completions",
        {"model": endpoint.model_name, "messages": HELLO, "max_tokens": 16, "temperature": 0},
        timeout_s=max(5.0, limit - (time.monotonic() - started)),
    )
    words = str(answer["choices"][0]["message"]["content"] or "").strip()
    if not words:
        raise _not_ready(endpoint, "it answers `hello` with nothing")
    return words


def _wait_until_healthy(endpoint: Endpoint, limit_s: float, progress: Progress) -> None:
    started = time.monotonic()
    first_pid = 0
    while True:
        waited = time.monotonic() - started
        state, pid = supervisor.state(endpoint)
        first_pid = first_pid or pid
        if state in GAVE_UP or pid not in (0, first_pid):  # supervisord would restart it for ever
            raise _not_ready(endpoint, "the server died before it was ready")
        progress(min(0.9, waited / limit_s), f"waiting for {endpoint.url} ({state.lower()})")
        with contextlib.suppress(EndpointError):  # not listening yet
            health = endpoint.call("/health", timeout_s=5)
            if health.get("status", "healthy") == "healthy":
                return
        if waited > limit_s:
            raise _not_ready(endpoint, f"not ready after {limit_s:.0f} s")
        time.sleep(POLL_SECONDS)


def check_scores(endpoint: Endpoint, evidence: ModelArtifact) -> float:
    """Ask the live endpoint to score held-out text; returns the largest difference to the evidence
    in nats a token.

    Raises:
        EndpointError: it is more than `score_tolerance`: what is served is not what was judged.
    """
    largest = -1.0
    for probe in read_probes(evidence):
        # LMDeploy's name; it is nats
        live = float(endpoint.call("/get_ppl", {"input": list(probe.ids)}, timeout_s=120)["ppl"])
        difference = abs(live - probe.nll)
        if not difference <= endpoint.options.score_tolerance:  # so a NaN is refused too
            raise EndpointError(
                f"held-out text scores {difference:.4f} nats a token off the evidence, more than"
                f" deploy.score_tolerance {endpoint.options.score_tolerance}: what is served is not"
                " what was judged",
                where=f"endpoint {endpoint.name}",
                hint=(
                    "look for what differs between the server and the measurement (engine version,"
                    " KV cache, GPU)"
                ),
            )
        largest = max(largest, difference)
    if largest < 0:
        raise EndpointError(
            "the evidence has no text to score",
            where=f"endpoint {endpoint.name}",
            hint="evaluate again",
        )
    return largest


def _not_ready(endpoint: Endpoint, what: str) -> EndpointError:
    log = endpoint.folder / LOG
    return EndpointError(
        f"{what}; {last_lines(log)}", where=f"endpoint {endpoint.name}", hint=f"its log: {log}"
    )
