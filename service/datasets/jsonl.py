"""Preferences as JSON lines: one row, one choice.

    {"user_id": "ann", "prompt": "How do I ...?", "chosen": "...", "rejected": "..."}

`user_id` is text or a whole number (7 and "7" are one user). `prompt` is text or a list of {"role", "content"} messages
that ends with the user's. Optional: `conversation_id` (text or number, the user's own), `split` (seen | unseen), `part`
(train | support | query), `strength` (above 0, on the user's own scale; a row without one, beside rows with one, is a
plain choice). What `metareward pairs` writes is read as it is: `chosen` and `rejected` may be a list of one message by
the assistant, and its figures are passed over.

Splits are obeyed where rows give them, for all rows of a user or for none. The others are made by seed: half of the
users become unseen, and an unseen user's support and query pairs never share a conversation (a prompt, where rows have
no conversation_id). A user with only one conversation cannot be divided so, and is seen.
"""

from __future__ import annotations

import codecs
import math
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from service.datasets.bad_rows import BadRows
from service.datasets.json_rows import BadRow, json_object, unicode
from service.datasets.pairs import NO_CONVERSATION, QUERY, SUPPORT, TRAIN, PairTable
from service.datasets.row_fields import prompt_of, user_of
from service.datasets.splits import choose_unseen, split_conversations
from service.datasets.texts import Messages, PreferenceData, Text, TextTable
from service.errors import ConfigurationError

SPLIT_NAME: Final = "default"
_PARTS: Final = {"train": TRAIN, "support": SUPPORT, "query": QUERY}
_REQUIRED: Final = ("user_id", "prompt", "chosen", "rejected")
_FIELDS: Final = (*_REQUIRED, "conversation_id", "split", "part", "strength")
# What `metareward pairs` says of a pair beside its texts.
_PASSED_OVER: Final = frozenset(["id", "chosen_reward", "rejected_reward", "margin", "probability"])


@dataclass(frozen=True)
class _Row:
    place: str
    user: str
    messages: Messages
    chosen: str
    rejected: str
    conversation: str | None
    split: str | None
    part: int | None
    strength: float | None


def read_jsonl(path: Path, *, seed: int) -> PreferenceData:
    """Read preferences and give them one split, `default`.

    Args:
        path: The file, UTF-8, with or without a byte order mark.
        seed: Makes the splits that the rows do not give.

    Raises:
        ConfigurationError: The file cannot be read, or is one JSON array.
        InvalidInput: Some rows are bad; every one is counted, the first 20 are told by line.
    """
    bad = BadRows(path.name)
    rows = list(_read_rows("--input", path, bad))
    by_user: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        by_user[row.user].append(index)
    for indices in by_user.values():
        _check_user([rows[index] for index in indices], bad)
    bad.refuse()
    if not rows:
        raise ConfigurationError(f"--input {path} has no rows")
    return _build(rows, by_user, seed)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a user preferred.

    Attributes:
        messages: The prompt.
        chosen: The completion that the user preferred.
        rejected: The other one.
        strength: How strongly it was felt, on the user's own scale; None for a plain choice.
    """

    messages: Messages
    chosen: str
    rejected: str
    strength: float | None


def read_choices(flag: str, path: Path, newest: int) -> dict[str, list[Choice]]:
    """What users chose, without splits: rows of part `query` are held back and left out, all others are taken.

    Args:
        flag: Names the file in errors.
        path: As `read_jsonl` takes it.
        newest: Of a user with more choices, how many of the last ones are kept.

    Raises:
        ConfigurationError: The file cannot be read, is one JSON array, or has no rows.
        InvalidInput: Some rows are bad.
    """
    bad = BadRows(path.name)
    choices: dict[str, deque[Choice]] = {}
    for row in _read_rows(flag, path, bad):
        if row.part != QUERY:
            kept = choices.setdefault(row.user, deque(maxlen=newest))
            kept.append(Choice(row.messages, row.chosen, row.rejected, row.strength))
    bad.refuse()
    if not choices:
        raise ConfigurationError(f"{flag} {path} has no rows")
    return {user: list(kept) for user, kept in choices.items()}


def _read_rows(flag: str, path: Path, bad: BadRows) -> Iterator[_Row]:
    """Every good row; `bad` is told of the others."""
    any_row = False
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                if not line.strip():
                    continue
                if not any_row and not bad and line.lstrip().startswith(b"["):
                    raise ConfigurationError(
                        f"{flag} {path}: this looks like a JSON array; write one object a line, without brackets "
                        "around all and commas between"
                    )
                try:
                    row = _read_row(f"line {number}", line)
                except BadRow as error:
                    bad.add(f"line {number}", str(error))
                    continue
                any_row = True
                yield row
    except OSError as error:
        raise ConfigurationError(f"{flag} {path} cannot be read: {error.strerror}") from error


def _text(row: dict[str, Any], field: str) -> str:
    value = row[field]
    if _is_answer(value):
        value = value[0]["content"]
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"{field} must be text and not empty")
    return unicode(value, field)


def _is_answer(value: Any) -> bool:
    """Whether this is a completion as conversational data sets have it: a list of one message by the assistant."""
    return (
        isinstance(value, list)
        and len(value) == 1
        and isinstance(value[0], dict)
        and set(value[0]) == {"role", "content"}
        and value[0]["role"] == "assistant"
    )


def _read_row(place: str, line: bytes) -> _Row:
    row = json_object(line)
    if missing := [name for name in _REQUIRED if name not in row]:
        raise BadRow(f"{', '.join(missing)} missing")
    if unknown := sum(name not in _FIELDS and name not in _PASSED_OVER for name in row):
        raise BadRow(f"{unknown} unknown field(s): a row has {', '.join(_FIELDS)}")
    chosen, rejected = _text(row, "chosen"), _text(row, "rejected")
    if chosen == rejected:
        raise BadRow("chosen and rejected are equal")
    conversation = row.get("conversation_id")
    if not isinstance(conversation, str | int | None) or isinstance(conversation, bool):
        raise BadRow("conversation_id must be text or a whole number")
    split, part = row.get("split"), row.get("part")
    if split not in {"seen", "unseen", None} if isinstance(split, str | None) else True:
        raise BadRow("split must be seen or unseen")
    if part not in {*_PARTS, None} if isinstance(part, str | None) else True:
        raise BadRow("part must be train, support or query")
    if part is not None:
        implied = "seen" if part == "train" else "unseen"
        if split not in {None, implied}:
            raise BadRow(f"part {part} belongs to split {implied}")
        split = implied
    strength = row.get("strength")
    if isinstance(strength, bool) or not isinstance(strength, int | float | None):
        raise BadRow("strength must be a number")
    if strength is not None and not (0 < strength < math.inf and 0 < np.float32(min(strength, 1e300)) < np.inf):
        raise BadRow("strength must be above 0 and finite")
    return _Row(
        place=place,
        user=user_of(row["user_id"]),
        messages=prompt_of(row["prompt"]),
        chosen=chosen,
        rejected=rejected,
        conversation=None if conversation is None else unicode(str(conversation), "conversation_id"),
        split=split,
        part=None if part is None else _PARTS[part],
        strength=None if strength is None else float(strength),
    )


def _check_user(rows: list[_Row], bad: BadRows) -> None:
    """A user is seen or unseen in all rows, and has a part in all rows or in none."""
    first = rows[0]
    for row in rows[1:]:
        if row.split != first.split:
            bad.add(
                row.place, f"split differs from that of {first.place}, the same user: give one to all rows of a user"
            )
        elif first.split == "unseen" and (row.part is None) != (first.part is None):
            bad.add(row.place, f"part is given here or in {first.place}, the same user: give it in all rows or in none")


def _build(rows: list[_Row], by_user: dict[str, list[int]], seed: int) -> PreferenceData:
    rng = np.random.default_rng(seed)
    users = list(by_user)
    conversation_P = _number_conversations(rows)
    groups = {user: conversation_P[indices] for user, indices in by_user.items()}
    notes: list[str] = []

    open_users = [user for user in users if rows[by_user[user][0]].split is None]
    eligible = np.array([np.unique(groups[user]).size > 1 for user in open_users], np.bool_)
    drawn = dict(zip(open_users, choose_unseen(eligible, rng).tolist(), strict=True))
    if open_users:
        notes.append(
            f"{len(open_users)} users without a split: {sum(drawn.values())} drawn as unseen by seed {seed}, "
            f"the others are seen"
        )
    if single := int((~eligible).sum()):
        notes.append(f"{single} of them have only one conversation (or prompt): seen, as they cannot be divided")

    order: list[int] = []
    parts: list[int] = []
    left_out = incomplete = overlapping = 0
    for user in users:
        indices = np.array(by_user[user])
        given = [rows[index].part for index in by_user[user]]
        split = rows[by_user[user][0]].split or ("unseen" if drawn[user] else "seen")
        if split == "seen":
            chosen, part = indices, np.full(len(indices), TRAIN)
        elif given[0] is not None:
            chosen, part = indices, np.array(given)
            support, query = groups[user][part == SUPPORT], groups[user][part == QUERY]
            incomplete += not (support.size and query.size)
            overlapping += bool(np.intersect1d(support, query).size)
        elif np.unique(groups[user]).size > 1:
            support, query = split_conversations(groups[user], rng)
            chosen = indices[np.concatenate([support, query])]
            part = np.repeat([SUPPORT, QUERY], [len(support), len(query)])
        else:
            left_out += 1
            continue
        order += chosen.tolist()
        parts += part.tolist()
    for count, what in (
        (left_out, "unseen users left out: one conversation (or prompt) gives no support apart from the query"),
        (incomplete, "unseen users have support pairs only or query pairs only, as their rows say"),
        (overlapping, "unseen users share a conversation (or prompt) between support and query, as their rows say"),
    ):
        if count:
            notes.append(f"{count} {what}")

    texts = TextTable()
    # Side by side, so that the two texts of a pair mostly share a shard.
    sides = [
        (texts.row(Text(rows[i].messages, rows[i].chosen)), texts.row(Text(rows[i].messages, rows[i].rejected)))
        for i in order
    ]
    if not order:
        raise ConfigurationError("no user has enough conversations for any part: nothing to embed")
    position = {user: index for index, user in enumerate(users)}
    # where nobody says how strongly, all choices count the same; where some do, the others are no grade of 1
    plain = 1.0 if all(row.strength is None for row in rows) else math.nan
    table = PairTable.of(
        [position[rows[i].user] for i in order],
        parts,
        [chosen for chosen, _ in sides],
        [rejected for _, rejected in sides],
        [plain if (strength := rows[i].strength) is None else strength for i in order],
        [conversation_P[i] if rows[i].conversation is not None else NO_CONVERSATION for i in order],
    )
    return PreferenceData(texts.texts, texts.prompts(), users, {SPLIT_NAME: table}, None, notes)


def _number_conversations(rows: list[_Row]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """What must not be divided: a user's conversation, or the user's rows of one prompt where no id is given."""
    numbers: dict[tuple[str, str | Messages], int] = {}
    keys = [(row.user, row.messages if row.conversation is None else row.conversation) for row in rows]
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int32)
