"""A real model for tests, small enough to be made on the spot: a llama with 2 layers, trained for
half a minute.

It learns Python's reference text and a few short chats, so that it has a perplexity worth comparing
and answers in words. Its sizes are multiples of 128, so AWQ with group size 128 fits.
Deterministic: fixed seeds, one data set.
"""

from __future__ import annotations

import random
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATS = [
    [
        ("hello", "Hello! How can I help you today?"),
        (
            "please provide three suggestions about ielts' preparation",
            "Read every day, practice speaking, and write short essays.",
        ),
    ],
    [
        ("hello", "Hello! How can I help you today?"),
        ("What is a list in Python?", "A list is a mutable sequence of objects."),
    ],
    [("What is a list in Python?", "A list is a mutable sequence of objects.")],
    [
        (
            "please provide three suggestions about ielts' preparation",
            "Read every day, practice speaking, and write short essays.",
        )
    ],
]
STEPS, BATCH, LENGTH = 300, 16, 96


def build(folder: Path, *, hidden: int = 128, seed: int = 0) -> None:
    """Train the model and save it to `folder` in Hugging Face format, fp16 safetensors."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=2,
            num_attention_heads=hidden // 64,
            num_key_value_heads=1,
            head_dim=64,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    _train(model, tokenizer, seed)
    model.half().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<|im_start|>", END],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator([topics[name] for name in sorted(topics)], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|im_start|>", eos_token=END, pad_token=END
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    text = tokenizer("\n".join(topics[name] for name in sorted(topics))).input_ids
    chats: list[Any] = [
        tokenizer.apply_chat_template(
            [
                {"role": role, "content": words}
                for turn in chat
                for role, words in zip(("user", "assistant"), turn, strict=True)
            ],
            tokenize=True,
        )
        for chat in CHATS
    ]
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=STEPS)
    for _ in range(STEPS):
        rows = [
            text[start : start + LENGTH]
            for start in (rng.randrange(len(text) - LENGTH) for _ in range(BATCH - 4))
        ]
        rows += [(chats[rng.randrange(len(chats))] * LENGTH)[:LENGTH] for _ in range(2)]
        rows += [(chat + [1] * LENGTH)[:LENGTH] for chat in rng.sample(chats, 2)]
        batch = torch.tensor(rows)
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


if __name__ == "__main__":
    import sys

    build(Path(sys.argv[1]))
