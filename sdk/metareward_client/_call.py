"""One request as a value, without any I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from metareward_client.errors import FieldError, InvalidRequest, UnexpectedAnswer

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
Q = TypeVar("Q", bound=BaseModel)


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and how its answer is read.

    Attributes:
        repeatable: Whether sending it twice does what sending it once does: it changes nothing, or has a key.
        answered: Statuses whose body is the answer.
        field_of: What the caller knows as the field that the server names.
    """

    method: str
    path: str
    parse: Callable[[bytes], T]
    body: bytes | None = None
    query: tuple[tuple[str, str], ...] = ()
    repeatable: bool = True
    idempotency_key: str | None = None
    answered: frozenset[int] = frozenset({200})
    field_of: Callable[[str], str] | None = None


def reader(model: type[M]) -> Callable[[bytes], M]:
    """How a body is read as `model`.

    Raises (when it reads):
        UnexpectedAnswer: It is something else.
    """

    def read(body: bytes) -> M:
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = _path(first["loc"]) or "body"
            raise UnexpectedAnswer(
                f"The server's answer is not a {model.__name__}: {where}: {first['msg']}. Is this a metareward "
                "server of this client's version?"
            ) from None

    return read


def body_of(model: type[Q], values: Mapping[str, Any]) -> bytes:
    """The JSON body that `values` make as `model`; what is None is left out.

    Raises:
        InvalidRequest: They do not; every field that is wrong.
    """
    return json_of(checked(model, values))


def checked(model: type[Q], values: Q | Mapping[str, Any], field: str = "") -> Q:
    """`values` as `model`.

    Raises:
        InvalidRequest: They are not; every field that is wrong, in paths that begin with `field`.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        listed = error.errors(include_input=False, include_url=False)
        errors = [FieldError(_path((*_at(field), *each["loc"])), _message(each["msg"])) for each in listed]
        raise InvalidRequest("Nothing was sent.", errors=errors) from None


def json_of(request: BaseModel, field: str = "") -> bytes:
    """A request as JSON; what is None is left out.

    Raises:
        InvalidRequest: A text is none that UTF-8 can hold, in paths that begin with `field`.
    """
    try:
        return request.model_dump_json(exclude_none=True).encode()
    except PydanticSerializationError:
        message = "has half a surrogate pair, which is no text; decode it with errors='replace'"
        errors = [FieldError(_path((*_at(field), *where)), message) for where in _halves(request)]
        raise InvalidRequest("Nothing was sent.", errors=errors) from None


def _at(field: str) -> tuple[str, ...]:
    return (field,) if field else ()


def _halves(request: BaseModel) -> list[tuple[int | str, ...]]:
    """Where texts are that UTF-8 cannot hold."""
    found: list[tuple[int | str, ...]] = []

    def look(value: Any, where: tuple[int | str, ...]) -> None:
        if isinstance(value, str):
            if any("\ud800" <= character <= "\udfff" for character in value):
                found.append(where)
        elif isinstance(value, Mapping):
            for name, inner in value.items():
                look(inner, (*where, name))
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                look(inner, (*where, index))

    look(request.model_dump(), ())
    return found


_TAGS = {"list[dict[str,str]]", "str", "chosen", "regenerated", "copied", "edited", "dwell", "thumbs"}


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for at, part in enumerate(location):
        # Behind an index of events or of a union pydantic names the alternative, which is no field.
        is_tag = at and part in _TAGS and (isinstance(location[at - 1], int) or location[at - 1] == "prompt")
        if not is_tag:
            path += f"[{part}]" if isinstance(part, int) else f"{'.' if path else ''}{part}"
    return path


def _message(message: str) -> str:
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
