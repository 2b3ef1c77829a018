"""Padding keeps what a model computes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from artifacts.store.local import LocalStore
from configs.errors import SourceError
from tasks.pad import PadRequest, pad
from tasks.runner.step import Context
from tests.support.models import fetch


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (
            LlamaForCausalLM,
            LlamaConfig(tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
        ),
        (LlamaForCausalLM, LlamaConfig(tie_word_embeddings=False)),
        (MistralForCausalLM, MistralConfig(head_dim=32, sliding_window=None)),
    ],
)
def test_padding_keeps_the_logits(
    tmp_path: Path, tiny_model: Path, kind: type, config: LlamaConfig
) -> None:
    """In float32, so that only the padding could make a difference: hidden 96 -> 128, MLP 200 ->
    256, heads 3 -> 12 (in whole groups of 3, until heads times 32 divides)."""
    torch.manual_seed(0)
    config.update(
        {
            "hidden_size": 96,
            "intermediate_size": 200,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "vocab_size": 300,
            "rms_norm_eps": 1e-3,
            "max_position_embeddings": 64,
        }
    )
    model = kind(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:  # fresh ones are all 1 or 0 and would hide a mistake
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "model")
    store = LocalStore(tmp_path / "store")
    source = fetch(store, tmp_path / "model")
    padded = pad(PadRequest(model=source, multiple=128), Context(store)).model
    wide = AutoModelForCausalLM.from_pretrained(padded.path).eval()
    assert (
        wide.config.hidden_size == 128
        and wide.config.num_attention_heads == 12
        and wide.config.intermediate_size == 256
    )
    ids = torch.randint(300, (2, 40))
    with torch.inference_mode():
        torch.testing.assert_close(wide(ids).logits, model(ids).logits, atol=2e-5, rtol=1e-4)
    assert all(
        size % 128 == 0
        for name, t in load_file(padded.path / "model.safetensors").items()
        if "proj" in name and t.dim() == 2
        for size in t.shape[1:]
    )
    assert store.manifest(padded.digest).parent("model") == source.digest


def test_padding_another_kind_of_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    store = LocalStore(tmp_path / "store")
    with pytest.raises(SourceError, match="cannot pad a model of type 'gpt2'"):
        pad(PadRequest(model=fetch(store, folder), multiple=128), Context(store))
