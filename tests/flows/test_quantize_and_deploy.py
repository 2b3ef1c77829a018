"""The whole flow through the command line: a real small model, real child processes, a real server.
No mocks.
"""

# covers flows/cli/app.py
# covers flows/cli/artifacts.py
# covers flows/cli/console.py
# covers flows/cli/endpoints.py
# covers flows/cli/main.py
# covers flows/cli/run.py
# covers flows/cli/run_summary.py
# covers flows/cli/signals.py
# covers tasks/promote.py
# covers tasks/upload.py

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from artifacts.records.load_results import read_load
from artifacts.registry.refs import Registry
from artifacts.store.local import LocalStore
from artifacts.store.objects import LocalObjects
from artifacts.store.open import open_store
from configs.errors import DiskFull
from configs.paths import PROJECT
from tasks.machine.ports import port_problem
from tests.support import planted_runtime, s3_server
from tests.support.keys import Keys
from tests.support.patience import PATIENCE
from tests.support.site import Site

MEASURED = ("measure fp16", "evaluate fp16", "measure w4a16", "evaluate w4a16")
STEPS = (
    "machine",
    "texts",
    "download",
    "preflight",
    "capacity",
    "smoke test",
    "quantize",
    *MEASURED,
    "report",
    "upload",
    "promote",
    "deploy",
)
KINDS = {"fp16", "w4a16", "texts", "measurement", "evidence", "report"}
BENCHMARK = "benchmark={batch_sizes: [1, 3], prompt_tokens: 16, new_tokens: 8, rounds: 2}"
ALONE = {"PREFECT_API_URL": ""}  # with a Prefect server of the run's own, as on a new machine
SEARCH = ("--set", "deploy=null", "--set", "quantize.search_scale=true")


@dataclass(frozen=True)
class Run:
    """What a run has printed, and what Prefect's server knows of it."""

    output: str
    known: dict[str, Any]


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, prefect_api: str
) -> Iterator[Site]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    site = Site(tmp_path_factory.mktemp("site"), tiny_model, port, prefect_api)
    yield site
    site.call("stop", "--all")


@pytest.fixture(scope="module")
def first(site: Site) -> str:
    status, output = site.call("run", str(site.config), **ALONE)
    assert status == 0, output
    return output


def left_alive(home: Path, seconds: float = 10) -> list[str]:
    """The processes of that home (steps, servers, Prefect's) that are still there after a while."""
    deadline = time.monotonic() + seconds
    while (
        found := [" ".join(p.cmdline()) for p in psutil.process_iter() if belongs(p, home)]
    ) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def belongs(process: psutil.Process, home: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(
            "LMFLOWS_HOME"
        ) == str(home)
    except psutil.Error:
        return False


@pytest.fixture(scope="module")
def second(site: Site, first: str) -> Run:
    """The same again, on a Prefect server that other runs use, too."""
    status, output = site.run()
    assert status == 0, output
    return Run(output, last_run(site))


def flip(server: s3_server.Server, digest: str, name: str) -> None:
    """Change one byte of a file of an artifact, as the bucket has it."""
    from tests.support.places import Place

    with s3_server.credentials():
        store = open_store(server.location("team"))
        Place(store, LocalStore(Path("unused"))).spoil(
            "blobs", store.manifest(digest).entry(name).sha256
        )


def ask(site: Site, what: str, **filters: object) -> list[dict[str, Any]]:
    """What Prefect's server has of a kind (`flow_runs`, `artifacts`), by its API."""
    request = urllib.request.Request(
        f"{site.api}/{what}/filter",
        json.dumps(filters).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return list(json.load(response))


def last_run(site: Site) -> dict[str, Any]:
    """The last run of the config that the server knows."""
    of_the_config = {"name": {"any_": [str(site.config)]}}
    return ask(site, "flow_runs", flow_runs=of_the_config, sort="START_TIME_DESC", limit=1)[0]


def of(run: dict[str, Any]) -> dict[str, object]:
    """The filter by which the server answers of that run alone."""
    return {"flow_runs": {"id": {"any_": [run["id"]]}}}


@pytest.fixture(scope="module")
def timed(site: Site, first: str) -> Run:
    """A run that has a benchmark and a load test, so that each variant is measured anew."""
    load = (
        "load={concurrencies: [2], requests: 12, prompt_tokens: 16, new_tokens: 8, max_lag_ms:"
        " 2000}"
    )
    status, output = site.call(
        "run",
        str(site.config),
        "--set",
        BENCHMARK,
        "--set",
        load,
        "--set",
        "deploy=null",
    )
    assert status == 0, output
    return Run(output, last_run(site))


class TestInThisOrder:
    """Each test finds the home as those before it have left it: run, look, run again, damage, fail,
    stop, interrupt."""

    def test_one_command_leads_to_a_judged_and_served_model(self, site: Site, first: str) -> None:
        for name in STEPS:
            assert re.search(rf"done\s+{name}", first), name
        assert "PASS within the margin: perplexity ratio" in first
        assert f"http://127.0.0.1:{site.port}/v1" in first
        for command in ("chat tiny", "stop tiny", " ui", "registry promote tiny dev staging  "):
            assert command in first
        assert re.search(r"this run +\d+ s, at most \d\.\d GB of memory", first)

    def test_the_endpoint_goes_on_after_the_command(self, site: Site, first: str) -> None:
        body = json.dumps(
            {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
        ).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{site.port}/v1/chat/completions",
            body,
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            assert "help you" in json.load(response)["choices"][0]["message"]["content"]

    def test_everything_is_in_the_store_and_names_its_parents(self, site: Site, first: str) -> None:
        store = LocalStore(site.home / "store")
        kinds = {store.manifest(digest).kind: digest for digest in store.digests()}
        assert kinds.keys() == KINDS
        assert all(store.verify(digest) == [] for digest in store.digests())
        report = store.manifest(kinds["report"])
        assert (report.parent("candidate"), report.parent("evidence"), report.parent("parent")) == (
            kinds["w4a16"],
            kinds["evidence"],
            kinds["fp16"],
        )
        assert kinds["w4a16"] in first
        evidence = store.manifest(kinds["evidence"])
        measurements = {
            digest for digest in store.digests() if store.manifest(digest).kind == "measurement"
        }
        assert {
            evidence.parent("baseline"),
            evidence.parent("measurement"),
        } == measurements and len(measurements) == 2
        assert store.manifest(evidence.parent("baseline")).parent("model") == kinds["fp16"]
        assert store.manifest(evidence.parent("measurement")).parent("model") == kinds["w4a16"]

    def test_the_stage_points_to_the_candidate_and_its_verdict(
        self, site: Site, first: str
    ) -> None:
        store = LocalStore(site.home / "store")
        entry = Registry(store.objects).read("tiny", "dev").ref.current
        assert entry is not None
        assert (
            store.manifest(entry.digest).kind == "w4a16"
            and store.manifest(entry.report).kind == "report"
        )
        assert store.manifest(entry.report).parent("candidate") == entry.digest

    def test_verify_show_ls_and_status_tell_of_it(self, site: Site, first: str) -> None:
        digest = LocalStore(site.home / "store").digests()
        report = next(
            d for d in digest if LocalStore(site.home / "store").manifest(d).kind == "report"
        )
        status, output = site.call("verify", report)
        assert status == 0 and "all as in manifest" in output
        status, output = site.call("show", report[:10])
        assert status == 0 and "# tiny: PASS" in output and "## Lineage" in output
        for row in (
            r"\| fp16 \| baseline \| .* MB \| \d+\.\d+ \| 1 ",
            r"\| w4a16 \| PASS \| .* \| \d+\.\d+ \| 1\.\d+ \[[\d., ]+\] \| \d+\.\d%",
        ):
            assert re.search(row, output), row
        rows = json.loads(site.call("ls", "--json")[1])
        assert {row["kind"] for row in rows} == KINDS
        assert next(row for row in rows if row["kind"] == "w4a16")["stages"] == "tiny/dev"
        assert json.loads(site.call("status", "--json")[1])[0]["state"] == "RUNNING"

    def test_a_second_run_repeats_nothing_and_says_so(self, site: Site, second: Run) -> None:
        output = second.output
        for name in ("preflight", "smoke test", "quantize", *MEASURED):
            assert re.search(rf"reused +{name}", output), name
        assert (
            len(site.logs("quantize"))
            == len(site.logs("measure-fp16"))
            == len(site.logs("measure-w4a16"))
            == 1
        )
        assert (
            re.search(
                r"reused +preflight, smoke test,"
                rf" {', '.join((*MEASURED[:2], 'quantize', *MEASURED[2:]))}",
                output,
            )
            and "(was running)" in output
        )

    def test_a_damaged_artifact_is_found_and_made_again(self, site: Site, first: str) -> None:
        workspace = LocalStore(site.home / "workspace")
        digest = next(d for d in workspace.digests() if workspace.manifest(d).kind == "w4a16")
        weights = workspace.tree(digest) / "model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.chmod(0o644)
        weights.write_bytes(data)
        status, output = site.call("verify", digest)
        assert status == 1 and "changed: model.safetensors" in output
        status, output = site.run()
        assert status == 0, output
        assert len(site.logs("quantize")) == 2 and len(site.logs("smoke_test")) == 1
        assert (
            workspace.verify(digest) == [] and LocalStore(site.home / "store").verify(digest) == []
        )

    def test_a_verdict_that_is_not_pass_ends_with_status_3_and_goes_nowhere(
        self, site: Site, first: str
    ) -> None:
        before = Registry(LocalObjects(site.home / "store")).read("tiny", "dev")
        status, output = site.run(
            "--set", "evaluate.max_perplexity_ratio=1.0001", "--set", "repair.changes=[]"
        )
        assert status == 3, output
        assert (
            "VerdictFailed" in output
            and "the interval reaches across the margin" in output
            and "Traceback" not in output
        )
        assert not re.search(r"done +(promote|deploy)", output)
        assert Registry(LocalObjects(site.home / "store")).read("tiny", "dev") == before
        # another limit is no reason to score again
        assert all(re.search(rf"reused +{name}", output) for name in MEASURED)
        report = re.search(r"`lmflows report (\w+)`", output)
        assert report and "# tiny: INCONCLUSIVE" in site.call("show", report[1])[1]

    def test_on_s3_with_signatures_from_the_upload_to_production_and_back(
        self, site: Site, first: str, tmp_path: Path
    ) -> None:
        """A real S3 server over HTTP; the policy names the store and the keys, the environment the
        credentials."""
        ours, theirs = Keys(tmp_path).pair("signer")
        policy = {"require_signature": True, "trusted": [theirs.model_dump(mode="json")]}
        with s3_server.running() as server:
            policy["store"] = server.location("team")
            environment = s3_server.ENVIRONMENT | {"LMFLOWS_POLICY": str(tmp_path / "policy.yaml")}

            def call(*words: str, status: int = 0) -> str:
                found, output = site.call(*words, **environment)
                assert found == status, output
                assert s3_server.SECRET not in output
                return output

            (tmp_path / "policy.yaml").write_text(yaml.safe_dump(policy))
            nowhere = call(
                "run",
                str(site.config),
                "--set",
                f"upload.store={server.location('team', bucket='no-such-bucket')}",
                status=2,
            )
            assert "no-such-bucket" in nowhere and "texts" not in nowhere  # before anything else
            assert "SignatureRefused" in call("run", str(site.config), status=3)
            (tmp_path / "policy.yaml").write_text(
                yaml.safe_dump(policy | {"sign": ours.model_dump(mode="json")})
            )
            output = call("run", str(site.config))
            assert re.search(r"done\s+sign", output) and "tiny/dev" in output
            for words in (("dev", "staging"), ("staging", "production", "--yes")):
                call("registry", "promote", "tiny", *words, "--why", "a test")
            assert [row["stage"] for row in json.loads(call("registry", "ls", "--json"))] == [
                "dev",
                "staging",
                "production",
            ]
            assert "PASS" in call(
                "registry", "show", "tiny/production"
            ) and "as in their manifests" in call("registry", "verify")
            digest = json.loads(call("registry", "history", "tiny", "production", "--json"))[0][
                "digest"
            ]
            flip(server, digest, "model.safetensors")
            assert "changed: model.safetensors" in call("registry", "verify", digest, status=1)
            assert "model.safetensors" in call(
                "registry", "pull", digest, "--to", str(tmp_path / "other"), status=1
            )
            assert not LocalStore(tmp_path / "other").has(digest)
            assert "model.safetensors" in call(
                "registry", "promote", "tiny", "dev", "staging", "--variant", "w4a16", status=3
            )
        everything = [
            path.read_text(errors="replace")
            for path in site.home.rglob("*")
            if path.suffix in (".txt", ".json", ".log") and path.is_file()
        ]
        assert everything and not any(s3_server.SECRET in text for text in everything)

    def test_with_a_prefect_server_the_run_can_be_watched_there(
        self, site: Site, second: Run
    ) -> None:
        run = second.known
        assert (run["state"]["type"], run["name"]) == ("COMPLETED", str(site.config))
        tasks = {task["name"]: task["state"]["name"] for task in ask(site, "task_runs", **of(run))}
        assert set(STEPS) == tasks.keys()
        assert {tasks[name] for name in ("quantize", *MEASURED)} == {"Cached"}
        artifacts = {item["key"]: item for item in ask(site, "artifacts", **of(run))}
        assert "# tiny: PASS" in artifacts["report-tiny"]["data"]
        assert [row["variant"] for row in json.loads(artifacts["variants-tiny"]["data"])] == [
            "fp16",
            "w4a16",
        ]
        of_the_run = {"flow_run_id": {"any_": [run["id"]]}}
        lines = " ".join(line["message"] for line in ask(site, "logs", logs=of_the_run, limit=200))
        assert "PASS: within the margin" in lines

    def test_a_benchmark_times_each_variant(self, site: Site, timed: Run) -> None:
        assert all(re.search(rf"done +{name}", timed.output) for name in MEASURED)
        assert re.search(r"reused +quantize", timed.output)
        for line in ("fp16 +baseline", "w4a16 +PASS"):
            assert re.search(rf"^{line} ", timed.output, re.MULTILINE), line
        table = {"key": {"any_": ["variants-tiny"]}}
        tables = ask(site, "artifacts", artifacts=table, **of(timed.known))
        for row in json.loads(tables[0]["data"]):
            for column in ("prefill tokens/s", "decode tokens/s"):
                assert re.fullmatch(r"[1-9]\d* \(batch 1\), [1-9]\d* \(batch 3\)", row[column]), row
            assert re.fullmatch(r"\d+\.\d s", row["load"]) and "GPU memory" not in row

    def test_a_load_test_puts_each_variant_under_load_and_is_in_the_report(
        self, site: Site, timed: Run
    ) -> None:
        assert all(
            re.search(rf"done +load test {name}", timed.output) for name in ("fp16", "w4a16")
        )
        page = {"key": {"any_": ["page-tiny"]}}
        links = ask(site, "artifacts", artifacts=page, **of(timed.known))
        found = re.search(r"\(file://(\S+)\)", links[0]["data"])
        assert found and "Every load; in brackets" in Path(found[1]).read_text()
        loads = [
            read_load(LocalStore(site.home / "workspace").open(path.parent.name))
            for path in (site.home / "workspace/trees").glob("*/load.json")
        ]
        assert {item.variant for item in loads} == {"fp16", "w4a16"}
        assert all(result.rows.status == ("ok",) * 12 for item in loads for result in item.results)

    def test_the_objective_decides_what_is_served_and_says_why(
        self, site: Site, timed: Run
    ) -> None:
        """Which of the two is faster here is not the question."""
        status, output = site.run("--set", BENCHMARK, "--set", "objective=latency")
        assert status == 0, output
        winner = re.search(
            r"served for latency: (fp16|w4a16): [\d.]+ decode tokens/s of the smallest batch,"
            r" against",
            output,
        )
        assert winner and re.search(r"reused +measure fp16", output)
        store, served = (
            LocalStore(site.home / "store"),
            json.loads(site.call("status", "--json")[1])[0]["artifact"],
        )
        assert [
            store.manifest(digest).kind for digest in store.digests() if digest.startswith(served)
        ] == [winner[1]]

    def test_without_a_gpu_prefect_is_asked_for_no_slot(self, site: Site, timed: Run) -> None:
        """The run above has measured, which on a GPU takes its slot."""
        tasks = ask(site, "task_runs", **of(timed.known))
        states = [(task["name"], task["state"]["name"]) for task in tasks]
        assert ("measure fp16", "Completed") in states
        limits = ask(site, "v2/concurrency_limits")
        assert [limit["name"] for limit in limits if limit["name"].startswith("gpu:")] == []
        assert "slot" not in timed.output

    def test_the_deployments_deploy(self, site: Site, tmp_path: Path) -> None:
        environment = os.environ | {"PREFECT_API_URL": site.api, "PREFECT_HOME": str(tmp_path)}
        prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
        for pool in ("gpu", "control"):
            subprocess.run(
                [*prefect, "work-pool", "create", pool, "--type", "process"],
                env=environment,
                check=True,
                capture_output=True,
            )
        done = subprocess.run(
            [*prefect, "deploy", "--all"],
            env=environment,
            cwd=PROJECT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        deployments = {item["name"]: item for item in ask(site, "deployments")}
        stages = {deployments.pop(name)["entrypoint"] for name in ("promote", "rollback")}
        assert stages == {
            "flows.promote_model:promote_model",
            "flows.rollback_model:rollback_model",
        }
        assert deployments.keys() == {"demo", "demo-gpu", "internlm2-chat-1_8b"}
        for item in deployments.values():
            assert item["entrypoint"] == "flows.quantize_and_deploy:quantize_and_deploy"
            assert item["global_concurrency_limit"]["limit"] == 1

    def test_the_served_variant_failing_in_its_engine_fails_the_run(
        self, site: Site, first: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its engine's process aborts while it loads the quantized model, in a runtime of its own;
        the fp16 model loads there."""
        monkeypatch.setenv("LMFLOWS_HOME", str(site.home))
        planted_runtime.adopt(
            "breaks",
            site.folder / "breaks",
            fails="'quantization_config' in (spec.folder / 'config.json').read_text()",
        )
        before = Registry(LocalObjects(site.home / "store")).read("tiny", "dev")
        status, output = site.run("--set", "engine.runtime=breaks")
        assert status == 1, output
        assert re.search(r"done +measure fp16", output) and re.search(
            r"failed +measure w4a16", output
        )
        assert (
            "EngineCrashed: engine transformers: died with signal SIGABRT while it was asked to"
            " load" in output.replace("\n", " ")
        )
        assert "terminate called after throwing" in output and "Traceback" not in output
        assert not re.search(r"start +(evaluate w4a16|report|promote|deploy)", output)
        assert Registry(LocalObjects(site.home / "store")).read("tiny", "dev") == before
        # what was served before still is
        assert json.loads(site.call("status", "--json")[1])[0]["state"] == "RUNNING"

    def test_stop_frees_the_port_and_leaves_no_process(self, site: Site, first: str) -> None:
        status, output = site.call("stop", "tiny")
        assert status == 0 and f"port {site.port} is free" in output
        assert port_problem("127.0.0.1", site.port) is None
        assert left_alive(site.home) == []

    @pytest.mark.parametrize(
        ("how", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)]
    )
    def test_interrupted_in_the_middle_it_leaves_no_orphan_and_no_half_artifact(
        self, site: Site, first: str, how: signal.Signals, expected: int
    ) -> None:
        """Another recipe, so that the quantization has to run; interrupted in it, the next run
        goes on after the smoke test."""
        done = len(site.logs("quantize"))
        process = site.start(
            "run", str(site.config), "--set", f"quantize.seed={how.value}", *SEARCH, **ALONE
        )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and not (
            len(site.logs("quantize")) > done
            and "Move model" in site.logs("quantize")[-1].read_text()
        ):
            time.sleep(0.05)
        process.send_signal(how)
        output = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == expected, output
        assert "Traceback" not in output
        assert left_alive(site.home) == []
        workspace = LocalStore(site.home / "workspace")
        workspace.sweep()
        assert not list((workspace.root / "tmp").iterdir())
        assert all(workspace.verify(digest) == [] for digest in workspace.digests())

    def test_after_an_interruption_the_run_goes_on_where_it_was(
        self, site: Site, first: str
    ) -> None:
        status, output = site.run("--set", "quantize.seed=9", *SEARCH)
        assert status == 0, output
        assert re.search(r"reused +smoke test", output) and re.search(r"done +quantize", output)


@pytest.mark.parametrize(
    ("override", "status", "words"),
    [
        ("quantize.bitz=4", 2, "quantize.bitz: unknown key (did you mean bits?)"),
        ("source.path=nowhere", 2, "is not a folder"),
        (
            "texts.source.type=psalms",
            2,
            "'psalms' is not allowed; one of 'python_docs', 'file', 'hub'",
        ),
        ("quantize.group_size=96", 2, "does not divide the input dimension"),
    ],
)
def test_bad_input_is_one_clear_error_and_no_traceback(
    site: Site, override: str, status: int, words: str
) -> None:
    code, output = site.run("--set", override)
    assert code == status and words in output.replace("\n", "") and "Traceback" not in output


def test_a_taken_port_is_found_before_any_long_work(site: Site, first: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        done = len(site.logs("quantize"))
        code, output = site.run(
            "--set", f"deploy.port={holder.getsockname()[1]}", "--set", "quantize.seed=77"
        )
    assert (
        code == 2 and "is taken -> set deploy.port" in output and len(site.logs("quantize")) == done
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_written(
    site: Site, first: str, tmp_path: Path
) -> None:
    """The store on a file system that takes the texts but not the weights."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", str(small)]).returncode:
        pytest.skip("mount is not allowed here")
    try:
        code, output = site.run("--set", f"upload.store={small / 'store'}", "--set", "deploy=null")
        assert code == 2 and "is on a full disk" in output
        workspace = LocalStore(site.home / "workspace")
        model = next(d for d in workspace.digests() if workspace.manifest(d).kind == "fp16")
        store = LocalStore(small / "store")
        with pytest.raises(DiskFull, match="no space left"):
            store.push(workspace, model)
        assert store.digests() == [] and not list((store.root / "tmp").iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)
