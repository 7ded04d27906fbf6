"""A backbone whose answers are known without a model: the only part of the engine that tests fake."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from service.backbone.protocol import BackboneSpec, DoubledBos, Message, TokenisedText

POISON = 666
"""A text that holds this id makes the whole batch raise."""
NOT_FINITE = 667
"""A text that holds this id gets a hidden state that is not finite."""


class LetterRenderer:
    """One token per character of the completion."""

    template_id = "letters"
    max_tokens = 64

    def __init__(self) -> None:
        self.doubled_bos = DoubledBos(None)

    def tokenise(
        self, messages: Sequence[Message], completion: str, *, truncate: bool, memo: object = None
    ) -> TokenisedText:
        ids = tuple(ord(letter) % 600 for letter in completion)
        return TokenisedText(ids[: self.max_tokens], truncated=len(ids) > self.max_tokens)

    def tokenise_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return self.doubled_bos.drop([*([1] if add_special_tokens else []), *(ord(letter) % 600 for letter in text)])


class ScriptedBackbone:
    """D = 3: a text's sum, its length and its last id. Records its batches, and waits where a test says so."""

    shares_prefixes = False
    prefixes = None
    runs_by = "scripted"

    def __init__(self) -> None:
        self.spec = BackboneSpec(
            id="scripted",
            kind="huggingface",
            fingerprint="0" * 64,
            template_id="letters",
            hidden_size=3,
            max_tokens=64,
            dtype="float32",
            device="cpu",
            pooling="scripted",
            model_type="scripted",
        )
        self.renderer = LetterRenderer()
        self.vocab_size = 1000
        self.batches: list[list[tuple[int, ...]]] = []
        self.broken = False
        self.crash: BaseException | None = None
        self.entered = threading.Event()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def forward(self, batch: Sequence[Sequence[int]], scopes: Sequence[bytes] | None = None) -> torch.Tensor:
        self.batches.append([tuple(token_ids) for token_ids in batch])
        self.entered.set()
        self.may_go_on.wait(30)
        if self.crash is not None:
            raise self.crash
        if self.broken or any(POISON in token_ids for token_ids in batch):
            raise RuntimeError("the device says no")
        return torch.stack([self.hidden(token_ids) for token_ids in batch])

    def release_memory(self) -> None:
        pass

    @staticmethod
    def hidden(token_ids: Sequence[int]) -> torch.Tensor:
        if NOT_FINITE in token_ids:
            return torch.tensor([float("inf"), 0.0, 0.0])
        return torch.tensor([float(sum(token_ids)), float(len(token_ids)), float(token_ids[-1])])
