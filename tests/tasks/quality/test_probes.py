"""The probes: what is asked, of which models, and what is kept of the answers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from artifacts.records.checks import ProbeAnswers
from configs.callbacks import no_progress
from configs.engines import EngineTransformers
from tasks.engines.process import EngineProcess
from tasks.engines.protocol import EngineSpec
from tasks.engines.reference import ReferenceEngine
from tasks.quality.answer_text import script
from tasks.quality.generation_checks import check
from tasks.quality.probes import PROBE_PROMPTS, TOOLS, WITH_TOOLS, ask_probes, offers
from tests.support.answers import PROMPTS, WITH_FUNCTIONS, answer
from tests.support.tiny_model import TEMPLATE


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> ReferenceEngine:
    return ReferenceEngine(tiny_model)


def test_whether_a_template_offers_functions(
    engine: ReferenceEngine, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not offers(engine, TOOLS)
    monkeypatch.setattr(engine.tokenizer, "chat_template", WITH_FUNCTIONS)
    assert offers(engine, TOOLS) and "get_weather" in engine.tokenizer.decode(
        engine.prompt_ids([{"role": "user", "content": "hello"}], TOOLS)
    )
    monkeypatch.setattr(
        engine.tokenizer, "chat_template", "{% if tools %}You have functions.{% endif %}" + TEMPLATE
    )
    assert not offers(engine, TOOLS), "it does not say which"


def test_an_engine_in_its_own_process_answers_the_same(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(
        WITH_FUNCTIONS.replace(
            "{% for m in messages %}",
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{%"
            " endif %}{% for m in messages %}",
        )
    )
    with EngineProcess(
        EngineSpec(folder=folder, engine=EngineTransformers(name="transformers"))
    ) as there:
        found = ask_probes(there, prompts=PROMPTS[:1], new_tokens=16, progress=no_progress)
    here = ask_probes(
        ReferenceEngine(folder), prompts=PROMPTS[:1], new_tokens=16, progress=no_progress
    )
    assert (found.free, found.tools, found.json_objects) == (
        here.free,
        here.tools,
        here.json_objects,
    ) and len(found.tools) == 1
    for one, other in zip(found.renderings, here.renderings, strict=True):
        assert (one.shape, one.ids, bool(one.refused)) == (
            other.shape,
            other.ids,
            bool(other.refused),
        )
    assert [one.shape for one in found.renderings if one.refused] == [
        "instructions and a question",
        WITH_TOOLS,
    ]
    assert "no system role here" in found.renderings[1].refused
    assert ProbeAnswers.model_validate_json(found.model_dump_json()) == found


def test_the_callers_own_answers_are_kept_with_the_rest(engine: ReferenceEngine) -> None:
    said: list[float] = []
    own = answer("Hello! How can I help?", prompt="hi")
    found = ask_probes(
        engine,
        prompts=PROMPTS[:1],
        new_tokens=4,
        asked=[own],
        progress=lambda done, _: said.append(done),
    )
    assert (
        [one.prompt for one in found.free] == ["hi", "hello"]
        and found.free[0] == own
        and said[-1] == 1.0
    )
    others = ask_probes(
        engine, prompts=PROMPTS[1:2], new_tokens=4, asked=[own], progress=no_progress
    )
    with pytest.raises(ValueError, match="different probes"):
        check(found, others)


def test_each_probe_is_in_a_script_of_its_own_but_for_english_and_code() -> None:
    assert [script(prompt) for prompt in PROBE_PROMPTS] == [
        "Han",
        "Latin",
        "Cyrillic",
        "Latin",
        "Japanese",
        "Arabic",
        "Hangul",
    ]
