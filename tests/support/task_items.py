"""Task items for the tests that read, ask or compare them."""

from __future__ import annotations

from typing import Any

from tasks.quality.items import Item

CHOICE = {
    "task": "python",
    "id": "list",
    "prompt": "A list is a mutable",
    "choices": ["sequence of objects.", "of sequence mutable."],
    "answer": 0,
}
CHAT = {
    "task": "chat",
    "id": "hello",
    "messages": [{"role": "user", "content": "hello"}],
    "answer": ["Hello! How can I help you today"],
}


def item(**fields: Any) -> Item:
    return Item.model_validate({"task": "t", "id": "1"} | fields)
