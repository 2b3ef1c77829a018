"""Values from the command line: checked with a message that names the option, before anything
starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.evaluation import Benchmark
from flows.cli.options import check_place, checked, numbers, write_figures
from flows.run.lookup import engine_of


def test_a_wrong_value_is_told_with_its_option() -> None:
    with pytest.raises(ConfigError, match=r"0 is not allowed: .*greater than") as told:
        checked(Benchmark, prompt_tokens=0)
    assert told.value.where == "--prompt-tokens"


def test_a_wrong_option_of_an_engine_is_told_in_the_same_way() -> None:
    with pytest.raises(ConfigError, match="2 is not allowed") as told:
        checked(engine_of, name="turbomind", cache_max_entry_count=2)
    assert told.value.where == "--cache-max-entry-count"


def test_an_engine_takes_those_options_that_it_has() -> None:
    engine = checked(engine_of, name="transformers", cache_max_entry_count=0.5, dtype="float16")
    assert engine.model_dump(include={"name", "dtype"}) == {
        "name": "transformers",
        "dtype": "float16",
    }


@pytest.mark.parametrize(("text", "expected"), [("1,16,64", [1, 16, 64]), ("7", [7])])
def test_several_numbers_stand_in_one_word(text: str, expected: list[int]) -> None:
    assert numbers(text, int) == expected


@pytest.mark.parametrize("text", ["", "1;2", "1,", "one", "1.5"])
def test_what_is_no_list_of_numbers_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a list of numbers separated by commas"):
        numbers(text, int)


def test_a_file_that_could_not_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    check_place(None)
    check_place(tmp_path / "figures.json")
    with pytest.raises(ConfigError, match="is not a folder") as told:
        check_place(tmp_path / "nowhere" / "figures.json")
    assert told.value.where == "--json"


def test_figures_are_json_and_only_written_where_a_file_was_named(tmp_path: Path) -> None:
    figures = Benchmark(rounds=7)
    write_figures(None, figures)
    write_figures(tmp_path / "figures.json", figures)
    text = (tmp_path / "figures.json").read_text()
    assert Benchmark.model_validate_json(text) == figures and text.endswith("}\n")
    assert [file.name for file in tmp_path.iterdir()] == ["figures.json"]
