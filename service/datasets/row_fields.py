"""Fields that rows of several formats share: a prompt, a user, a text. Every fault is a `BadRow`."""

from __future__ import annotations

from typing import Any, Final

from service.datasets.json_rows import BadRow, unicode
from service.datasets.texts import Messages, user_prompt

_ROLES: Final = ("system", "user", "assistant")


def user_of(value: Any) -> str:
    """A user's id: 7 and "7" are one user.

    Raises:
        BadRow: It is neither text nor a whole number.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadRow("user_id must be text and not empty, or a whole number")
    return unicode(value, "user_id")


def prompt_of(prompt: Any) -> Messages:
    """A prompt, given as text or as messages of which the last is the user's.

    Raises:
        BadRow: It is neither.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise BadRow("prompt must not be empty")
        return user_prompt(unicode(prompt, "prompt"))
    if not isinstance(prompt, list) or not prompt:
        raise BadRow("prompt must be text or a list of {role, content} messages, at least one")
    messages = []
    for index, message in enumerate(prompt):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise BadRow(f"prompt[{index}] must have role and content and nothing else")
        if message["role"] not in _ROLES:
            raise BadRow(f"prompt[{index}].role must be one of {', '.join(_ROLES)}")
        content = message["content"]
        if not isinstance(content, str) or not content.strip():
            raise BadRow(f"prompt[{index}].content must be text and not empty")
        messages.append((message["role"], unicode(content, f"prompt[{index}].content")))
    if messages[-1][0] != "user":
        raise BadRow("the last message of prompt must be the user's; the answers to it have fields of their own")
    return tuple(messages)
