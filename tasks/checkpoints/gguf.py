"""A GGUF file to a folder in Hugging Face format: fp16 safetensors, tokenizer, chat template.

transformers dequantizes the tensors and builds the tokenizer. It leaves three things that do not
belong into an artifact, and they are mended here: the whole GGUF again as `tokenizer.model`, a BOS
token in front of every text whatever the file says, and the name of the folder in config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks.checkpoints import files


def convert_gguf(file: Path, folder: Path) -> dict[str, Any]:
    """Write the model of a GGUF file into a folder.

    Returns:
        The recipe: what the file says of its origin, license and quantization.
    """
    fields = _metadata(file)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float16
    )
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, legacy=False)
    # llama.cpp's default for a byte-level BPE vocabulary is no BOS; transformers'
    # LlamaTokenizerFast would add one
    tokenizer.add_bos_token = bool(
        fields.get("tokenizer.ggml.add_bos_token", fields.get("tokenizer.ggml.model") != "gpt2")
    )
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").unlink(missing_ok=True)
    files.write_config(folder, files.read_config(folder))
    return {
        "method": "gguf to fp16",
        "license": fields.get("general.license"),
        "origin": fields.get("general.name"),
        "organization": fields.get("general.organization"),
        "gguf_file_type": fields.get("general.file_type"),
    }


def _metadata(file: Path) -> dict[str, Any]:
    """The scalar metadata of a GGUF file."""
    reader = gguf.GGUFReader(file)
    return {
        name: field.contents()
        for name, field in reader.fields.items()
        if field.types and field.types[0] != gguf.GGUFValueType.ARRAY
    }
