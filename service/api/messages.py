"""Prompts as the operations take them."""

from __future__ import annotations

from service.api.schemas import ChatMessage
from service.operations.texts import Message


def to_messages(prompt: str | list[ChatMessage]) -> list[Message]:
    """A text is one user message."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    return [{"role": message.role, "content": message.content} for message in prompt]
