"""Rows in the shapes of trainers: for whom one is, what was asked and what was answered, and how a reward is scaled."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any, TypeAlias

Conversation: TypeAlias = str | list[dict[str, str]]
"""A prompt as the server takes it."""

_SPOKEN_BY = {"developer": "system"}


def conversation_and_answer(prompt: Any, completion: Any) -> tuple[Conversation, str]:
    """What the server is to score: the conversation up to a user's turn, and the assistant's text that answers it.

    A completion of several messages (tool calls and their results, or turns of a simulated user) is scored by its last
    assistant message, which is what the user is left with: empty where it ends in a tool call. Before it, everything up
    to the last user turn is the prompt. Tool calls, tool results, images and messages without text are left out.

    Args:
        prompt: A text or messages, as in the data set's column.
        completion: A text or messages, as TRL passes them.
    """
    if isinstance(completion, str):
        if isinstance(prompt, str):
            return prompt, completion
        before, answer = [], completion
    else:
        spoken = [index for index, message in enumerate(completion) if message["role"] == "assistant"]
        answer = text_of(completion[spoken[-1]].get("content")) if spoken else ""
        before = list(completion[: spoken[-1]]) if spoken else list(completion)
    if isinstance(prompt, str):
        if not any(message["role"] == "user" for message in before):
            return prompt, answer
        prompt = [{"role": "user", "content": prompt}]
    messages = [
        {"role": _SPOKEN_BY.get(message["role"], message["role"]), "content": text_of(message.get("content"))}
        for message in (*prompt, *before)
        if message["role"] != "tool"
    ]
    # A user's turn without text stays: the server says what is wrong with it.
    messages = [message for message in messages if message["role"] == "user" or message["content"].strip()]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    return messages, answer


def text_of(content: Any) -> str:
    """The text of a message's `content`: a text, or blocks of which those of type `text` count."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(block.get("text") or "" for block in content if block.get("type") == "text")


def user_id_of(value: Any) -> str | None:
    """A user's id as the server knows it; None for what stands for nobody in a table: None, NaN and empty texts.

    Whole numbers become their digits, also those that a table made floats of because others are missing.

    Raises:
        ValueError: It is no text and no whole number.
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()  # of NumPy or torch
    if isinstance(value, float) and math.isnan(value):
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole:
        raise ValueError(f"a user id must be a text or a whole number, not {type(value).__name__}: make it a text")
    return str(int(value))


def hashable(conversation: Conversation) -> Hashable:
    """The conversation as a key: equal for equal ones."""
    if isinstance(conversation, str):
        return conversation
    return tuple((message["role"], message["content"]) for message in conversation)


def average_probability(reward: float) -> float:
    """The probability that the user prefers a text of this reward to the average text of the training data."""
    return 1 / (1 + math.exp(-reward)) if reward >= 0 else math.exp(reward) / (1 + math.exp(reward))
