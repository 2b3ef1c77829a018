"""Reading a config: the shipped ones load, and every mistake is one line with the file, the key
path, the value and what is allowed."""

# covers configs/deployment.py
# covers configs/evaluation.py
# covers configs/load_testing.py
# covers configs/quantization.py
# covers configs/schema.py
# covers configs/section.py
# covers configs/sources.py
# covers configs/texts.py
# covers configs/variants.py
# covers flows/cli/config.py

from __future__ import annotations

import os
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from configs.engines import EngineTransformers
from configs.errors import ConfigError
from configs.evaluation import Evaluate
from configs.paths import PROJECT
from configs.reader import load
from configs.sources import LocalSource
from configs.texts import TextFile
from configs.variants import Variant, weights_and_kv

# that is no pipeline
SHIPPED = sorted(
    set((PROJECT / "configs").glob("*.yaml")) - {PROJECT / "configs" / "policy.example.yaml"}
)
SMALLEST: dict[str, Any] = {
    "name": "model",
    "source": {"type": "local", "path": "model"},
    "texts": {"source": {"type": "python_docs"}},
    "evaluate": {"max_perplexity_ratio": 1.1},
    "engine": {"name": "transformers"},
}
TURBOMIND, PYTORCH = {"name": "turbomind"}, {"name": "pytorch"}
PACKED = {"format": "compressed-tensors"}

Write = Callable[[dict[str, Any] | str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a config: the smallest good one with other values by dotted key path, or a text, or
    bytes."""

    def write(what: dict[str, Any] | str | bytes) -> Path:
        path = tmp_path / "config.yaml"
        if isinstance(what, dict):
            data = deepcopy(SMALLEST)
            for key, value in what.items():
                *parents, last = key.split(".")
                node = data
                for parent in parents:
                    node = node.setdefault(parent, {})
                node[last] = value
            what = yaml.safe_dump(data)
        path.write_bytes(what if isinstance(what, bytes) else what.encode())
        return path

    return write


def mistakes(path: Path) -> list[str]:
    """The lines that the user is shown, without the file's name, which each must start with."""
    with pytest.raises(ConfigError) as caught:
        load(path, check_files=False)
    lines = str(caught.value).split("\n")
    assert all(line.startswith(str(path)) for line in lines)
    return [line.removeprefix(str(path)).removeprefix(": ") for line in lines]


# -- what loads


def test_there_are_shipped_configs() -> None:
    assert {"demo.yaml", "demo-gpu.yaml", "internlm2-chat-1_8b.yaml"} <= {
        path.name for path in SHIPPED
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_config_loads(path: Path) -> None:
    assert (
        load(path, check_files=False).model_dump(exclude_unset=True).keys()
        == yaml.safe_load(path.read_text()).keys()
    )


def test_a_loaded_config_does_not_change(write: Write) -> None:
    pipeline = load(write({}), check_files=False)
    with pytest.raises(ValidationError, match="frozen"):
        pipeline.name = "other"  # type: ignore[misc]


def test_an_override_replaces_one_value_and_keeps_the_rest(write: Write) -> None:
    path = write({"quantize.samples": 4, "quantize.seed": 7})
    changes = {
        "quantize.samples": 8,
        "texts.source.type": "python_docs",
        "engine.session_len": 2048,
        "deploy.port": 80,
    }
    pipeline = load(path, changes, check_files=False)
    assert (pipeline.quantize.samples, pipeline.quantize.seed) == (8, 7)
    assert pipeline.engine == EngineTransformers(name="transformers", session_len=2048)
    assert pipeline.deploy is not None and (pipeline.deploy.port, pipeline.deploy.host) == (
        80,
        "127.0.0.1",
    )


def test_a_wrong_override_is_a_mistake_at_its_key_path(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml: quantize\.samples: 0 is not allowed"):
        load(write({}), {"quantize.samples": 0}, check_files=False)


def test_an_override_below_a_value_is_refused(write: Write) -> None:
    with pytest.raises(
        ConfigError, match=r"config\.yaml: name\.first: name is 'model' and has no keys"
    ):
        load(write({}), {"name.first": "x"}, check_files=False)


def test_paths_are_relative_to_the_config_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        {
            "source.path": "models/a",
            "texts.source": {"type": "file", "path": "chats.jsonl"},
            "upload.store": "store",
        }
    )
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    pipeline = load(Path("..") / path.name, check_files=False)
    assert (
        isinstance(pipeline.source, LocalSource)
        and isinstance(pipeline.texts.source, TextFile)
        and pipeline.upload.store
    )
    found = [
        Path(os.path.normpath(found))
        for found in (pipeline.source.path, pipeline.texts.source.path, pipeline.upload.store)
    ]
    assert found == [tmp_path / "models" / "a", tmp_path / "chats.jsonl", tmp_path / "store"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("/models/a", "/models/a"),
        ("~/a", "{home}/a"),
        ("~no-such-user/a", "{folder}/~no-such-user/a"),
    ],
)
def test_absolute_paths_and_the_home_folder_stay_what_they_are(
    write: Write, tmp_path: Path, written: str, meant: str
) -> None:
    pipeline = load(write({"source.path": written}), check_files=False)
    assert isinstance(pipeline.source, LocalSource)
    assert str(pipeline.source.path) == meant.format(home=Path.home(), folder=tmp_path)


def test_a_missing_source_folder_is_named(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write({}))
    assert caught.value.message == f"{tmp_path / 'model'} is not a folder"
    assert caught.value.where == f"{tmp_path / 'config.yaml'}: source.path"


def test_a_missing_text_file_is_named(write: Write, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError) as caught:
        load(write({"texts.source": {"type": "file", "path": "chats.jsonl"}}))
    assert caught.value.message == f"{tmp_path / 'chats.jsonl'} is not a file"
    assert caught.value.where == f"{tmp_path / 'config.yaml'}: texts.source.path"


def test_a_source_folder_that_is_there_is_accepted(write: Write, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert load(write({})).name == "model"


def test_merge_keys_of_yaml_work(write: Write) -> None:
    text = (
        yaml.safe_dump(SMALLEST)
        + "smoke_test: &slow {timeout_minutes: 7}\nquantize:\n  <<: *slow\n  seed: 1\n"
    )
    pipeline = load(write(text), check_files=False)
    assert (pipeline.quantize.timeout_minutes, pipeline.quantize.seed) == (7, 1)


# -- mistakes in values


def test_looks_double_up_to_the_budget() -> None:
    def looks(documents: int, most: int) -> tuple[int, ...]:
        return Evaluate(max_perplexity_ratio=1.1, documents=documents, max_documents=most).looks

    assert (looks(24, 48), looks(24, 24), looks(24, 100), looks(60, 48)) == (
        (24, 48),
        (24,),
        (24, 48, 96, 100),
        (60,),
    )


def test_the_ladder_has_the_recipes_that_differ_and_that_the_engine_serves(write: Write) -> None:
    def changes(**values: Any) -> list[tuple[bool, int, int]]:
        config = write({key.replace("_at_", "."): value for key, value in values.items()})
        return [
            (one.search_scale, one.samples, one.keep_layers)
            for one in load(config, check_files=False).recipes
        ]

    assert changes(quantize_at_samples=8) == [
        (False, 8, 0),
        (True, 8, 0),
        (True, 32, 0),
        (True, 32, 4),
    ]
    assert changes(quantize_at_samples=8, engine=TURBOMIND) == [
        (False, 8, 0),
        (True, 8, 0),
        (True, 32, 0),
        (True, 32, 4),
    ]
    assert changes(quantize_at_samples=8, engine=PYTORCH) == [
        (False, 8, 0),
        (True, 8, 0),
        (True, 32, 0),
    ]
    packed = {"quantize_at_format": "compressed-tensors", "quantize_at_samples": 8}
    assert changes(**packed, engine=TURBOMIND) == [(False, 8, 0), (True, 8, 0), (True, 32, 0)]
    assert changes(quantize_at_samples=8, quantize_at_search_scale=True) == [
        (True, 8, 0),
        (True, 32, 0),
        (True, 32, 4),
    ]
    assert changes(quantize_at_samples=8, repair_at_changes=[]) == [(False, 8, 0)]


def test_all_attempts_share_the_chance_of_an_error(write: Write) -> None:
    assert load(write({}), check_files=False).evaluate_each_attempt.confidence == pytest.approx(
        1 - 0.05 / 4
    )
    assert load(
        write({"repair.changes": []}), check_files=False
    ).evaluate_each_attempt.confidence == pytest.approx(0.95)


def test_task_files_are_looked_for_beside_the_config(write: Write, tmp_path: Path) -> None:
    config = write({"evaluate.tasks": ["items.jsonl"]})
    (config.parent / "model").mkdir()
    with pytest.raises(ConfigError, match=r"items\.jsonl is not a file"):
        load(config)
    assert load(config, check_files=False).evaluate.tasks == (config.parent / "items.jsonl",)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"quantize.sampels": 3},
            (
                r"quantize\.sampels: unknown key \(did you mean samples\?\), value 3; allowed keys:"
                r" batch_size, .*, samples, .*"
            ),
        ),
        (
            {"speling": 3},
            (
                r"speling: unknown key, value 3; allowed keys: benchmark, deploy, engine, evaluate,"
                r" gpus, load, name, .*, upload, variants"
            ),
        ),
        (
            {"deploy": {"prot": 1}},
            r"deploy\.prot: unknown key \(did you mean port\?\), value 1; allowed keys: .*variant",
        ),
        (
            {"engine": TURBOMIND | {"sesion_len": 64}},
            (
                r"engine\.sesion_len: unknown key \(did you mean session_len\?\), value 64; allowed"
                r" keys: cache_.*"
            ),
        ),
        (
            {"engine.cache_max_entry_count": 0.4},
            (
                r"engine\.cache_max_entry_count: unknown key, value 0\.4; allowed keys:"
                r" (?!.*cache).*runtime, .*"
            ),
        ),
        (
            {"deploy": {"engine": "turbomind"}},
            r"deploy\.engine: unknown key, value 'turbomind'; allowed keys: api_keys_env, .*",
        ),
        (
            {"source.local": 1},
            r"source\.local: unknown key, value 1; allowed keys: allow_pickle, exclude, .*, type",
        ),
        (
            {"texts.source": {"type": "file", "path": "x", "file": "y"}},
            r"texts\.source\.file: unknown key, value 'y'; allowed keys: path, type",
        ),
        (
            {"source": {"type": "local", "path": "x", "repo": "../rel"}},
            r"source\.repo: unknown key, value '\.\./rel'; allowed keys: .*",
        ),
        (
            {"texts.source": {"type": "python_docs", "path": "rel"}},
            r"texts\.source\.path: unknown key, value 'rel'; allowed keys: type",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_an_unknown_key_is_named_with_those_that_are_allowed(
    write: Write, change: dict[str, Any], line: str
) -> None:
    [found] = mistakes(write(change))
    assert re.fullmatch(line, found)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"quantize.samples": "many"},
            r"quantize\.samples: 'many' is not allowed: input should be a valid integer.*",
        ),
        ({"name": 3}, r"name: 3 is not allowed: input should be a valid string.*"),
        (
            {"source.exclude": ["*.md", 3]},
            r"source\.exclude\.1: 3 is not allowed: input should be a valid string",
        ),
        (
            {"source.trusted_code": {"modeling.py": "abc"}},
            r"source\.trusted_code\.modeling\.py: 'abc' is not allowed: .*",
        ),
        (
            {"source.trusted_code": {7: "a" * 64}},
            r"source\.trusted_code\.7: 7 is not allowed: input should be a valid string",
        ),
        (
            {"evaluate.max_perplexity_ratio": float("nan")},
            r"evaluate\.max_perplexity_ratio: nan is not allowed: .*",
        ),
        (
            {"texts": 5},
            r"texts: 5 is not allowed: must be a section with the keys held_out_documents, .*",
        ),
        (
            {"source": "model"},
            r"source: 'model' is not allowed: must be a section with the keys .*",
        ),
        ({"quantize": None}, r"quantize: None is not allowed: must be a section with the keys .*"),
        (
            {"engine": "turbomind"},
            (
                r"engine: 'turbomind' is not allowed: must be a section with the keys"
                r" cache_max_entry_count, .*name, .*"
            ),
        ),
        (
            {"benchmark": True},
            r"benchmark: True is not allowed: must be a section with the keys batch_sizes, .*",
        ),
        (
            {"benchmark": {"batch_sizes": [1, 0]}},
            (
                r"benchmark\.batch_sizes\.1: 0 is not allowed: input should be greater than or"
                r" equal to 1"
            ),
        ),
        (
            {"benchmark": {"batch_sizes": []}},
            r"benchmark\.batch_sizes: \[\] is not allowed: .*at least 1 item.*",
        ),
        (
            {"gpus": [0, -1]},
            r"gpus\.1: -1 is not allowed: input should be greater than or equal to 0",
        ),
        (
            {"gpus": []},
            r"gpus: \[\] is not allowed: .*at least 1 item.*; GPUs that the run may use, .*",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_value_of_the_wrong_type_is_named(
    write: Write, change: dict[str, Any], line: str
) -> None:
    [found] = mistakes(write(change))
    assert re.fullmatch(line, found)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"source.type": "locl"},
            r"source\.type: 'locl' is not allowed; one of 'local', 'hub', 'pypi_gguf'",
        ),
        (
            {"engine": {"name": "vllm"}},
            r"engine\.name: 'vllm' is not allowed; one of 'transformers', 'turbomind', 'pytorch'",
        ),
        ({"engine": {}}, r"engine\.name: missing; one of 'transformers', 'turbomind', 'pytorch'"),
        (
            {"texts.source": {"type": ["file"]}},
            r"texts\.source\.type: \['file'\] is not allowed; one of 'python_docs', 'file', 'hub'",
        ),
        (
            {"texts.source": {"path": "x"}},
            r"texts\.source\.type: missing; one of 'python_docs', 'file', 'hub'",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_the_choice_of_a_section_is_explained(
    write: Write, change: dict[str, Any], line: str
) -> None:
    [found] = mistakes(write(change))
    assert re.fullmatch(line, found)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"evaluate": {}},
            (
                r"evaluate\.max_perplexity_ratio: missing; the margin, candidate over parent: PASS"
                r" needs the whole 95 % interval below it"
            ),
        ),
        ({"source": {"type": "local"}}, r"source\.path: missing; a value of type Path"),
        ({"texts": {}}, r"texts\.source: missing; a section with the keys .*"),
        (
            {"texts.source": {"type": "hub"}},
            r"texts\.source\.dataset: missing; a value of type str",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_missing_key_is_named_with_its_meaning(
    write: Write, change: dict[str, Any], line: str
) -> None:
    [found] = mistakes(write(change))
    assert re.fullmatch(line, found)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"quantize.symmetric": True},
            (
                r"quantize\.symmetric: True is not allowed: input should be False; LMDeploy's"
                r" --w-sym fails .*"
            ),
        ),
        ({"quantize.bits": 8}, r"quantize\.bits: 8 is not allowed: input should be 4"),
        (
            {"deploy": {"variant": "w4a16-kv42"}},
            (
                r"deploy\.variant: 'w4a16-kv42' is not allowed: input should be 'fp16',"
                r" .*quant_policy 8 is -kv8.*"
            ),
        ),
        (
            {"variants": ["fp16", "w8a8"]},
            r"variants\.1: 'w8a8' is not allowed: input should be 'fp16', .*",
        ),
        (
            {"engine": TURBOMIND | {"cache_max_entry_count": 1}},
            r"engine\.cache_max_entry_count: 1 is not allowed: .* less than 1; share of the GPU .*",
        ),
        (
            {"engine": TURBOMIND | {"cache_max_entry_count": 0}},
            r"engine\.cache_max_entry_count: 0 is not allowed: .* greater than 0; share .*",
        ),
        ({"engine.tp": 2}, r"engine\.tp: 2 is not allowed: input should be 1"),
        (
            {"engine.runtime": "../lmdeploy"},
            (
                r"engine\.runtime: '\.\./lmdeploy' is not allowed: .*; the locked environment that"
                r" the engine runs in .*"
            ),
        ),
        (
            {"quantize": {"dtype": "bfloat16", "device": "cpu"}},
            r"quantize: dtype bfloat16 does not work with device cpu .*; use float16",
        ),
        (
            {"source": {"type": "hub", "repo": "a/b", "revision": "main"}},
            r"source\.revision: 'main' is not allowed: .*; the full commit hash: .*",
        ),
        (
            {"promote.stage": "production"},
            r"promote\.stage: 'production' is not allowed: input should be 'dev'",
        ),
        (
            {"name": "../model"},
            r"name: '\.\./model' is not allowed: .*; the model's name in the registry and the API",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_trap_that_the_config_shows_is_refused_with_its_reason(
    write: Write, change: dict[str, Any], line: str
) -> None:
    [found] = mistakes(write(change))
    assert re.fullmatch(line, found)


# Each rule about keys that do not go together: where it bites, and the same with the least change
# that its message asks for.
@pytest.mark.parametrize(
    ("change", "line", "cure"),
    [
        (
            {"engine": TURBOMIND, "quantize.group_size": 64},
            r"quantize\.group_size 64 cannot be served by .*turbomind.* set group_size: 128.*",
            {"quantize.group_size": 128},
        ),
        (
            {"engine": TURBOMIND, "quantize.group_size": 32},
            (
                r"quantize\.group_size 32 cannot be served by .*format: compressed-tensors with"
                r" group_size: 32"
            ),
            {"quantize.format": "compressed-tensors"},
        ),
        (
            {"engine": TURBOMIND, "quantize": PACKED | {"group_size": 64}},
            r"quantize\.group_size 64 cannot .*turbomind.*",
            {"quantize.group_size": 32},
        ),
        (
            {"variants": ["fp16", "w4a16", "w4a16-kv8"]},
            (
                r"variants w4a16-kv8 need engine turbomind or pytorch: transformers has no"
                r" quantized KV cache"
            ),
            {"engine": TURBOMIND},
        ),
        (
            {"variants": ["fp16", "fp16-kv4", "w4a16", "w4a16-kv8"]},
            r"variants fp16-kv4, w4a16-kv8 need engine .*",
            {"engine": PYTORCH},
        ),
        (
            {"engine": PYTORCH, "quantize": PACKED},
            r"quantize\.format compressed-tensors is for engine turbomind; set format: awq",
            {"quantize.format": "awq"},
        ),
        (
            {"variants": ["w4a16", "fp16"]},
            r"variants \['w4a16', 'fp16'\]: the first must be fp16, .*",
            {"variants": ["fp16", "w4a16"]},
        ),
        (
            {"variants": []},
            r"variants \[\]: the first must be fp16, the baseline, .*",
            {"variants": ["fp16", "w4a16"]},
        ),
        (
            {"variants": ["fp16", "w4a16", "w4a16"]},
            r"variants .*, each once",
            {"variants": ["fp16", "w4a16"]},
        ),
        (
            {"variants": ["fp16", "fp16-kv8"], "engine": TURBOMIND},
            r"variants .*then w4a16 variants, .*",
            {"variants": ["fp16", "fp16-kv8", "w4a16"]},
        ),
        (
            {"deploy": {"variant": "fp16"}},
            r"deploy\.variant fp16: a pipeline serves what it has quantized; use w4a16, .*",
            {"deploy.variant": "w4a16"},
        ),
        (
            {"deploy": {"variant": "w4a16-kv8"}, "engine": TURBOMIND},
            (
                r"deploy\.variant w4a16-kv8 is not among variants \['fp16', 'w4a16'\]: what is"
                r" served must be measured"
            ),
            {"variants": ["fp16", "w4a16-kv8"]},
        ),
        (
            {"engine.session_len": 512},
            (
                r"engine\.session_len 512 is less than evaluate\.max_tokens_per_document 1024, .*;"
                r" raise the first"
            ),
            {"engine.session_len": 1024},
        ),
        (
            {"engine": PYTORCH | {"session_len": 1023}},
            r"engine\.session_len 1023 is less than evaluate\.max_tokens_per_document .*",
            {"evaluate.max_tokens_per_document": 1023},
        ),
        (
            {"engine.session_len": 1024, "benchmark": {"prompt_tokens": 1000, "new_tokens": 25}},
            (
                r"engine\.session_len 1024 is less than benchmark\.prompt_tokens \+ new_tokens;"
                r" raise the first"
            ),
            {"engine.session_len": 1025},
        ),
        (
            {"evaluate.documents": 49},
            (
                r"evaluate scores up to 49 \(documents 49, max_documents 48\) and"
                r" texts\.held_out_documents is 48; lower .*"
            ),
            {"texts.held_out_documents": 49},
        ),
        (
            {"evaluate.max_documents": 100},
            (
                r"evaluate scores up to 100 \(documents 24, max_documents 100\) and"
                r" texts\.held_out_documents is 48; .*"
            ),
            {"texts.held_out_documents": 100},
        ),
        (
            {"objective": "latency"},
            r"objective latency needs figures of the speed: add a benchmark section, .*",
            {"benchmark": {}},
        ),
        (
            {"quantize.keep_layers": 2, "engine": PYTORCH},
            r"quantize\.keep_layers needs engine transformers, or turbomind with format awq: .*",
            {"quantize.keep_layers": 0},
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_does_not_go_together_is_refused_with_a_way_that_works(
    write: Write, change: dict[str, Any], line: str, cure: dict[str, Any]
) -> None:
    [found] = mistakes(write(change))
    assert re.fullmatch(line, found)
    load(write(change), cure, check_files=False)


@pytest.mark.parametrize(
    "change",
    [
        {"quantize.group_size": 64},
        {"quantize.dtype": "bfloat16"},
        {"quantize": PACKED | {"group_size": 64}},
        {"engine": TURBOMIND},
        {"engine": PYTORCH, "quantize.group_size": 64},
        {"engine": TURBOMIND | {"session_len": None}, "evaluate.max_tokens_per_document": 100_000},
        {
            "deploy": {"variant": "w4a16-kv8"},
            "engine": TURBOMIND,
            "variants": ["fp16", "w4a16-kv8"],
        },
    ],
    ids=lambda change: ",".join(change),
)
def test_what_is_only_bad_in_combination_is_accepted_alone(
    write: Write, change: dict[str, Any]
) -> None:
    load(write(change), check_files=False)


@pytest.mark.parametrize(
    ("change", "served"),
    [
        ({}, "w4a16"),
        ({"deploy": {}}, "w4a16"),
        ({"variants": ["fp16", "w4a16-kv8", "w4a16", "fp16-kv8"]}, "w4a16"),
        ({"variants": ["fp16", "w4a16", "w4a16-kv8"]}, "w4a16-kv8"),
        ({"variants": ["fp16", "w4a16", "w4a16-kv8"], "deploy": {}}, "w4a16"),
    ],
    ids=str,
)
def test_the_verdict_is_about_what_is_deployed_or_else_the_last_quantized_variant(
    write: Write, change: dict[str, Any], served: str
) -> None:
    assert load(write({"engine": TURBOMIND} | change), check_files=False).served_variant == served


@pytest.mark.parametrize(
    ("variant", "meant"),
    [
        ("fp16", ("fp16", 0)),
        ("fp16-kv8", ("fp16", 8)),
        ("fp16-kv4", ("fp16", 4)),
        ("w4a16", ("w4a16", 0)),
        ("w4a16-kv8", ("w4a16", 8)),
        ("w4a16-kv4", ("w4a16", 4)),
    ],
)
def test_a_variant_is_weights_and_a_kv_cache(variant: Variant, meant: tuple[str, int]) -> None:
    assert weights_and_kv(variant) == meant


def test_every_mistake_has_its_line(write: Write) -> None:
    found = mistakes(
        write(
            {
                "name": 3,
                "quantize.bits": 8,
                "quantize.sampels": 1,
                "evaluate": {},
                "engine": TURBOMIND | {"tp": 0},
                "deploy.port": 0,
            }
        )
    )
    assert [line.split(":")[0] for line in found] == [
        "name",
        "quantize.bits",
        "quantize.sampels",
        "evaluate.max_perplexity_ratio",
        "engine.tp",
        "deploy.port",
    ]


def test_a_long_value_is_cut_and_keeps_its_line(write: Write) -> None:
    [found] = mistakes(write({"quantize.device": "gpu\n" * 1000}))
    assert len(found) < 200


# -- mistakes in the file


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: a\nname: b\n", r":2:1: not YAML: key 'name' stands twice"),
        (
            "quantize:\n  seed: 1\n  bits: 4\n  seed: 2\n",
            r":4:3: not YAML: key 'seed' stands twice",
        ),
        ("name: a\nsource: [\n", r":3:1: not YAML: .+"),
        ("name: a\n\tsource: b\n", r":2:1: not YAML: .*'\\t'.*"),
        ("name: a\ntexts: *nothing\n", r":2:8: not YAML: found undefined alias 'nothing'"),
        ("name: 2026-02-31\n", r":1:7: not YAML: day .*"),
        (
            "name: !!python/name:os.system x\n",
            r":1:7: not YAML: could not determine a constructor for the tag .*",
        ),
        ("name: a\n? [b]\n: c\n", r":2:3: not YAML: found unhashable key"),
        ("name: a\n---\nname: b\n", r":2:1: not YAML: .*another document.*"),
        ("name: \0\n", r"not YAML: unacceptable character #x0000.*"),
        ("", r"is empty, and must be a mapping with the keys name, source, .*"),
        ("# nothing\n", r"is empty, and must be a mapping with the keys name, source, .*"),
        ("- a\n- b\n", r"is \['a', 'b'\], and must be a mapping with the keys name, source, .*"),
        ("text", r"is 'text', and must be a mapping with the keys name, source, .*"),
    ],
    ids=lambda text: repr(text)[:24],
)
def test_a_file_that_is_no_mapping_is_refused_with_its_place(
    write: Write, text: str, line: str
) -> None:
    [found] = mistakes(write(text))
    assert re.fullmatch(line, found)


def test_bytes_that_are_not_utf8_are_refused(write: Write) -> None:
    [found] = mistakes(write(b"name: caf\xe9\n"))
    assert re.match(r"cannot be read: 'utf-8' codec .* position 9", found)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert mistakes(tmp_path) == ["a folder, not a config file"]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert mistakes(tmp_path / "missing.yaml") == ["no such file -> `configs/` has examples"]
