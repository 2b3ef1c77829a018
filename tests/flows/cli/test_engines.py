"""`lmflows engines` from the command line, in a home of its own: runtimes come and go, two are
compared for real, and what cannot be is refused before anything is started."""

# covers flows/compare_engines.py
# covers flows/run/environment.py
# covers tasks/kv_memory.py

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from artifacts.records.evidence import DocumentScore
from artifacts.records.measurement import Speed
from artifacts.store.local import LocalStore
from configs.engines import EngineTurbomind
from configs.errors import EngineError
from configs.paths import PROJECT
from flows.cli import engines, main
from flows.compare_engines import comparison_rows, memory_rows
from tasks.compare_runtimes import CompareRuntimesResult, Ratio, RuntimeFigures
from tasks.kv_memory import MemoryRequest, MemoryResult, Taken, kv_memory
from tasks.runner.step import Context
from tests.support.interpreters import another_python
from tests.support.patience import PATIENCE
from tests.support.processes import with_environment

pytestmark = pytest.mark.slow


class Site:
    """A home folder, and the command line in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        self.python = another_python(folder / "elsewhere")

    def call(self, *words: str, **more: str) -> tuple[int, str, str]:
        """Run `lmflows engines ...`: its exit status, and what it writes to stdout and to
        stderr."""
        environment = {
            key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")
        }
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli.main", "engines", *words],
            capture_output=True,
            text=True,
            cwd=PROJECT,
            timeout=PATIENCE,
            env=environment
            | {"LMFLOWS_HOME": str(self.home), "HOME": str(self.folder), "COLUMNS": "300"}
            | more,
        )
        return done.returncode, done.stdout, done.stderr

    def runtimes(self) -> dict[str, dict[str, str]]:
        status, text, _ = self.call("ls", "--json")
        assert status == 0
        return {row["runtime"]: row for row in json.loads(text)}

    def alive(self) -> list[str]:
        """The command lines of the processes that still have this home after five seconds."""
        deadline = time.monotonic() + 5
        while (
            found := with_environment("LMFLOWS_HOME", str(self.home))
        ) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [" ".join(process.cmdline()) for process in found]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def adopted(site: Site) -> tuple[int, str, str]:
    """What `lmflows engines adopt` says."""
    return site.call("adopt", "elsewhere", str(site.python))


# -- runtimes


def test_an_interpreter_is_adopted_and_listed_among_the_others(
    site: Site, adopted: tuple[int, str, str]
) -> None:
    status, said, problem = adopted
    assert (status, problem) == (0, "") and said.startswith("elsewhere: python 3.")
    rows = site.runtimes()
    assert {"default", "elsewhere", "lmdeploy-0.12.3", "lmdeploy-0.18.0"} <= rows.keys()
    ours = rows["default"]
    assert all(
        f"{name} {ours[name]}" in said for name in ("python", "lmdeploy", "torch", "transformers")
    )
    assert (
        rows["elsewhere"] == ours | {"runtime": "elsewhere"}
        and ours["state"] == "ready"
        and ours["lock"] == "not locked"
    )
    shipped = rows["lmdeploy-0.12.3"]
    assert (shipped["state"], shipped["lmdeploy"]) == ("not prepared", "") and len(
        shipped["lock"]
    ) == 12


def test_an_interpreter_without_lmdeploy_is_refused_in_one_line(site: Site) -> None:
    bare = another_python(site.folder / "bare")
    next((site.folder / "bare").glob("lib/python3*/site-packages/others.pth")).unlink()
    status, said, problem = site.call("adopt", "bare", str(bare))
    assert (
        (status, said) == (2, "")
        and f"{bare} has no lmdeploy" in problem
        and len(problem.splitlines()) == 1
    )
    assert "bare" not in site.runtimes()


def test_a_table_of_them_is_for_people(site: Site, adopted: tuple[int, str, str]) -> None:
    status, said, _ = site.call("ls")
    lines = {line.split()[0]: line for line in said.splitlines()}
    assert (
        status == 0
        and {"runtime", "default", "elsewhere"} <= lines.keys()
        and "ready" in lines["elsewhere"]
    )


# -- two of them side by side


@pytest.mark.slow
def test_two_are_compared_and_the_raw_figures_written(
    site: Site, adopted: tuple[int, str, str], tiny_model: Path
) -> None:
    figures, texts = site.folder / "figures.json", site.folder / "text.txt"
    texts.write_text(
        "The with statement wraps the execution of a block.\n\nA list is a mutable sequence of"
        " objects.\n"
    )
    status, said, problem = site.call(
        "compare",
        str(tiny_model),
        "--engine",
        "transformers",
        "--variant",
        "fp16",
        "--runtime",
        "default",
        "--runtime",
        "elsewhere",
        "--batch-sizes",
        "1,2",
        "--rounds",
        "2",
        "--prompt-tokens",
        "16",
        "--new-tokens",
        "8",
        "--texts",
        str(texts),
        "--json",
        str(figures),
    )
    assert status == 0, said + problem
    result = CompareRuntimesResult.model_validate_json(figures.read_text())
    assert [item.runtime for item in result.figures] == ["default", "elsewhere"] and all(
        item.problem is None for item in result.figures
    )
    assert [len(speed.decode) for speed in result.figures[1].speeds] == [
        2,
        2,
    ] and "cores" in result.hardware
    rows = {line.split()[0]: line for line in said.splitlines()}
    assert "prefill, batch 1" in rows["runtime"] and "decode, batch 2" in rows["runtime"]
    assert "NLL +0.00000 nats a token, top-1 100.00%, 2/2 answers equal" in rows["elsewhere"]
    assert f"{result.figures[1].decode_ratio[0].median:.2f};" in rows["elsewhere"]
    [run] = (site.home / "runs").iterdir()
    assert "compare" in run.name and {
        "log.txt",
        "answer.json",
        "engine-default.log",
        "engine-elsewhere.log",
    } <= {path.name for path in (run / "compare_runtimes").iterdir()}
    assert site.alive() == []


def test_a_prefect_server_that_is_down_is_one_clear_line(
    site: Site, tiny_model: Path, free_port: int
) -> None:
    status, said, problem = site.call(
        "compare",
        str(tiny_model),
        "--engine",
        "transformers",
        "--runtime",
        "default",
        PREFECT_API_URL=f"http://127.0.0.1:{free_port}/api",
    )
    assert (status, said) == (1, "") and len(problem.splitlines()) == 1
    assert "Prefect: Failed to reach API" in problem and "check PREFECT_API_URL" in problem


# -- what the KV cache takes


def test_memory_without_a_gpu_is_one_clear_line(site: Site, tiny_model: Path) -> None:
    """From the command line, where nothing is started for it, and from the step, which may run on
    another machine."""
    status, said, problem = site.call("memory", str(tiny_model))
    assert (status, said) == (1, "") and len(problem.splitlines()) == 1
    assert (
        "EngineError: memory: needs a GPU, and there is none -> run on a machine with an NVIDIA GPU"
        in problem
    )
    assert site.alive() == []
    request = MemoryRequest(
        folder=tiny_model, engine=EngineTurbomind(name="turbomind"), shares=(0.1, 0.5), hardware={}
    )
    with pytest.raises(EngineError, match="needs a GPU"):
        kv_memory(request, Context(LocalStore(site.folder / "store")))


# -- what is refused before anything is started


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["compare", "MODEL", "--runtime", "nowhere"], "no runtime 'nowhere'; known: default"),
        (
            ["compare", "MODEL", "--runtime", "default", "--runtime", "default"],
            "default is named more than once",
        ),
        (["compare", "MODEL"], "Missing option '--runtime'"),
        (
            ["compare", "MODEL", "--runtime", "default", "--engine", "vllm"],
            "no engine 'vllm' -> one of transformers, turbomind, pytorch",
        ),
        (
            ["compare", "MODEL", "--runtime", "default", "--variant", "w8a8"],
            "no variant 'w8a8' -> one of fp16",
        ),
        (
            [
                "compare",
                "MODEL",
                "--runtime",
                "default",
                "--engine",
                "transformers",
                "--variant",
                "fp16-kv8",
            ],
            "transformers has no quantized KV cache",
        ),
        (
            ["compare", "MODEL", "--runtime", "default", "--batch-sizes", "0"],
            "--batch-sizes: 0 is not allowed",
        ),
        (
            ["compare", "MODEL", "--runtime", "default", "--batch-sizes", "1;2"],
            "'1;2' is not a list of numbers",
        ),
        (
            ["compare", "MODEL", "--runtime", "default", "--texts", "nothing.txt"],
            "'nothing.txt' does not exist",
        ),
        (
            ["compare", "MODEL", "--runtime", "default", "--json", "nothing/figures.json"],
            "--json: nothing is not a folder",
        ),
        (
            ["compare", "HERE", "--runtime", "default"],
            "no config.json -> name a folder in Hugging Face format",
        ),
        (
            ["memory", "MODEL", "--engine", "transformers"],
            "transformers has no cache_max_entry_count",
        ),
        (["memory", "MODEL", "--shares", "0.5,1.5"], "--shares: 1.5 is not allowed"),
        (["memory", "MODEL", "--runtime", "nowhere"], "no runtime 'nowhere'"),
        (["adopt", "default", "PYTHON"], "runtime default: the name is taken"),
        (["adopt", "other", "MODEL"], "is not a program"),
        (["remove", "default"], "the project's own environment is not removed"),
        (["remove", "nowhere"], "no runtime 'nowhere'"),
    ],
)
def test_refused_with_status_2(
    words: list[str],
    problem: str,
    home: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"MODEL": str(tiny_model), "HERE": str(tmp_path), "PYTHON": sys.executable}
    monkeypatch.setattr(
        sys, "argv", ["lmflows", "engines", *(places.get(word, word) for word in words)]
    )
    monkeypatch.setattr(engines, "starting_prefect", lambda: pytest.fail("Prefect was started"))
    with pytest.raises(SystemExit) as caught:
        main.main()
    said = capsys.readouterr()
    assert caught.value.code == 2 and said.out == ""
    assert problem in " ".join(said.err.split()), said.err


def test_a_model_that_is_nowhere_is_told_with_what_there_is(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["lmflows", "engines", "compare", "0123abcd", "--runtime", "default"]
    )
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert (
        caught.value.code == 1 and "no artifact starts with '0123abcd'" in capsys.readouterr().err
    )


def test_removed_it_is_forgotten_and_its_interpreter_stays(
    site: Site, adopted: tuple[int, str, str]
) -> None:
    status, said, _ = site.call("remove", "elsewhere")
    assert status == 0 and said == f"removed {site.home}/runtimes/elsewhere.json\n"
    assert "elsewhere" not in site.runtimes() and site.python.exists()


# -- the tables


def speed(batch_size: int, *decode: float) -> Speed:
    return Speed(
        batch_size=batch_size,
        prompt_tokens=512,
        new_tokens=128,
        prefill=tuple(10 * figure for figure in decode),
        decode=decode,
    )


def agreement(**changes: float) -> DocumentScore:
    return DocumentScore.model_validate(
        {"tokens": 200, "nll_parent": 400.0, "nll_candidate": 401.0, "kl": 0.1, "same_top": 199}
        | changes
    )


def test_the_table_of_runtimes() -> None:
    ratios = tuple(Ratio(batch_size=size, median=1.25, low=1.2, high=1.3) for size in (1, 16))
    rows = comparison_rows(
        CompareRuntimesResult(
            side_by_side=True,
            hardware={},
            figures=(
                RuntimeFigures(
                    runtime="broken",
                    problem=(
                        "died with signal SIGABRT while it was asked to load; its last lines:\n   "
                        " what(): no kernel"
                    ),
                ),
                RuntimeFigures(
                    runtime="old",
                    versions={"python": "3.11.7", "lmdeploy": "0.12.3", "torch": "2.6.0"},
                    answers=("a", "b"),
                    same_answers=2,
                    speeds=(speed(1, 99, 100, 140), speed(16, 900)),
                    agreement=agreement(nll_candidate=400.0, same_top=200),
                ),
                RuntimeFigures(
                    runtime="new",
                    versions={"lmdeploy": "0.18.0"},
                    speeds=(speed(1, 125), speed(16, 1125)),
                    answers=("a", "c"),
                    same_answers=1,
                    decode_ratio=ratios,
                    prefill_ratio=ratios,
                    agreement=agreement(),
                ),
            ),
        )
    )
    assert all(row.keys() == rows[0].keys() for row in rows), "one table"
    assert rows[0] == dict.fromkeys(rows[0], "") | {
        "runtime": "broken",
        "agreement": "died with signal SIGABRT while it was asked to load",
    }
    assert rows[1] == {
        "runtime": "old",
        "versions": "lmdeploy 0.12.3, torch 2.6.0",
        "prefill, batch 1": "1000",
        "decode, batch 1": "100",
        "prefill, batch 16": "9000",
        "decode, batch 16": "900",
        "agreement": "NLL +0.00000 nats a token, top-1 100.00%, 2/2 answers equal",
    }
    assert (
        rows[2]["decode, batch 1"] == "125 (1.25; 1.20 to 1.30)"
        and rows[2]["prefill, batch 16"] == "11250 (1.25; 1.20 to 1.30)"
    )
    assert rows[2]["agreement"] == "NLL +0.00500 nats a token, top-1 99.50%, 1/2 answers equal"


@pytest.mark.parametrize(
    ("tokens", "same_top", "expected"),
    [
        (
            150,
            150,
            "NLL +0.00667 nats a token, top-1 100.00%, 0/1 answers equal, 50 positions broken",
        ),
        (0, 0, "0/1 answers equal, 200 positions broken"),
    ],
)
def test_broken_positions_are_not_passed_over(tokens: int, same_top: int, expected: str) -> None:
    found = agreement(tokens=tokens, same_top=same_top, broken=200 - tokens)
    item = RuntimeFigures(runtime="new", answers=("",), agreement=found)
    [row] = comparison_rows(CompareRuntimesResult(figures=(item,), side_by_side=True, hardware={}))
    assert row["agreement"].endswith(expected)


def test_the_table_of_memory() -> None:
    rows = memory_rows(
        MemoryResult(
            hardware={},
            rows=(
                Taken(share=0.1, gpu_bytes=15_400_000_000, load_seconds=3.14),
                Taken(share=0.8, problem="died with signal SIGABRT; its last lines:\n  x"),
            ),
        )
    )
    assert rows == [
        {"cache_max_entry_count": "0.1", "GPU memory": "15400.0 MB", "load": "3.1 s"},
        {"cache_max_entry_count": "0.8", "GPU memory": "died with signal SIGABRT", "load": ""},
    ]
