"""The body of vLLM's `POST /classify`, as far as a worker and the REST layer answer it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from service.errors import InvalidInput, NotFound
from service.operations.texts import MAX_TURNS, Message

MAX_SALT_LENGTH: Final = 1024  # vLLM's
ALL_THAT_FITS: Final = -1
"""vLLM's `truncate_prompt_tokens` for: as many tokens as the model reads."""
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
        model: Which model is to answer, as it was sent.
        user: OpenAI's field for whom the request is made.
        truncate: Whether a text that is too long is shortened.
    """

    ids: Sequence[object] = ()
    texts: Sequence[str] = ()
    messages: Sequence[Message] = field(default_factory=tuple)
    add_special_tokens: bool = True
    scope: bytes = b""
    model: str | None = None
    user: str | None = None
    truncate: bool = False


def parse_classify(body: bytes, models: Iterable[str]) -> ClassifyRequest:
    """Read a body; fields that vLLM has and that change nothing here are left alone, as vLLM does.

    A body that names no model means the first of `models`.

    Raises:
        InvalidInput: It is no JSON object, or a field is not what it must be.
        NotFound: It asks for another model than those.
    """
    request = json_object(body)
    wanted = _text_or_none(request, "model")
    served = list(models)
    if wanted is not None and wanted not in served:
        raise NotFound("this worker serves another model; GET /v1/models names it")
    asked = read_classify(request)
    if asked.truncate:
        raise InvalidInput.single("truncate_prompt_tokens", "is not supported; send what is to be read")
    return replace(asked, model=served[0] if wanted is None else wanted)


def json_object(body: bytes) -> dict[str, Any]:
    """A body that must be a JSON object.

    Raises:
        InvalidInput: It is none.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidInput.single("body", "is not valid JSON in UTF-8") from None
    if not isinstance(request, dict):
        raise InvalidInput.single("body", "is no JSON object")
    return request


def read_classify(request: Mapping[str, Any]) -> ClassifyRequest:
    """Read the fields of a request; those that vLLM has and that change nothing here are left alone, as vLLM does.

    Raises:
        InvalidInput: A field is not what it must be.
    """
    model, user = _text_or_none(request, "model"), _text_or_none(request, "user")
    if request.get("use_activation") not in (None, False):
        raise InvalidInput.single(
            "use_activation", "must be false: the answers are rewards, and a softmax over them has no meaning"
        )
    truncate = request.get("truncate_prompt_tokens")
    if truncate is not None and (type(truncate) is not int or truncate != ALL_THAT_FITS):
        raise InvalidInput.single(
            "truncate_prompt_tokens", f"is not supported, but for {ALL_THAT_FITS} where users are; leave it out"
        )
    if truncate is not None and request.get("truncation_side") not in (None, "left"):
        raise InvalidInput.single(
            "truncation_side", "must be left: a reward is read at the end of a text, so that stays"
        )
    if ("input" in request) == ("messages" in request):
        raise InvalidInput.single("input", "give either input or messages")
    if "messages" in request:
        asked = ClassifyRequest(messages=_messages(request["messages"]))
    else:
        asked = _input(request["input"], request.get("add_special_tokens", True))
    scope = _scope(request.get("cache_salt"))
    return replace(asked, scope=scope, model=model, user=user, truncate=truncate is not None)


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


def _text_or_none(request: Mapping[str, Any], field: str) -> str | None:
    value = request.get(field)
    if value is not None and not isinstance(value, str):
        raise InvalidInput.single(field, "is no string")
    return value


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
    if len(value) > MAX_TURNS:
        raise InvalidInput.single("messages", f"has {len(value)}, at most {MAX_TURNS}; leave out the oldest")
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
