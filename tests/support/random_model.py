"""Checkpoints of random weights in real sizes, for measuring speed and memory where no model can be
fetched.

Engines do the same work on them as on trained weights. What they say is words without sense: only
tokens that decode to printable text have an output row, so greedy answers are readable and never
end by themselves. Each tensor has a seed of its own name, so one seed gives the same files on one
device; made and saved shard by shard, on the device.

    python -m tests.support.random_model OUT --shape llama-7.7b --tokenizer FOLDER [--w4a16]
    [--device cuda] [--seed N]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from configs.errors import SourceError
from tasks.checkpoints import files
from tests.support.internlm2 import FAMILY, PYTEST_CACHE, add_code, remote_code

SHARD_BYTES = 4_000_000_000
STD = 0.02
GROUP = 128
# What `auto_awq` writes. Codes are uniform in 0..15 and zeros 7 or 8, so a scale of STD / 4.6 gives
# weights of about STD.
AWQ = {"bits": 4, "group_size": GROUP, "quant_method": "awq", "version": "gemm", "zero_point": True}
CODE_STD = 4.64
TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder with grouped queries and a gated MLP; `vocabulary` None is the
    tokenizer's."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int | None = 92_544

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """{name in a layer: (out_features, in_features)}."""
        hidden, wide, key = (
            self.hidden,
            self.intermediate,
            self.hidden // self.heads * self.kv_heads,
        )
        if self.family == "internlm2":
            return {
                "attention.wqkv": (hidden + 2 * key, hidden),
                "attention.wo": (hidden, hidden),
                "feed_forward.w1": (wide, hidden),
                "feed_forward.w3": (wide, hidden),
                "feed_forward.w2": (hidden, wide),
            }
        return {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (key, hidden),
            "self_attn.v_proj": (key, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide),
        }

    @property
    def other_names(self) -> tuple[str, str, tuple[str, str]]:
        """The names of the embedding, the output matrix, and a layer's norms."""
        if self.family == "internlm2":
            return "model.tok_embeddings", "output", ("attention_norm", "ffn_norm")
        return "model.embed_tokens", "lm_head", ("input_layernorm", "post_attention_layernorm")


SHAPES = {
    # 7,737,708,544 parameters: InternLM2-7B's sizes under llama's names
    "llama-7.7b": Shape("llama", 4096, 32, 32, 8, 14_336),
    # 1,889,110,016 parameters: internlm2-chat-1_8b
    "internlm2-1.9b": Shape("internlm2", 2048, 24, 16, 8, 8192),
    "tiny": Shape("llama", 256, 2, 4, 2, 512, None),
    "tiny-internlm2": Shape("internlm2", 256, 2, 4, 2, 512, None),
}


@dataclass(frozen=True)
class Tensor:
    """A tensor to be made: `kind` says how (normal, ones, output, qweight, qzeros, scales)."""

    name: str
    shape: tuple[int, ...]
    kind: str

    @property
    def bytes(self) -> int:
        return prod(self.shape) * (4 if self.kind in ("qweight", "qzeros") else 2)


def build(
    folder: Path,
    shape: Shape,
    tokenizer: Path,
    *,
    code: Path | None = None,
    w4a16: bool = False,
    device: str = "cpu",
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write a checkpoint of random weights.

    Args:
        folder: must not exist.
        tokenizer: the folder whose tokenizer and chat template it gets; one that needs no remote
            code.
        code: InternLM2's Python files, for that family.

    Returns:
        The bytes of its weights.

    Raises:
        SourceError: the tokenizer has more tokens than the shape, or InternLM2's files are missing
            or are other ones.
    """
    words = AutoTokenizer.from_pretrained(tokenizer)
    vocabulary = shape.vocabulary or -(-len(words) // 64) * 64
    if len(words) > vocabulary:
        raise SourceError(
            f"the tokenizer has {len(words)} tokens, the model {vocabulary}",
            where=str(tokenizer),
            hint="choose another one",
        )
    folder.mkdir(parents=True)
    if shape.family == "internlm2":
        if code is None:
            raise SourceError(
                "InternLM2 needs its Python files",
                where=str(folder),
                hint="name their folder (--code)",
            )
        add_code(code, folder)
    for pattern in TOKENIZER_FILES:
        for path in tokenizer.glob(pattern):
            shutil.copyfile(path, folder / path.name)
    ends = {
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    files.write_config(
        folder, config(shape, vocabulary) | ends | ({"quantization_config": AWQ} if w4a16 else {})
    )
    (folder / "generation_config.json").write_text(
        json.dumps(ends, indent=2, sort_keys=True) + "\n"
    )
    speakable = printable_tokens(words, vocabulary).to(device)
    shards = split(list(tensors(shape, vocabulary, w4a16=w4a16)), shard_bytes)
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = (
            "model.safetensors"
            if len(shards) == 1
            else f"model-{number:05}-of-{len(shards):05}.safetensors"
        )
        save_file(
            {tensor.name: make(tensor, seed, speakable, device) for tensor in shard},
            folder / name,
            metadata={"format": "pt"},
        )
        index |= {tensor.name: name for tensor in shard}
    total = sum(tensor.bytes for shard in shards for tensor in shard)
    if len(shards) > 1:
        (folder / files.INDEX).write_text(
            json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2) + "\n"
        )
    return total


def config(shape: Shape, vocabulary: int) -> dict[str, Any]:
    """config.json of a shape; InternLM2's with the rotary settings of internlm2-chat-1_8b."""
    sizes = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32_768,
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "initializer_range": STD,
        "torch_dtype": "float16",
        "use_cache": True,
    }
    if shape.family == "internlm2":
        return sizes | FAMILY | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    return sizes | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": shape.hidden // shape.heads,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    }


def tensors(shape: Shape, vocabulary: int, *, w4a16: bool) -> Iterator[Tensor]:
    """Every tensor of the checkpoint, in the order of the layers."""
    embedding, output, norms = shape.other_names
    yield Tensor(f"{embedding}.weight", (vocabulary, shape.hidden), "normal")
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        for name, (out, inn) in shape.linears.items():
            if w4a16:
                yield Tensor(f"{prefix}.{name}.qweight", (inn, out // 8), "qweight")
                yield Tensor(f"{prefix}.{name}.qzeros", (inn // GROUP, out // 8), "qzeros")
                yield Tensor(f"{prefix}.{name}.scales", (inn // GROUP, out), "scales")
            else:
                yield Tensor(f"{prefix}.{name}.weight", (out, inn), "normal")
        for name in norms:
            yield Tensor(f"{prefix}.{name}.weight", (shape.hidden,), "ones")
    yield Tensor("model.norm.weight", (shape.hidden,), "ones")
    yield Tensor(f"{output}.weight", (vocabulary, shape.hidden), "output")


def make(tensor: Tensor, seed: int, speakable: torch.Tensor, device: str) -> torch.Tensor:
    """One tensor, made on the device and handed over in host memory.

    Args:
        speakable: bool[vocabulary] on the device, the rows of the output matrix that are not zero.
    """
    draw = torch.Generator(device).manual_seed(
        int.from_bytes(hashlib.sha256(f"{seed} {tensor.name}".encode()).digest()[:7])
    )
    if tensor.kind == "ones":
        return torch.ones(tensor.shape, dtype=torch.float16)
    if tensor.kind in ("qweight", "qzeros"):
        codes = torch.randint(
            -(2**31), 2**31, tensor.shape, generator=draw, device=device, dtype=torch.int32
        )
        # each nibble 7 or 8
        return (codes if tensor.kind == "qweight" else (codes & 0x11111111) + 0x77777777).cpu()
    if tensor.kind == "scales":
        return (
            torch.rand(tensor.shape, generator=draw, device=device)
            .mul_(0.5)
            .add_(0.75)
            .mul_(STD / CODE_STD)
            .half()
            .cpu()
        )
    values = torch.randn(tensor.shape, generator=draw, device=device, dtype=torch.float16).mul_(STD)
    if tensor.kind == "output":
        values *= speakable[:, None]
    return values.cpu()


def printable_tokens(tokenizer: Any, vocabulary: int) -> torch.Tensor:
    """bool[vocabulary]: the tokens that decode to printable text; no special ones, no parts of a
    character."""
    special = set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode([[index] for index in range(len(tokenizer))])
    speakable = torch.zeros(vocabulary, dtype=torch.bool)
    for index, text in enumerate(texts):
        speakable[index] = (
            index not in special
            and bool(text.strip())
            and text.isprintable()
            and "\ufffd" not in text
        )
    return speakable


def split(names: Sequence[Tensor], limit: int) -> list[list[Tensor]]:
    """The tensors in order, in shards of at most `limit` bytes (or of one tensor that is
    larger)."""
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in names:
        if shards[-1] and size + tensor.bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.bytes
    return shards


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.random_model",
        description="write a checkpoint of random weights",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="must not exist")
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="FOLDER",
        required=True,
        help="a model folder with the tokenizer to take",
    )
    parser.add_argument(
        "--code", type=Path, metavar="FOLDER", help="InternLM2's Python files; fetched if not given"
    )
    parser.add_argument(
        "--w4a16", action="store_true", help="AWQ gemm, group size 128, instead of fp16"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shape, started = SHAPES[options.shape], time.monotonic()
    code = (options.code or remote_code(PYTEST_CACHE)) if shape.family == "internlm2" else None
    size = build(
        options.out,
        shape,
        options.tokenizer,
        code=code,
        w4a16=options.w4a16,
        device=options.device,
        seed=options.seed,
    )
    print(f"{options.out}: {size / 1e9:.3f} GB in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
