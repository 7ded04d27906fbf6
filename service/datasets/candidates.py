"""Completions to be scored in bulk, as JSON lines, and the lines that scores become.

    {"prompt": "How do I ...?", "completions": ["...", "..."], "user_id": "ann", "id": 17, ...}

`prompt` is text or a list of {"role", "content"} messages that ends with the user's. `user_id` (text or a whole
number) may be missing or null. All other fields are carried to the output as they are, but for those that a scored
line has of its own: an output can be an input.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from service.datasets.json_rows import BadRow, json_object, unicode
from service.datasets.line_source import Line, LineSource, Mark
from service.datasets.row_fields import prompt_of, user_of
from service.datasets.texts import Messages

SCORED_FIELDS: Final = (
    "user_id",
    "user_state",
    "version",
    "rewards",
    "reward_std",
    "best_probability",
    "order",
    "truncated",
    "checkpoint_id",
)
# Of a line that is set aside so many bytes are kept beside the reason.
_SHOWN_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Candidates:
    """One row.

    Attributes:
        line: Where it stands, counted from 1.
        messages: The prompt.
        completions: At least one.
        user_id: Whose taste; None where the row does not say.
        carried: What goes to the output, a JSON object in UTF-8.
        content: The line as it stands there.
        mark: The place behind it.
    """

    line: int
    messages: Messages
    completions: tuple[str, ...]
    user_id: str | None
    carried: bytes
    content: bytes
    mark: Mark


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be scored.

    Attributes:
        line: Where it stands.
        reason: Begins with the field, never echoes the row.
        content: The line as it stands there, or its beginning.
        mark: The place behind it.
    """

    line: int
    reason: str
    content: bytes
    mark: Mark

    def as_line(self) -> bytes:
        """A JSON line for the file of what was set aside."""
        row = self.content[:_SHOWN_BYTES].decode("utf-8", "replace")
        return orjson.dumps({"line": self.line, "reason": self.reason, "row": row}) + b"\n"


@dataclass(frozen=True, slots=True)
class CandidateRules:
    """What rows must keep to.

    Attributes:
        max_completions: Of one row.
        max_text_bytes: Of one prompt or completion.
        user_id: What a user's id is, and in words; None: any text.
        drop_texts: Whether prompt and completions are left out of the output.
    """

    max_completions: int
    max_text_bytes: int
    user_id: tuple[re.Pattern[str], str] | None = None
    drop_texts: bool = False


def read_candidates(source: LineSource, rules: CandidateRules) -> Iterator[Candidates | Rejected]:
    """Every row in the order of the lines, blank ones passed over.

    Raises:
        ConfigurationError: From `source`.
    """
    for line in source:
        data = line.data.removeprefix(codecs.BOM_UTF8) if line.number == 1 else line.data
        if not data.strip():
            continue
        try:
            yield _read_row(line, data, rules)
        except BadRow as error:
            yield Rejected(line.number, str(error), data, line.mark)


def _read_row(line: Line, data: bytes, rules: CandidateRules) -> Candidates:
    if line.too_long:
        raise BadRow("the line is longer than MAX_BODY_BYTES: make several rows of it")
    row = json_object(data, strict=True)
    for name in ("prompt", "completions"):
        if name not in row:
            raise BadRow(f"{name} is missing")
    messages = prompt_of(row["prompt"])
    for i, (role, content) in enumerate(messages):
        field = "prompt" if isinstance(row["prompt"], str) else f"prompt[{i}].content"
        if role == "system" and i:
            raise BadRow(f"prompt[{i}] is a system message that is not the first; move it to the front")
        _check_size(content, field, rules.max_text_bytes)
    completions = row["completions"]
    if not isinstance(completions, list) or not completions:
        raise BadRow("completions must be a list of texts, at least one")
    if len(completions) > rules.max_completions:
        raise BadRow(f"completions are {len(completions)}, at most {rules.max_completions} (MAX_COMPLETIONS)")
    for i, completion in enumerate(completions):
        if not isinstance(completion, str):
            raise BadRow(f"completions[{i}] must be text")
        _check_size(unicode(completion, f"completions[{i}]"), f"completions[{i}]", rules.max_text_bytes)
    user_id = None if row.get("user_id") is None else user_of(row["user_id"])
    if user_id is not None and rules.user_id is not None and not rules.user_id[0].fullmatch(user_id):
        raise BadRow(f"user_id must be {rules.user_id[1]}")
    left_out = (*SCORED_FIELDS, "prompt", "completions") if rules.drop_texts else SCORED_FIELDS
    carried = {name: value for name, value in row.items() if name not in left_out}
    try:
        encoded = json.dumps(carried, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        raise BadRow("a field holds half of a surrogate pair: write the character itself") from None
    return Candidates(line.number, messages, tuple(completions), user_id, encoded, data, line.mark)


def _check_size(text: str, field: str, most: int) -> None:
    # A character takes at most four bytes: the exact count is needed only near the limit.
    if len(text) * 4 > most and len(text.encode()) > most:
        raise BadRow(f"{field} has {len(text.encode())} bytes, at most {most} (MAX_TEXT_BYTES)")


def scored_line(carried: bytes, scored: Mapping[str, Any]) -> bytes:
    """A line of the output: what is carried, then the scores, which have all of `SCORED_FIELDS`."""
    scores = orjson.dumps({name: scored[name] for name in SCORED_FIELDS})
    return (scores if carried == b"{}" else carried[:-1] + b"," + scores[1:]) + b"\n"


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """A line of a scored file, as pairs are made of it.

    Attributes:
        prompt: Text, or messages.
        completions: As scored.
        rewards: Of each.
        user_id: Whose; None for the population.
        id: The row's own name, of whatever kind; None where it has none.
    """

    prompt: str | list[dict[str, str]]
    completions: list[str]
    rewards: list[float]
    user_id: str | None
    id: Any


def read_scored(lines: Iterable[Line]) -> Iterator[tuple[Line, ScoredRow]]:
    """Every row of a scored file.

    Raises:
        BadRow: A row was not scored, or scored without its texts; begins with its line.
    """
    for line in lines:
        data = line.data.removeprefix(codecs.BOM_UTF8) if line.number == 1 else line.data
        if not data.strip():
            continue
        try:
            yield line, _read_scored(line, data)
        except BadRow as error:
            raise BadRow(f"line {line.number}: {error}") from None


def _read_scored(line: Line, data: bytes) -> ScoredRow:
    if line.too_long:
        raise BadRow("the line is longer than a scored row can be")
    row = json_object(data, strict=True)
    for name, hint in (
        ("rewards", "give what `metareward score` wrote"),
        ("prompt", "score without --drop-texts"),
        ("completions", "score without --drop-texts"),
    ):
        if name not in row:
            raise BadRow(f"{name} is missing: {hint}")
    prompt_of(row["prompt"])
    completions, rewards = row["completions"], row["rewards"]
    if not isinstance(completions, list) or not all(isinstance(text, str) for text in completions):
        raise BadRow("completions must be a list of texts")
    numbers = isinstance(rewards, list) and all(
        isinstance(value, float | int) and not isinstance(value, bool) for value in rewards
    )
    if not numbers or len(rewards) != len(completions):
        raise BadRow("rewards must be numbers, one for each completion")
    try:
        values = [float(value) for value in rewards]
    except OverflowError:
        raise BadRow("rewards must be finite") from None
    user_id = None if row.get("user_id") is None else user_of(row["user_id"])
    return ScoredRow(row["prompt"], completions, values, user_id, row.get("id"))
