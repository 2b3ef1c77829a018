"""What each engine says of itself, and what it refuses by that."""

from __future__ import annotations

from typing import Literal, get_args

import pytest

from configs.engines import ANY_SIZE, ENGINES, EngineOptions, EngineTransformers, name_of
from configs.quantization import Format, Quantize
from configs.variants import KvBits


@pytest.mark.parametrize("engine", ENGINES, ids=name_of)
def test_every_engine_says_what_it_can_do(engine: type[EngineOptions]) -> None:
    for attribute in ("needs_gpu", "weight_bytes", "kv_bits", "formats", "mixed_formats"):
        assert hasattr(engine, attribute), attribute
    assert 0 in engine.kv_bits and set(engine.kv_bits) <= set(get_args(KvBits))
    assert set(engine.mixed_formats) <= set(engine.formats) <= set(get_args(Format))
    limited = any(sizes != ANY_SIZE for sizes in engine.formats.values())
    assert bool(engine.group_sizes) == limited, "who is refused is told what to do"
    assert engine.reserves_cache == ("cache_max_entry_count" in engine.model_fields)


@pytest.mark.parametrize("engine", ENGINES, ids=name_of)
@pytest.mark.parametrize("format_", get_args(Format))
@pytest.mark.parametrize("keep_layers", [0, 2])
def test_a_recipe_is_refused_exactly_if_the_engine_cannot_serve_it(
    engine: type[EngineOptions], format_: Format, keep_layers: int
) -> None:
    options = engine.model_validate({"name": name_of(engine)})
    for size in (32, 64, 128):
        recipe = Quantize(format=format_, group_size=size, keep_layers=keep_layers)
        sizes = engine.formats.get(format_)
        serves = sizes is not None and (sizes == ANY_SIZE or size in sizes)
        mixes = not keep_layers or format_ in engine.mixed_formats
        assert (options.refuses_recipe(recipe) is None) == (serves and mixes)


class OnlyInt8(EngineOptions):
    kv_bits = (0, 8)
    name: Literal["only-int8"]


def test_a_kv_cache_is_refused_in_words_that_fit_the_engine() -> None:
    reference = EngineTransformers(name="transformers")
    assert reference.refuses_kv("fp16", "w4a16") is None
    assert reference.refuses_kv("w4a16-kv8") == "transformers has no quantized KV cache"
    other = OnlyInt8(name="only-int8")
    assert other.refuses_kv("fp16", "w4a16-kv8") is None
    assert other.refuses_kv("w4a16-kv8", "w4a16-kv4") == "only-int8 has no KV cache in 4 bits"


def test_only_an_engine_that_reserves_a_cache_is_given_a_smaller_one() -> None:
    for engine in ENGINES:
        options = engine.model_validate({"name": name_of(engine)})
        smaller = options.with_cache_share(0.25)
        if engine.reserves_cache:
            assert smaller.model_dump()["cache_max_entry_count"] == 0.25
            assert smaller.with_cache_share(0.9) == smaller, "never more than it has"
        else:
            assert smaller == options
