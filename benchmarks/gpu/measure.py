"""Measurements on a GPU: `make bench-gpu`, or `python -m benchmarks.gpu.measure NAME ... --out
FOLDER` for some of them.

Each writes FOLDER/NAME.json: its raw figures with the exact command, versions, GPU and driver.
`benchmarks.gpu.write_up` makes `docs/benchmarks/<gpu>.md` of them; nothing there is written by
hand.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from artifacts.records.report import MARKDOWN, VARIANTS, VERDICT
from artifacts.store.files import sha256_file
from configs import paths
from tasks.machine import gpus
from tasks.machine.sampler import GpuMemoryMeter
from tasks.runner.step import versions

PROMPT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 16, "temperature": 0}
# `lmdeploy lite auto_awq` as it is, but with the rows of a file instead of a data set from the hub
BARE_AWQ = """
import json, sys, torch
from lmdeploy.lite.apis import calibrate
rows = json.load(open(sys.argv.pop(1)))
calibrate.get_calib_loaders = lambda *a, **k: [torch.tensor([row]) for row in rows]
from lmdeploy.cli import run
run()
"""


def lmflows(*words: str, check: bool = True) -> tuple[float, str]:
    """Run the command line; wall seconds and output."""
    command = [sys.executable, "-m", "flows.cli.main", *words]
    print("$ lmflows", *words, flush=True)
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=paths.PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    print(done.stdout, flush=True)
    if check and done.returncode:
        raise SystemExit(f"{words} ended with {done.returncode}")
    return time.monotonic() - started, done.stdout


def workspace_model(kind: str, recipe: Callable[[dict[str, Any]], bool] = lambda _: True) -> Path:
    """The newest artifact folder of a kind in the home folder."""
    from artifacts.store.local import LocalStore

    store = LocalStore(paths.workspace())
    found = [
        digest
        for digest in store.digests()
        if store.manifest(digest).kind == kind and recipe(store.manifest(digest).recipe)
    ]
    return store.open(found[-1]).path


def flow_run(config: str, *words: str) -> dict[str, Any]:
    """One whole run of the main flow: its wall time, its tables, its steps."""
    seconds, output = lmflows("run", config, *words)
    report = workspace_model("report")
    return {
        "command": f"lmflows run {config} {' '.join(words)}".strip(),
        "seconds": seconds,
        "verdict": json.loads((report / VERDICT).read_text()),
        "variants": json.loads((report / VARIANTS).read_text()),
        "report": (report / MARKDOWN).read_text(),
        "output": output,
    }


def smollm2(place: Path) -> dict[str, Any]:
    """The whole flow on padded SmolLM2, four variants; and once more, which touches no GPU."""
    first = flow_run("configs/demo-gpu.yaml")
    again, _ = lmflows("run", "configs/demo-gpu.yaml")
    lmflows("stop", "--all")
    return first | {"limit_seconds": 360, "second_run_seconds": again}


def internlm2_shape(place: Path) -> dict[str, Any]:
    """The whole flow on a 1.9B random-weight model of InternLM2's shape."""
    folder = random_model(place, "internlm2-1.9b")
    trusted = json.dumps({path.name: sha256_file(path)[1] for path in folder.glob("*.py")})
    result = flow_run(
        "configs/internlm2-chat-1_8b.yaml",
        "--set",
        f"source.path={folder}",
        "--set",
        f"source.trusted_code={trusted}",
        "--set",
        "evaluate.max_perplexity_ratio=10.0",
        "--set",
        "evaluate.max_tokens_per_document=256",
        # random weights know nothing and answer with noise: here that is no anomaly
        # and no defect
        "--set",
        "evaluate.max_parent_perplexity=1000000000.0",
        "--set",
        "evaluate.probes=0",
        "--set",
        "repair.changes=[]",
        "--set",
        "engine.session_len=4096",
    )
    lmflows("stop", "--all")
    return result | {"limit_seconds": 540}


def random_model(place: Path, shape: str, *, w4a16: bool = False) -> Path:
    """A random-weight checkpoint, made once; tokenizer and code from where the environment says, or
    fetched."""
    from tests.support import random_model as module

    folder = place / f"{shape}{'-w4a16' if w4a16 else ''}"
    if not folder.exists():
        started = time.monotonic()
        given = os.environ.get("LMFLOWS_INTERNLM2_CODE")
        module.build(
            folder,
            module.SHAPES[shape],
            workspace_model("fp16"),
            code=Path(given) if given else None,
            w4a16=w4a16,
            device="cuda",
        )
        print(f"{folder.name}: made in {time.monotonic() - started:.0f} s", flush=True)
    return folder


def runtimes(place: Path) -> dict[str, Any]:
    """The 7.7B shape in fp16 and W4A16 through every runtime, interleaved."""
    names = os.environ.get(
        "LMFLOWS_BENCH_RUNTIMES", "default,lmdeploy-0.12.3,lmdeploy-0.18.0"
    ).split(",")
    result: dict[str, Any] = {}
    for kind in ("fp16", "w4a16"):
        folder = random_model(place, "llama-7.7b", w4a16=kind == "w4a16")
        raw = place / f"runtimes-{kind}.json"
        words = [word for name in names for word in ("--runtime", name)]
        _, output = lmflows(
            "engines",
            "compare",
            str(folder),
            *words,
            "--batch-sizes",
            "1,16,64",
            "--rounds",
            "5",
            "--json",
            str(raw),
        )
        result[kind] = {
            "command": (
                f"lmflows engines compare {folder.name} {' '.join(words)} --batch-sizes 1,16,64"
                " --rounds 5"
            ),
            "output": output,
        } | json.loads(raw.read_text())
    return result


def kv_cache(place: Path) -> dict[str, Any]:
    """What cache_max_entry_count takes."""
    raw = place / "memory.json"
    model = str(workspace_model("w4a16"))
    lmflows("engines", "memory", model, "--shares", "0.1,0.4,0.8", "--json", str(raw))
    found: dict[str, Any] = json.loads(raw.read_text())
    return {"command": "lmflows engines memory MODEL --shares 0.1,0.4,0.8"} | found


def quantization(place: Path) -> dict[str, Any]:
    """Our quantize step beside bare `lmdeploy lite auto_awq` with the same rows: A B B A, time and
    peak GPU memory."""
    from transformers import AutoTokenizer

    from artifacts.records.texts import CALIBRATION, read_documents
    from tasks.checkpoints.calibration import calibration_rows

    model, texts = random_model(place, "internlm2-1.9b"), workspace_model("texts")
    tokenizer = AutoTokenizer.from_pretrained(model)
    samples, length = 60, 1024  # the held-out documents leave 63 rows
    rows = place / "rows.json"
    rows.write_text(
        json.dumps(
            calibration_rows(
                tokenizer,
                read_documents(texts / CALIBRATION),
                samples=samples,
                length=length,
                seed=0,
            )
        )
    )
    turns: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    for name in ("ours", "bare", "bare", "ours"):
        with GpuMemoryMeter(gpus.visible()[:1]) as meter:
            started = time.monotonic()
            if name == "bare":
                work = place / "bare-awq"
                shutil.rmtree(work, ignore_errors=True)
                subprocess.run(
                    [
                        sys.executable,
                        "-c",
                        BARE_AWQ,
                        str(rows),
                        "lite",
                        "auto_awq",
                        str(model),
                        "--work-dir",
                        str(work),
                        "--calib-samples",
                        str(samples),
                        "--calib-seqlen",
                        str(length),
                        "--batch-size",
                        "8",
                        "--dtype",
                        "float16",
                        "--trust-remote-code",
                    ],
                    check=True,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.STDOUT,
                )
            else:
                ours(place, model, texts, samples, length)
            seconds = time.monotonic() - started
        turns[name].append({"seconds": seconds, "peak_gpu_bytes": float(meter.peak_bytes or 0)})
        print(name, turns[name][-1], flush=True)
    return {
        "command": f"auto_awq, {samples} x {length} tokens, batch 8, internlm2-1.9b shape",
        "turns": turns,
        "limit": 1.05,
    }


def ours(place: Path, model: Path, texts: Path, samples: int, length: int) -> None:
    """The quantize step as a run executes it: a child process, and its result an artifact."""
    from artifacts.manifest import ModelArtifact
    from artifacts.store.local import LocalStore
    from configs.quantization import Quantize
    from tasks.quantize import QuantizeRequest, quantize
    from tasks.runner.parent import Placement, run_child

    store = LocalStore(paths.workspace())
    digests = {store.open(digest).path.resolve(): digest for digest in store.digests()}
    config = (model / "config.json").read_text()
    source = next(
        digest
        for path, digest in digests.items()
        if store.manifest(digest).kind == "fp16" and (path / "config.json").read_text() == config
    )
    request = QuantizeRequest(
        model=store.open(source),
        texts=ModelArtifact(digest=digests[texts.resolve()], kind="texts", path=texts),
        config=Quantize(samples=samples, sequence_length=length, batch_size=8, device="cuda"),
    )
    run_child(quantize, request, Placement(place / "ours", store, timeout_s=600))


def start_up(place: Path) -> dict[str, Any]:
    """From nothing to the first completion: our deploy step beside bare `lmdeploy serve
    api_server`, A B B A; ours with and without the GEMM tuning of an earlier start."""
    from artifacts.records.evidence import read_evidence
    from artifacts.store.local import LocalStore
    from configs.deployment import Deploy
    from configs.engines import EngineTurbomind
    from tasks.deploy import DeployRequest, deploy
    from tasks.runner.step import Context
    from tasks.serving import endpoints, supervisor

    store = LocalStore(paths.workspace())
    proofs = (
        store.open(digest)
        for digest in reversed(list(store.digests()))
        if store.manifest(digest).kind == "evidence"
    )
    proof = next(one for one in proofs if not read_evidence(one).itself)
    model = store.open(read_evidence(proof).candidate)
    report = next(
        store.open(digest)
        for digest in store.digests()
        if store.manifest(digest).kind == "report"
        and store.manifest(digest).parent("evidence") == proof.digest
    )
    turns: dict[str, list[float]] = {"ours": [], "bare": [], "ours, without tuning": []}
    for name in ("ours, without tuning", "ours", "bare", "bare", "ours", "ours, without tuning"):
        if name == "ours, without tuning":
            shutil.rmtree(paths.home() / "tuning", ignore_errors=True)
        elif not (paths.home() / "tuning").exists():
            tune(model.path)
        started = time.monotonic()
        if name == "bare":
            bare_server(model.path)
        else:
            result = deploy(
                DeployRequest(
                    name="start-up",
                    artifact=model,
                    report=report,
                    evidence=proof,
                    store=store.location,
                    options=Deploy(port=23335, score_tolerance=1.0),
                    engine=EngineTurbomind(name="turbomind", cache_max_entry_count=0.4),
                ),
                Context(store),
            )
        turns[name].append(
            time.monotonic() - started if name == "bare" else result.first_words_seconds
        )
        print(name, turns[name][-1], flush=True)
        for endpoint in endpoints.list_all():
            supervisor.stop(endpoint)
            endpoint.forget()
    return {
        "command": "deploy step; lmdeploy serve api_server and one completion",
        "turns": turns,
        "limit": 1.1,
    }


def scoring(place: Path) -> dict[str, Any]:
    """Tokens per second of scoring through TurboMind and through the transformers engine,
    interleaved, in the same batches."""
    from configs.engines import EngineTransformers, EngineTurbomind
    from tasks.engines.documents import score_all
    from tasks.engines.process import EngineProcess
    from tasks.engines.protocol import EngineSpec

    folder, rng = random_model(place, "internlm2-1.9b"), random.Random(0)
    options = {
        "turbomind": EngineTurbomind(name="turbomind", cache_max_entry_count=0.2),
        "transformers": EngineTransformers(name="transformers", dtype="float16"),
    }
    turns: dict[str, list[float]] = {name: [] for name in options}
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(
                EngineProcess(EngineSpec(folder=folder, engine=one, trust_remote_code=True))
            )
            for name, one in options.items()
        }
        for number in range(-1, 6):  # the first one warms up
            sequences = [
                [rng.randrange(engines["turbomind"].vocabulary) for _ in range(512)]
                for _ in range(64)
            ]
            for name in options if number % 2 else reversed(options):
                started = time.monotonic()
                score_all(engines[name], sequences, None, 16, lambda _: None)
                if number >= 0:
                    turns[name].append(64 * 511 / (time.monotonic() - started))
    print(turns, flush=True)
    return {
        "command": "64 x 512 tokens in batches of 16, internlm2-1.9b shape",
        "turns": turns,
        "limit": 5,
    }


def tune(folder: Path) -> None:
    """Load the model once, as the measure step does, so that its tuning is kept."""
    from configs.engines import EngineTurbomind
    from tasks.engines.process import EngineProcess
    from tasks.engines.protocol import EngineSpec

    EngineProcess(
        EngineSpec(
            folder=folder, engine=EngineTurbomind(name="turbomind", cache_max_entry_count=0.1)
        )
    ).close()


def bare_server(folder: Path) -> None:
    """`lmdeploy serve api_server` until its first completion, then SIGTERM."""
    server = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from lmdeploy.cli import run; run()",
            "serve",
            "api_server",
            str(folder),
            "--backend",
            "turbomind",
            "--model-format",
            "awq",
            "--model-name",
            "bare",
            "--server-name",
            "127.0.0.1",
            "--server-port",
            "23336",
            "--cache-max-entry-count",
            "0.4",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    request = urllib.request.Request(
        "http://127.0.0.1:23336/v1/chat/completions",
        headers={"Content-Type": "application/json"},
        data=json.dumps(PROMPT | {"model": "bare"}).encode(),
    )
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer)["choices"][0]["message"]["content"]
            break
        except OSError:
            if server.poll() is not None:
                raise SystemExit("the bare server died") from None
            time.sleep(0.1)
    server.send_signal(signal.SIGTERM)
    threading.Timer(20, server.kill).start()
    server.wait()


BENCHES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "smollm2": smollm2,
    "kv_cache": kv_cache,
    "start_up": start_up,
    "internlm2_shape": internlm2_shape,
    "quantization": quantization,
    "scoring": scoring,
    "runtimes": runtimes,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="*",
        choices=[*BENCHES, []],
        metavar="NAME",
        help=f"of {', '.join(BENCHES)}; default: all, in this order",
    )
    parser.add_argument("--out", type=Path, default=Path("bench-gpu"))
    parser.add_argument(
        "--place",
        type=Path,
        default=Path(tempfile.gettempdir()) / "lmflows-bench-gpu",
        help="for large models",
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.place.mkdir(parents=True, exist_ok=True)
    for name in args.names or BENCHES:
        started = time.monotonic()
        figures = {
            "name": name,
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "gpu": gpus.description(gpus.visible()[0]),
            "cores": psutil.cpu_count(),
            "python": platform.python_version(),
            "versions": versions(("lmdeploy", "torch", "transformers", "prefect")),
            **BENCHES[name](args.place),
        }
        (args.out / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
        print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
