"""Texts and where they came from, before anything is embedded.

A text is a prompt (messages) and a completion. Every source of preferences (`jsonl`, `ratings`, `simulated`) ends as
one `PreferenceData`: different texts, numbered by first appearance, and tables that point at them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from service.datasets.columns import DatasetColumns
from service.datasets.pairs import PairTable, RatingTable

Messages = tuple[tuple[str, str], ...]
"""A prompt: (role, content) of each message, in order."""


class Text(NamedTuple):
    """One prompt and one completion.

    Attributes:
        messages: The prompt.
        completion: The assistant's answer.
    """

    messages: Messages
    completion: str

    def as_chat(self) -> list[dict[str, str]]:
        """The prompt as `{"role": ..., "content": ...}` messages."""
        return [{"role": role, "content": content} for role, content in self.messages]


def user_prompt(text: str) -> Messages:
    """The messages of a prompt that is plain text: one message by the user."""
    return (("user", text),)


def text_key(text: Text) -> bytes:
    """SHA-256 of messages and completion: the same text in two rows is embedded once."""
    canonical = json.dumps([text.messages, text.completion], ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).digest()


class TextTable:
    """Numbers texts and prompts by first appearance."""

    def __init__(self) -> None:
        self.texts: list[Text] = []
        self._rows: dict[Text, int] = {}
        self._prompts: dict[Messages, int] = {}
        self._text_prompt: list[int] = []

    def row(self, text: Text) -> int:
        """The row of `text`, a new one when it was not met before."""
        known = self._rows.get(text)
        if known is not None:
            return known
        self._rows[text] = len(self.texts)
        self.texts.append(text)
        self._text_prompt.append(self._prompts.setdefault(text.messages, len(self._prompts)))
        return len(self.texts) - 1

    def prompt(self, messages: Messages) -> int:
        """The number of a prompt that some text answers.

        Raises:
            KeyError: No text answers it.
        """
        return self._prompts[messages]

    def prompts(self) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
        """int32 [N]: the prompt of each text."""
        return np.asarray(self._text_prompt, dtype=np.int32)


@dataclass(frozen=True)
class PreferenceData:
    """Preferences with their texts: what a source hands to `embed`.

    Attributes:
        texts: N different texts.
        text_prompt_N: int32, which prompt each text answers.
        users: User ids.
        splits: Name -> pairs.
        ratings: Graded ratings, where the source has them.
        notes: What was left out or made up, in sentences for the person who runs the command.
    """

    texts: Sequence[Text]
    text_prompt_N: np.ndarray[tuple[int], np.dtype[np.int32]]
    users: list[str]
    splits: dict[str, PairTable]
    ratings: RatingTable | None = None
    notes: list[str] = field(default_factory=list)

    def columns(self) -> DatasetColumns:
        """Everything but the texts, as the embedded data set stores it."""
        keys = b"".join(text_key(text) for text in self.texts)
        return DatasetColumns(
            text_prompt_N=self.text_prompt_N,
            text_key_N=np.frombuffer(keys, np.uint8).reshape(len(self.texts), 32),
            users=self.users,
            splits=self.splits,
            ratings=self.ratings,
        )
