"""docs/benchmarks: every page is what the script makes of the raw figures beside it, and the
figures of README and docs are theirs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.gpu.write_up import page, read
from configs.paths import PROJECT

PAGES = sorted((PROJECT / "docs" / "benchmarks").glob("*.md"))


@pytest.mark.parametrize("written", PAGES, ids=lambda path: path.stem)
def test_the_page_is_written_by_the_script(written: Path) -> None:
    assert page(read(written.with_suffix(""))) == (written.stem, written.read_text())


def test_there_is_a_page() -> None:
    assert PAGES


def test_figures_of_two_gpus_do_not_make_one_page() -> None:
    found = read(PAGES[0].with_suffix(""))
    name, figures = next(iter(found.items()))
    with pytest.raises(SystemExit, match="do not make one page"):
        page(found | {name: figures | {"gpu": figures["gpu"] | {"name": "another"}}})


def test_the_docs_tell_the_same_figures() -> None:
    """README and docs round nothing on their own: what they say of the runtimes and variants stands
    on the page."""
    docs = PROJECT / "docs"
    found = read(docs / "benchmarks" / "nvidia-h200")
    for row in found["smollm2"]["variants"]:
        for column in ("size", "perplexity", "ratio", "mean KL", "load"):
            assert row[column] in (docs / "gpu.md").read_text(), (row["variant"], column)
        decode = re.findall(r"(\d+) \(batch", row["decode tokens/s"])
        assert ", ".join(decode) in (docs / "gpu.md").read_text(), row["variant"]
        if row["variant"] in ("fp16", "w4a16"):
            assert f" {decode[0]} " in (PROJECT / "README.md").read_text(), row["variant"]
    for kind in ("fp16", "w4a16"):
        for item in found["runtimes"][kind]["figures"]:
            medians = [
                sorted(speed["decode"])[len(speed["decode"]) // 2] for speed in item["speeds"]
            ]
            told = ", ".join(f"{median:.0f}" for median in medians)
            assert told in (docs / "engines.md").read_text(), item["runtime"]
