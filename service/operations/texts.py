"""The texts of a request, and the keys under which their base rewards are remembered."""

from __future__ import annotations

import hashlib
import hmac
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from service.backbone.protocol import MAX_TURNS, Message

__all__ = [
    "MAX_TURNS",
    "AnyText",
    "GroupKeys",
    "Message",
    "RenderedText",
    "Text",
    "TextKeys",
    "pair_content_key",
    "ranking_content_key",
    "rating_content_key",
    "tie_content_key",
    "token_key",
]


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


@dataclass(frozen=True, slots=True)
class RenderedText:
    """A prompt and its completion in one, as the sender rendered them.

    Attributes:
        content: The text, or its token ids: those are checked already (`rendered.token_problem`).
        field: Where it stands in the request, for errors: ``input[2]``.
        add_special_tokens: Whether a text gets the tokenizer's own special tokens; means nothing for ids.
    """

    content: str | tuple[int, ...]
    field: str
    add_special_tokens: bool = False


AnyText = Text | RenderedText


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
        return hmac.digest(self._secret, _framed(parts), "sha256")

    def rendered(self, scope: str, text: RenderedText) -> bytes:
        """The key of a text that its sender rendered (32 bytes): never that of messages."""
        if isinstance(text.content, str):
            form, content = b"text, special tokens" if text.add_special_tokens else b"text", text.content.encode()
        else:
            form, content = b"token ids", array("I", text.content).tobytes()
        # A prompt has an even number of parts, this an odd one.
        opening = hmac.digest(self._secret, _framed([scope.encode(), self._template, form]), "sha256")
        return hmac.digest(self._secret, opening + content, "sha256")

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


def tie_content_key(keys: Sequence[bytes]) -> bytes:
    """Digest of a tie of two texts (32 bytes), the same in either order."""
    return _digest(b"tie", *sorted(keys))


def rating_content_key(key: bytes, rating: float, group: bytes) -> bytes:
    """Digest of one rating (32 bytes): another group or another number is another rating."""
    # Adding zero makes one number of both zeros.
    return _digest(b"rating", key, (rating + 0.0).hex().encode(), group)


def ranking_content_key(keys: Sequence[bytes], ranks: Sequence[int]) -> bytes:
    """Digest of a ranking (32 bytes); `keys` and `ranks` in the order of `ranks`, tied ones in that of their keys."""
    return _digest(b"ranking", *(key + rank.to_bytes(4, "little") for key, rank in zip(keys, ranks, strict=True)))


class GroupKeys:
    """What stands for a group of ratings: a keyed digest (32 bytes) of its prompt or of the caller's name for it.

    No template is part of it: the prompt is the same one whatever backbone reads it.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def prompt(self, messages: Sequence[Message]) -> bytes:
        """The group of ratings of one prompt's completions."""
        parts = [part.encode() for message in messages for part in (message["role"], message["content"])]
        return hmac.digest(self._secret, _framed([b"ratings of a prompt", *parts]), "sha256")

    def named(self, name: str) -> bytes:
        """The group that the caller calls `name`."""
        return hmac.digest(self._secret, _framed([b"ratings of a group", name.encode()]), "sha256")


def _digest(domain: bytes, *parts: bytes) -> bytes:
    return hashlib.sha256(_framed([domain, *parts])).digest()


def _framed(parts: Sequence[bytes]) -> bytes:
    """Every part behind its length, so that no two different sequences give the same bytes."""
    return b"".join(len(part).to_bytes(8, "little") + part for part in parts)
