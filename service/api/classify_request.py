"""The body of vLLM's `POST /classify`, as far as a reward model's worker answers it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from service.errors import InvalidInput, NotFound
from service.operations.texts import Message

MAX_SALT_LENGTH: Final = 1024  # vLLM's
_SCOPE_BYTES: Final = 16
_ROLES: Final = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """What is to be classified; exactly one of the three is not empty.

    Attributes:
        ids: Texts as token ids, not yet checked.
        texts: Texts that the client rendered.
        messages: One conversation; the last message is the completion.
        add_special_tokens: Whether `texts` get the tokenizer's own special tokens; vLLM's default.
        scope: Whose texts they are, as `cache_salt` says: nothing is shared with texts of another. That is all it does.
        model: Which of the worker's models is to answer.
    """

    ids: Sequence[object] = ()
    texts: Sequence[str] = ()
    messages: Sequence[Message] = field(default_factory=tuple)
    add_special_tokens: bool = True
    scope: bytes = b""
    model: str = ""


def parse_classify(body: bytes, models: Iterable[str]) -> ClassifyRequest:
    """Read a body; fields that vLLM has and that change nothing here are left alone, as vLLM does.

    A body that names no model means the first of `models`.

    Raises:
        InvalidInput: It is no JSON object, or a field is not what it must be.
        NotFound: It asks for another model than those.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidInput.single("body", "is not valid JSON in UTF-8") from None
    if not isinstance(request, dict):
        raise InvalidInput.single("body", "is no JSON object")
    wanted = request.get("model")
    if wanted is not None and not isinstance(wanted, str):
        raise InvalidInput.single("model", "is no string")
    served = list(models)
    if wanted is not None and wanted not in served:
        raise NotFound("this worker serves another model; GET /v1/models names it")
    model = served[0] if wanted is None else wanted
    if request.get("use_activation") not in (None, False):
        raise InvalidInput.single(
            "use_activation", "must be false: the answers are base rewards, and a softmax over them has no meaning"
        )
    if request.get("truncate_prompt_tokens") is not None:
        raise InvalidInput.single("truncate_prompt_tokens", "is not supported; send what is to be read")
    if ("input" in request) == ("messages" in request):
        raise InvalidInput.single("input", "give either input or messages")
    scope = _scope(request.get("cache_salt"))
    if "messages" in request:
        return ClassifyRequest(messages=_messages(request["messages"]), scope=scope, model=model)
    return replace(_input(request["input"], request.get("add_special_tokens", True)), scope=scope, model=model)


def parse_timeout(header: bytes | None) -> float:
    """Seconds for which a caller waits, from its `x-timeout-ms`; without end where it does not say.

    Raises:
        InvalidInput: It is no number of milliseconds.
    """
    if header is None:
        return math.inf
    if not header.isdigit() or len(header) > 9 or int(header) == 0:
        raise InvalidInput.single("x-timeout-ms", "must be a whole number of milliseconds, at least 1")
    return int(header) / 1000


def _scope(salt: Any) -> bytes:
    if salt is None:
        return b""
    if not isinstance(salt, str) or not 0 < len(salt) <= MAX_SALT_LENGTH:
        raise InvalidInput.single("cache_salt", f"must be text of 1 to {MAX_SALT_LENGTH} characters, or be left out")
    return hashlib.blake2b(salt.encode(), digest_size=_SCOPE_BYTES).digest()


def _input(value: Any, add_special_tokens: Any) -> ClassifyRequest:
    if not isinstance(add_special_tokens, bool):
        raise InvalidInput.single("add_special_tokens", "is neither true nor false")
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value:
        raise InvalidInput.single("input", "must be a text, token ids, or a list of one of these, and not empty")
    if all(isinstance(text, str) for text in value):
        return ClassifyRequest(texts=value, add_special_tokens=add_special_tokens)
    if any(isinstance(text, list) for text in value):
        return ClassifyRequest(ids=value)
    return ClassifyRequest(ids=[value])


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or len(value) < 2:
        raise InvalidInput.single("messages", "must be a list of a prompt's messages and the completion, the last one")
    messages: list[Message] = []
    for index, entry in enumerate(value):
        role, content = (entry.get("role"), entry.get("content")) if isinstance(entry, dict) else (None, None)
        if role not in _ROLES or not isinstance(content, str):
            raise InvalidInput.single(
                f"messages[{index}]", f"must have a role ({', '.join(_ROLES)}) and a content that is text"
            )
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] != "assistant":
        raise InvalidInput.single(f"messages[{len(messages) - 1}]", "must be the assistant's completion")
    return messages
