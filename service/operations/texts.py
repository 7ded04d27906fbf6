"""The texts of a request, and the keys under which their base rewards are remembered."""

from __future__ import annotations

import hashlib
import hmac
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from service.backbone.protocol import Message

__all__ = ["Message", "Text", "TextKeys", "pair_content_key", "token_key"]


@dataclass(frozen=True, slots=True)
class Text:
    """One (prompt, completion) to score.

    Attributes:
        messages: The prompt as chat messages.
        completion: The response to it.
        field: Where it stands in the request, for errors: ``completions[2]``.
    """

    messages: Sequence[Message]
    completion: str
    field: str


class TextKeys:
    """text_key = HMAC(secret, scope, template id, messages, completion), computed before anything is rendered.

    Every part is preceded by its length, so that no two different inputs give the same bytes.
    """

    def __init__(self, secret: bytes, template_id: str) -> None:
        self._secret = secret
        self._template = template_id.encode()

    def prompt(self, scope: str, messages: Sequence[Message]) -> bytes:
        """The part of a key that the completions of one prompt share (32 bytes)."""
        parts = [scope.encode(), self._template]
        for message in messages:
            parts.append(message["role"].encode())
            parts.append(message["content"].encode())
        framed = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
        return hmac.digest(self._secret, framed, "sha256")

    def scope(self, scope: str) -> bytes:
        """What an engine is told of a scope (16 bytes, nothing for the one that all share): it learns no names."""
        return hmac.digest(self._secret, b"scope\0" + scope.encode(), "sha256")[:16] if scope else b""

    def text(self, prompt_key: bytes, completion: str) -> bytes:
        """The key of one text (32 bytes)."""
        return hmac.digest(self._secret, prompt_key + completion.encode(), "sha256")


def token_key(scope: bytes, token_ids: Sequence[int]) -> bytes:
    """Key of rendered token ids, for single flight (32 bytes)."""
    digest = hashlib.sha256(len(scope).to_bytes(8, "little") + scope)
    digest.update(array("I", token_ids).tobytes())
    return digest.digest()


def pair_content_key(chosen_key: bytes, rejected_key: bytes, strength: float | None) -> bytes:
    """Digest of what a pair says (32 bytes): the same choice sent twice is one pair.

    A plain choice has the key that it had while strength 1 meant one, so that pairs of that time are known again.
    """
    weight = 1.0 if strength is None else float(strength)
    said = "one" if strength == 1.0 else weight.hex()
    return hashlib.sha256(chosen_key + rejected_key + said.encode()).digest()
