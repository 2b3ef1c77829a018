"""An engine in a process of its own: it says what it says in this process, fails with a typed
error, and leaves nothing behind."""

# covers tasks/engines/host.py
# covers tasks/engines/protocol.py
# covers tasks/engines/reference.py
# covers tasks/engines/wire.py

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from configs.engines import Engine, EnginePytorch, EngineTransformers, EngineTurbomind
from configs.errors import ConfigError, EngineCrashed, EngineError
from configs.paths import PROJECT
from tasks.engines import process, wire
from tasks.engines.process import EngineProcess
from tasks.engines.protocol import EngineSpec
from tasks.engines.reference import ReferenceEngine
from tasks.runner import runtime_probe, runtimes
from tests.support.interpreters import another_python
from tests.support.processes import all_gone, children

TRANSFORMERS = EngineTransformers(name="transformers")
RECORDS: list[dict[str, Any]] = [
    {
        "text": (
            "The with statement is used to wrap the execution of a block with methods defined by a"
            " context manager."
        )
    },
    {
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "Hello! How can I help you today?"},
        ]
    },
    {"text": "is a"},
]
HELLO = [{"role": "user", "content": "hello"}]


def spec(folder: Path, engine: Engine = TRANSFORMERS, *, trust: bool = False) -> EngineSpec:
    return EngineSpec(folder=folder, engine=engine, trust_remote_code=trust)


@pytest.fixture(scope="module")
def reference(tiny_model: Path) -> ReferenceEngine:
    return ReferenceEngine(tiny_model)


@pytest.fixture(scope="module")
def engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with EngineProcess(
        spec(tiny_model), log=tmp_path_factory.mktemp("engine") / "engine.log"
    ) as loaded:
        yield loaded


# -- the same words as in this process


def test_it_knows_itself(engine: EngineProcess, reference: ReferenceEngine) -> None:
    import torch
    import transformers

    assert engine.vocabulary == reference.vocabulary and engine.load_seconds > 0
    assert engine.versions == {
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }


def test_scores_are_those_of_this_process_bit_for_bit(
    engine: EngineProcess, reference: ReferenceEngine
) -> None:
    sequences = [engine.encode(record) for record in RECORDS]
    assert (
        sequences == [reference.encode(record) for record in RECORDS]
        and min(map(len, sequences)) >= 2
    )
    for ids, there, here in zip(
        sequences, engine.score(sequences), reference.score(sequences), strict=True
    ):
        for name, dtype, shape in (
            ("nll", np.float64, (len(ids) - 1,)),
            ("top", np.int32, (len(ids) - 1,)),
            ("ids", np.int32, (len(ids) - 1, 128)),
            ("logprobs", np.float32, (len(ids) - 1, 128)),
        ):
            got, expected = getattr(there, name), getattr(here, name)
            assert (got.dtype, got.shape) == (dtype, shape)
            assert np.array_equal(got, expected), name


def test_distributions_are_kept_at_the_tokens_that_are_asked_for(
    engine: EngineProcess, reference: ReferenceEngine
) -> None:
    sequences = [engine.encode(record) for record in RECORDS[:2]]
    rng = np.random.default_rng(0)
    at = [
        rng.integers(engine.vocabulary, size=(len(ids) - 1, kept)).astype(np.int32)
        for ids, kept in zip(sequences, (5, 1), strict=True)
    ]
    for ids, asked, there, here in zip(
        sequences, at, engine.score(sequences, at), reference.score(sequences), strict=True
    ):
        assert np.array_equal(there.ids, asked) and there.logprobs.shape == asked.shape
        assert np.array_equal(there.nll, here.nll) and np.array_equal(there.top, here.top)
        # asked tokens that are among the likeliest as well
        shared = here.ids[:, None, :] == asked[:, :, None]
        assert shared.any() and len(ids) > 2
        position, column, place = np.nonzero(shared)
        assert np.array_equal(there.logprobs[position, column], here.logprobs[position, place])


def test_answers_are_those_of_this_process(
    engine: EngineProcess, reference: ReferenceEngine
) -> None:
    prompts = [
        engine.prompt_ids(HELLO),
        engine.prompt_ids([{"role": "user", "content": "What is a list in Python?"}]),
    ]
    assert prompts[0] == reference.prompt_ids(HELLO)
    there, here = engine.generate(prompts, 48), reference.generate(prompts, 48)
    assert [(one.text, one.tokens, one.finish_reason, one.finite) for one in there] == [
        (one.text, one.tokens, one.finish_reason, one.finite) for one in here
    ]
    assert there[0].text == "Hello! How can I help you today?" and there[0].finish_reason == "stop"
    assert "mutable sequence" in there[1].text and min(one.seconds for one in there) > 0


def test_exact_answers_go_on_after_an_end_token(engine: EngineProcess) -> None:
    prompt = engine.prompt_ids(HELLO)
    [free], [exact] = engine.generate([prompt], 60), engine.generate([prompt], 60, exact=True)
    assert free.tokens < 60 == exact.tokens and exact.text.startswith(free.text)
    # its last token is the end token, and did not end it
    [cut] = engine.generate([prompt], free.tokens, exact=True)
    assert (free.finish_reason, exact.finish_reason, cut.finish_reason) == (
        "stop",
        "length",
        "length",
    )


# -- what goes wrong


def test_an_error_inside_leaves_it_usable(engine: EngineProcess) -> None:
    ids = engine.encode(RECORDS[0])
    before = engine.score([ids])[0].nll
    with pytest.raises(EngineError, match="IndexError") as caught:
        engine.score([[*ids, engine.vocabulary + 1]])
    assert (
        caught.value.where == "engine transformers, asked to score"
        and caught.value.hint == f"its whole log: {engine.log}"
    )
    assert "Traceback" in engine.log.read_text()
    assert np.array_equal(engine.score([ids])[0].nll, before)


def test_an_abort_from_c_is_a_crash_with_the_engines_last_words(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose own code does what TurboMind does with some configurations."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "aborts.Aborts"}})
    )
    (folder / "aborts.py").write_text("""\
import ctypes, os
from transformers import LlamaForCausalLM
class Aborts(LlamaForCausalLM):
    def forward(self, *arguments, **options):
        for number in range(20):
            os.write(1, b"line %d\\n" % number)
        os.write(2, b"terminate called after throwing an instance of 'std::runtime_error'\\n")
        ctypes.CDLL(None).abort()
""")
    log, before = tmp_path / "engine.log", children()
    with (
        pytest.raises(EngineCrashed) as caught,
        EngineProcess(spec(folder, trust=True), log=log) as loaded,
    ):
        loaded.score([loaded.encode(RECORDS[0])])
    error = caught.value
    assert (
        error.message.startswith("died with signal SIGABRT while it was asked to score")
        and "std::runtime_error" in error.message
    )
    assert "line 19" in error.message and "line 5\n" not in error.message, "the last lines, not all"
    assert (
        error.where == "engine transformers"
        and error.hint == f"its whole log: {log}"
        and "line 0" in log.read_text()
    )
    assert children() == before


def test_a_folder_without_a_model_is_an_error_that_names_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log that nobody has asked for stays, because the error sends the reader there."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    before = children()
    with pytest.raises(EngineError, match="engine transformers, asked to load") as caught:
        EngineProcess(spec(tmp_path / "nothing"))
    [log] = (tmp_path / "temporary").iterdir()
    assert caught.value.hint == f"its whole log: {log}" and "Traceback" in log.read_text()
    assert children() == before


@pytest.mark.parametrize(
    "options", [EngineTurbomind(name="turbomind"), EnginePytorch(name="pytorch")]
)
def test_an_engine_that_is_not_here_is_an_error_and_no_other_engine(
    options: Engine, tiny_model: Path, tmp_path: Path
) -> None:
    """No GPU is visible: LMDeploy would answer with its PyTorch engine, or with none."""
    with pytest.raises((EngineError, EngineCrashed)) as caught:
        EngineProcess(spec(tiny_model, options), log=tmp_path / "engine.log")
    assert f"engine {options.name}" in caught.value.where and caught.value.hint


# -- what is left


def test_closed_it_leaves_nothing_behind_even_if_it_does_not_listen(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(process, "CLOSING_SECONDS", 0.5)
    before, handles = children(), len(os.listdir("/proc/self/fd"))
    with EngineProcess(spec(tiny_model)) as loaded:
        [pid] = children() - before
        assert loaded.log.parent == tmp_path and loaded.log.exists()
        os.kill(pid, signal.SIGSTOP)
        started = time.monotonic()
    assert not psutil.pid_exists(pid) and children() == before, "gone, and reaped"
    assert time.monotonic() - started < 5
    assert list(tmp_path.iterdir()) == [] and len(os.listdir("/proc/self/fd")) == handles
    loaded.close()  # again: nothing to do


def test_an_interrupted_start_ends_it(tiny_model: Path, tmp_path: Path) -> None:
    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before, old = children(), signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            EngineProcess(spec(tiny_model), log=tmp_path / "engine.log")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert children() == before


PARENT = """
import sys
from pathlib import Path
from configs.engines import EngineTransformers
from tasks.engines.protocol import EngineSpec
from tasks.engines.process import EngineProcess
spec = EngineSpec(folder=sys.argv[1], engine=EngineTransformers(name="transformers"))
engine = EngineProcess(spec, log=Path(sys.argv[2]))
print("loaded", flush=True)
engine.generate(1000 * [[1, 2, 3]], 900, exact=True)
"""


def test_it_dies_with_its_parent_in_the_middle_of_its_work(
    tiny_model: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", PARENT, str(tiny_model), str(tmp_path / "engine.log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"loaded\n"
        [child] = psutil.Process(parent.pid).children()
        time.sleep(0.3)
        parent.kill()
        assert all_gone([child.pid], 5)


# -- in another environment


def test_it_runs_in_the_interpreter_of_its_runtime(
    tiny_model: Path,
    tmp_path: Path,
    home: Path,
    engine: EngineProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # that it can import torch shows here without the seconds that asking for it takes
    monkeypatch.setattr(runtime_probe, "NEEDS", ())
    python = another_python(tmp_path / "elsewhere")
    runtimes.adopt("elsewhere", python)
    before = children()
    with EngineProcess(
        spec(tiny_model, EngineTransformers(name="transformers", runtime="elsewhere")),
        log=tmp_path / "engine.log",
    ) as loaded:
        [pid] = children() - before
        assert psutil.Process(pid).cmdline()[0] == str(python) != sys.executable
        ids = engine.encode(RECORDS[0])
        assert np.array_equal(loaded.score([ids])[0].logprobs, engine.score([ids])[0].logprobs)
        started = time.monotonic()
    assert not psutil.pid_exists(pid) and time.monotonic() - started < process.CLOSING_SECONDS, (
        "it ends when it is asked to"
    )


def test_an_unknown_runtime_is_named_before_anything_is_started(
    tiny_model: Path, tmp_path: Path, home: Path
) -> None:
    before = children()
    with pytest.raises(ConfigError, match="no runtime 'nowhere'"):
        EngineProcess(
            spec(tiny_model, EngineTransformers(name="transformers", runtime="nowhere")),
            log=tmp_path / "engine.log",
        )
    assert children() == before and not (tmp_path / "engine.log").exists()


# -- the channel

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
ARRAYS = hnp.arrays(
    dtype=st.sampled_from([np.int32, np.int64, np.float32, np.float64, np.float16, np.bool_]),
    shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6),
)


NAMES = st.from_regex(r"(nll|top|[0-9]{1,3})(\.[0-9])?", fullmatch=True)


@given(
    st.dictionaries(st.text(max_size=8), JSON, max_size=4),
    st.dictionaries(NAMES, ARRAYS, max_size=3),
)
def test_what_is_sent_is_what_is_received(
    message: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]
) -> None:
    here, there = Pipe()
    with here, there:
        wire.send(here, message, arrays)
        got, received = wire.receive(there)
        assert not there.poll(), "nothing is left over"
    assert got == message and received.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (received[name].dtype, received[name].shape) == (array.dtype, array.shape)
        assert received[name].tobytes() == array.tobytes(), "NaN and minus zero too"


def test_arrays_larger_than_the_pipe_and_strided_ones_arrive() -> None:
    large = np.arange(3_000_000, dtype=np.float32).reshape(1000, 3000)[::2, ::-1].T
    here, there = Pipe()
    with here, there:
        sender = threading.Thread(target=wire.send, args=(here, {"do": "score"}, {"nll": large}))
        sender.start()
        _, received = wire.receive(there)
        sender.join()
    assert np.array_equal(received["nll"], large)


UNPICKLED: list[int] = []


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return unpickle, (1,)


def unpickle(mark: int) -> None:
    UNPICKLED.append(mark)


def test_nothing_is_unpickled() -> None:
    here, there = Pipe()
    with here, there:
        wire.send(here, {}, {"nll": np.array([Evil()], dtype=object)})
        with pytest.raises(ValueError, match="allow_pickle"):
            wire.receive(there)
    assert not UNPICKLED


def test_an_end_that_is_gone_is_an_end_of_file() -> None:
    here, there = Pipe()
    with there:
        here.close()
        with pytest.raises(EOFError):
            wire.receive(there)
