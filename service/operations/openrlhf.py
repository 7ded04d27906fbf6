"""What OpenRLHF sends to its reward servers, as texts and users of this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson

from service.backbone.chat_formats import prompt_end, read_chat
from service.backbone.protocol import Renderer
from service.errors import FieldIssue, InvalidInput
from service.operations.texts import AnyText, Message, RenderedText, Text

_NO_USER = (
    "names no user: send a user id, a JSON object with a user_id, or nothing for the population; where labels are "
    "answers to be checked, name the user in the URL, as get_reward?user=ada"
)


@dataclass(frozen=True, slots=True)
class RolledOut:
    """A sample of a policy.

    Attributes:
        text: Its prompt and its completion.
        recognised: Whether its chat format was; where it was not, the prompt is one message as it stands.
    """

    text: AnyText
    recognised: bool


def read_queries(queries: Sequence[str], prompts: Sequence[str | None], renderer: Renderer) -> list[RolledOut]:
    """Prompts and completions of `queries`, which the policy's tokenizer rendered.

    The backbone has a template of its own, and a text in another model's would be none that it was trained on. So known
    chat formats are read back into messages. A text of an unknown one is used as it is where it is in the backbone's
    own; else the prompt is taken for the user's message.

    Raises:
        InvalidInput: Texts whose prompt cannot be told from their completion.
    """
    read = []
    issues = []
    for i, (query, prompt) in enumerate(zip(queries, prompts, strict=True)):
        field = f"query[{i}]"
        chat = read_chat(query, prompt)
        end = prompt_end(query, prompt) if chat is None and prompt is not None and prompt.strip() else None
        if chat is not None:
            read.append(RolledOut(Text(chat.messages, chat.completion, field), recognised=True))
        elif end is None or prompt is None:
            issues.append(
                FieldIssue(field, f"has no known chat format and does not begin with prompts[{i}]; send both")
            )
        elif (settled := renderer.settle(prompt, query[end:])) is not None:
            read.append(RolledOut(RenderedText(settled, field), recognised=True))
        else:
            asked: list[Message] = [{"role": "user", "content": prompt.strip()}]
            read.append(RolledOut(Text(asked, query[end:], field), recognised=False))
    if issues:
        raise InvalidInput(issues)
    return read


def users_of(labels: Sequence[object], is_user_id: Callable[[str], bool]) -> list[str | None]:
    """Whom each label names: a user id, or a JSON object with a `user_id`; nothing, null and an empty text are nobody.

    Raises:
        InvalidInput: Labels that name no user, by their places.
    """
    users: list[str | None] = []
    issues = []
    for i, label in enumerate(labels):
        try:
            user = _user_of(label)
        except ValueError:
            user = ""
        if user is None or is_user_id(user):
            users.append(user)
        else:
            issues.append(FieldIssue(f"labels[{i}]", _NO_USER))
    if issues:
        raise InvalidInput(issues)
    return users


def _user_of(label: object) -> str | None:
    """The user that a label names, well or badly.

    Raises:
        ValueError: It is neither text nor an object.
    """
    if isinstance(label, str):
        label = label.strip()
        if label.startswith("{"):
            label = orjson.loads(label)
    if label is None or label == "":
        return None
    if isinstance(label, dict):
        label = label.get("user_id")
        if label is None:
            return None
    if not isinstance(label, str):
        raise ValueError("no text")
    return label
