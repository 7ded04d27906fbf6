"""Texts that come as their sender rendered them: what is wrong with them, and their token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from service.backbone.chat_formats import read_chat
from service.backbone.protocol import Renderer, TokenisedText, UnrenderableText
from service.errors import FieldIssue, InvalidInput
from service.operations.texts import AnyText, RenderedText, Text

# Naming every bad text of a large request would cost more than answering it.
MAX_ISSUES: Final = 20
_NO_TOKENS: Final = "has no tokens; send at least one"


def token_problem(text: object, *, vocab_size: int, max_tokens: int | None = None) -> str | None:
    """What is wrong with token ids as a client sent them; None for nothing.

    An id beyond the vocabulary would take a CUDA device down, for everybody.

    Args:
        text: A list of ids, or what stands in its place.
        vocab_size: Ids are below it.
        max_tokens: The longest text; None where it may be shortened, or its length is checked later.
    """
    if not isinstance(text, list):
        return "is no list of token ids; send ids, or strings only"
    if not text:
        return _NO_TOKENS
    if max_tokens is not None and len(text) > max_tokens:
        return f"has {len(text)} tokens where at most {max_tokens} are read; shorten it"
    if not {int}.issuperset(map(type, text)):  # exact types: true and 1.0 are no ids
        return "holds something that is no integer; token ids are integers"
    if min(text) < 0 or max(text) >= vocab_size:
        return f"holds a token id outside 0 to {vocab_size - 1}; was it tokenised for another backbone?"
    return None


def checked_ids(
    texts: Sequence[object], field: str, *, vocab_size: int, max_tokens: int | None = None
) -> list[list[int]]:
    """Texts that come as token ids, as a client sent them; see `token_problem`.

    Raises:
        InvalidInput: What is wrong with the first of them, by their places in `field`.
    """
    checked = []
    issues = []
    for index, text in enumerate(texts):
        problem = token_problem(text, vocab_size=vocab_size, max_tokens=max_tokens)
        if problem is not None:
            issues.append(FieldIssue(f"{field}[{index}]", problem))
            if len(issues) == MAX_ISSUES:
                break
        elif isinstance(text, list):
            checked.append(text)
    if issues:
        raise InvalidInput(issues)
    return checked


def rendered_text(text: str, field: str, renderer: Renderer, *, add_special_tokens: bool) -> AnyText:
    """A text that a client rendered, as it is; for a backbone without a chat template, what was said in it.

    No client can render in the way of such a backbone, so it took a template of some other model.
    """
    chat = None if renderer.has_chat_template else read_chat(text, None)
    if chat is not None:
        return Text(chat.messages, chat.completion, field)
    return RenderedText(text, field, add_special_tokens)


def check_bytes(texts: Iterable[tuple[str, str]], most: int) -> None:
    """Refuse texts, each behind its field, of more than `most` bytes.

    A tokenizer takes seconds and gigabytes for megabytes, only to find out that they are too many tokens.

    Raises:
        InvalidInput: The first of them, by their fields.
    """
    long = (field for field, text in texts if len(text) * 4 > most and len(text.encode()) > most)
    issues = [FieldIssue(field, f"has more than {most} bytes; shorten it") for field in islice(long, MAX_ISSUES)]
    if issues:
        raise InvalidInput(issues)


def tokenise_rendered(renderer: Renderer, text: RenderedText, *, truncate: bool) -> TokenisedText:
    """The token ids of a text as it is, but for a doubled BOS at its start.

    Raises:
        TextTooLong: It has too many, and is not to be shortened.
        UnrenderableText: It is not Unicode, or nothing.
    """
    if isinstance(text.content, str):
        ids = renderer.tokenise_text(text.content, add_special_tokens=text.add_special_tokens)
    else:
        ids = renderer.doubled_bos.drop(list(text.content))
    if not ids:
        raise UnrenderableText(_NO_TOKENS)
    return renderer.fit(ids, truncate=truncate)
