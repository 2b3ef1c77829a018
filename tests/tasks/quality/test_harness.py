"""lm-evaluation-harness in its own runtime, with a task of the user's own, against real servers
over the small model."""

# covers flows/cli/harness.py
# covers tasks/quality/harness_host.py

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from artifacts.manifest import ModelArtifact
from artifacts.records.items import HarnessResult
from configs.callbacks import no_progress
from configs.deployment import Deploy
from configs.engines import EngineTransformers
from configs.errors import ConfigError, EndpointError
from flows.cli.harness import harness
from tasks.engines.reference import ReferenceEngine
from tasks.quality.harness import RUNTIME, HarnessTasks, ServedModel, run_harness
from tasks.quality.item_answers import run_items
from tasks.quality.item_comparison import compare_items
from tasks.quality.items import Item
from tasks.runner import runtimes
from tasks.serving import endpoints
from tasks.serving.endpoints import Endpoint
from tests.support.reference_server import NAME, serving

QUESTIONS: list[dict[str, Any]] = [
    {
        "question": "A list is a mutable",
        "choices": ["sequence of objects.", "of sequence mutable."],
        "label": 0,
    },
    {
        "question": "The with statement is used to wrap the execution",
        "choices": ["of a block", "the statement wrap"],
        "label": 0,
    },
    {"question": "Hello! How can I", "choices": ["you today help?", "help you today?"], "label": 1},
    {"question": "A list is a", "choices": ["zzz zzz", "mutable sequence"], "label": 0},
]
CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "question",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
ANSWER = {
    "output_type": "generate_until",
    "doc_to_text": "question",
    "doc_to_target": "{{choices[label]}}",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 24},
    "metric_list": [{"metric": "exact_match", "ignore_punctuation": True, "ignore_case": True}],
}
WORDS = [
    ("The with statement is used to wrap the execution", " of the"),
    ("A list is a mutable", " sequence of objects."),
]
WORD = {
    "output_type": "loglikelihood",
    "doc_to_text": "question",
    "doc_to_target": "{{word}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
}


@pytest.fixture(scope="module")
def home(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A home in pytest's cache: making the runtime takes half a minute."""
    folder = request.config.cache.mkdir("harness_home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMFLOWS_HOME", str(folder))
        patch.setenv("HF_DATASETS_CACHE", str(folder / "datasets"))
        yield folder


@pytest.fixture(scope="module")
def include(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three tasks over a file beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "questions.jsonl").write_text(
        "".join(json.dumps(question) + "\n" for question in QUESTIONS)
    )
    (folder / "answers.jsonl").write_text(
        json.dumps(
            {
                "question": "What is a list in Python?",
                "label": 0,
                "choices": ["A list is a mutable sequence of objects"],
            }
        )
        + "\n"
        + json.dumps({"question": "hello", "label": 0, "choices": ["goodbye"]})
        + "\n"
    )
    (folder / "words.jsonl").write_text(
        "".join(json.dumps({"question": question, "word": word}) + "\n" for question, word in WORDS)
    )
    for name, data, fields in (
        ("tiny_choice", "questions", CHOICE),
        ("tiny_answer", "answers", ANSWER),
        ("tiny_word", "words", WORD),
    ):
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump(
                {
                    "task": name,
                    "dataset_path": "json",
                    "dataset_kwargs": {"data_files": {"test": str(folder / f"{data}.jsonl")}},
                    "test_split": "test",
                    **fields,
                }
            )
        )
    return folder


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> ReferenceEngine:
    return ReferenceEngine(tiny_model)


@pytest.fixture(scope="module")
def found(home: Path, engine: ReferenceEngine, tiny_model: Path, include: Path) -> HarnessResult:
    with serving(engine, keys=["secret"]) as url:
        served = ServedModel(f"{url}/v1", NAME, tiny_model, key="secret", longest=512)
        return run_harness(served, HarnessTasks(["tiny_choice", "tiny_word"], include))


@pytest.mark.slow
def test_multiple_choice_is_the_items_own_result(
    found: HarnessResult, engine: ReferenceEngine
) -> None:
    ours = run_items(
        engine,
        [
            Item(
                task="tiny_choice",
                id=str(number),
                prompt=str(question["question"]),
                choices=question["choices"],
                answer=question["label"],
            )
            for number, question in enumerate(QUESTIONS)
        ],
        batch_size=8,
        progress=no_progress,
    )
    theirs = [outcome for outcome in found.outcomes if outcome.task == "tiny_choice"]
    assert (
        [outcome.correct for outcome in theirs]
        == [outcome.correct for outcome in ours]
        == [True, True, True, False]
    )
    (accuracy,) = (
        one for one in found.metrics if (one.task, one.metric) == ("tiny_choice", "acc_norm")
    )
    assert accuracy.value == 0.75 and accuracy.stderr == pytest.approx(0.25) and found.version


@pytest.mark.slow
def test_a_likelihood_is_that_of_the_engine(found: HarnessResult, engine: ReferenceEngine) -> None:
    sums = []
    for question, word in WORDS:
        before, whole = (
            engine.tokenizer(question).input_ids,
            engine.tokenizer(question + word).input_ids,
        )
        sums.append(float(engine.score([whole])[0].nll[len(before) - 1 :].sum()))
    figures = {one.metric: one.value for one in found.metrics if one.task == "tiny_word"}
    assert figures["perplexity"] == pytest.approx(math.exp(sum(sums) / len(sums)), rel=1e-3)
    assert figures["acc"] == 0.5, "greedy decoding gives the first one"


@pytest.mark.slow
def test_a_chat_is_answered_through_the_servers_template_and_two_endpoints_compare(
    home: Path, engine: ReferenceEngine, tiny_model: Path, include: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model, tmp_path / "worse")
    tensors = load_file(tiny_model / "model.safetensors")
    tensors["model.norm.weight"].zero_()
    save_file(tensors, tmp_path / "worse" / "model.safetensors", metadata={"format": "pt"})
    lines: list[str] = []
    with serving(engine) as url, serving(ReferenceEngine(tmp_path / "worse")) as other:
        parent, candidate = (
            run_harness(
                ServedModel(address, NAME, tiny_model),
                HarnessTasks(["tiny_answer"], include, limit=1, chat=True),
                lines.append,
            )
            for address in (url, other)
        )
    assert [outcome.correct for outcome in parent.outcomes] == [True] and lines
    [task] = compare_items(parent.outcomes, candidate.outcomes)
    assert (task.task, task.n, task.lost, task.gained, task.only_parent, task.only_candidate) == (
        "tiny_answer",
        1,
        1,
        0,
        0,
        0,
    )


@pytest.mark.slow
def test_what_is_wrong_is_said(
    home: Path, engine: ReferenceEngine, tiny_model: Path, include: Path
) -> None:
    with serving(engine, keys=["secret"]) as url:
        with pytest.raises(
            EndpointError, match=r"tiny_choice: /get_ppl answered 401: .*invalid API key"
        ):
            run_harness(
                ServedModel(url, NAME, tiny_model, key="other"),
                HarnessTasks(["tiny_choice"], include),
            )
        with pytest.raises(ConfigError, match="no_such_task"):
            run_harness(
                ServedModel(url, NAME, tiny_model, key="secret"),
                HarnessTasks(["no_such_task"], include),
            )


@pytest.mark.slow
def test_the_command_compares_two_endpoints(
    home: Path,
    engine: ReferenceEngine,
    tiny_model: Path,
    include: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with serving(engine) as url:
        for name in ("parent", "candidate"):
            record = Endpoint(
                name=name,
                model_name=NAME,
                artifact=ModelArtifact(digest="0" * 64, path=tiny_model, kind="fp16"),
                engine=EngineTransformers(name="transformers"),
                options=Deploy(port=int(url.rpartition(":")[2])),
                since=datetime.now(UTC),
            )
            record.save([])
        try:
            harness(
                "candidate",
                ["tiny_choice"],
                against="parent",
                include=include,
                limit=3,
                json_file=tmp_path / "found.json",
            )
            with pytest.raises(ConfigError, match="compared with itself"):
                harness("parent", ["tiny_choice"], against="parent")
        finally:
            for endpoint in endpoints.list_all():
                endpoint.forget()
    said, written = capsys.readouterr().out, json.loads((tmp_path / "found.json").read_text())
    assert "candidate beside parent" in said and "acc_norm" in said and "100.0%" in said
    [task] = written["comparison"]
    assert (task["task"], task["n"], task["lost"], task["gained"], task["p_worse_holm"]) == (
        "tiny_choice",
        3,
        0,
        0,
        1.0,
    )
    assert [one["version"] for one in written["endpoints"]] == ["0.4.13"] * 2


def test_the_command_wants_a_task() -> None:
    with pytest.raises(ConfigError, match="--task: which task"):
        harness("parent")


def test_a_tools_runtime_is_no_engines(home: Path) -> None:
    assert RUNTIME not in [runtime.name for runtime in runtimes.list_all()]
    for ask in (runtimes.get, runtimes.python, runtimes.fingerprint):
        with pytest.raises(
            ConfigError,
            match="lm-eval is a tool's runtime, and no engine's -> choose one of default, ",
        ):
            ask(RUNTIME)
    with pytest.raises(ConfigError, match="the name is taken"):
        runtimes.adopt(RUNTIME, Path(shutil.which("python3") or "python3"))


def test_a_folder_that_is_not_there_is_named(home: Path, tiny_model: Path) -> None:
    with pytest.raises(
        ConfigError, match="is not a folder -> name the folder that has the task files"
    ):
        run_harness(
            ServedModel("http://127.0.0.1:1", NAME, tiny_model),
            HarnessTasks(["tiny"], tiny_model / "none"),
        )
