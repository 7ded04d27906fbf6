"""Rows of candidates, scored lines, and pairs of them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from service.datasets.best_worst import Pairing, pairs_of
from service.datasets.candidates import (
    SCORED_FIELDS,
    CandidateRules,
    Candidates,
    Rejected,
    ScoredRow,
    read_candidates,
    read_scored,
    scored_line,
)
from service.datasets.json_rows import BadRow
from service.datasets.line_source import LineSource

RULES = CandidateRules(max_completions=3, max_text_bytes=20, user_id=(re.compile("[a-z]+"), "letters"))
SCORES = dict.fromkeys(SCORED_FIELDS)
CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]


def read(tmp_path: Path, *rows: Any, rules: CandidateRules = RULES) -> list[Candidates | Rejected]:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    with LineSource("--input", tmp_path / "rows.jsonl", max_bytes=1000) as source:
        return list(read_candidates(source, rules))


def row(**fields: Any) -> dict[str, Any]:
    return {"prompt": "p", "completions": ["a", "b"], **fields}


def test_fields_are_carried_as_they_are_and_scores_are_new(tmp_path: Path) -> None:
    extra = {"id": 2**70, "tags": ["é", {"deep": None}], "x": 0.1}
    made = read(tmp_path, row(**extra, user_id="ada", rewards=[9, 9], version=3), row(user_id=None, prompt=CHAT))
    first, second = (each for each in made if isinstance(each, Candidates))
    assert (first.messages, first.completions, first.user_id) == ((("user", "p"),), ("a", "b"), "ada")
    assert (second.messages, second.user_id) == ((("system", "s"), ("user", "p")), None)
    line = scored_line(first.carried, {**SCORES, "rewards": [0.5, -0.5], "user_id": "bob"})
    assert line.endswith(b"\n")
    assert json.loads(line) == {**row(**extra), **SCORES, "rewards": [0.5, -0.5], "user_id": "bob"}
    bare = CandidateRules(max_completions=3, max_text_bytes=20, drop_texts=True)
    for fields, left in (({"id": 7}, {"id": 7}), ({}, {})):
        (only,) = read(tmp_path, row(**fields), rules=bare)
        assert isinstance(only, Candidates)
        assert json.loads(scored_line(only.carried, SCORES)) == {**left, **SCORES}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"[1]", "not a JSON object"),
        (b'{"prompt": "p", "completions": ["a"], "x": NaN}', "NaN and Infinity are no JSON"),
        (b'{"prompt": "p", "completions": ["a"], "x": -1e999}', "a number is larger than 64 bits can hold"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b'{"prompt": "p", "completions": ["a"], "x": "\\ud800"}', "half of a surrogate pair"),
        (b'{"prompt": "p", "completions": ["a' + b"a" * 1000 + b'"]}', "longer than MAX_BODY_BYTES"),
        ({"completions": ["a"]}, "prompt is missing"),
        ({"prompt": "p"}, "completions is missing"),
        (row(prompt=" "), "prompt must not be empty"),
        (row(prompt=[*CHAT, {"role": "assistant", "content": "x"}]), "must be the user's"),
        (row(prompt=[*reversed(CHAT), CHAT[1]]), "prompt[1] is a system message that is not the first"),
        (row(prompt="é" * 11), "prompt has 22 bytes, at most 20"),
        (row(completions=[]), "at least one"),
        (row(completions=["a"] * 4), "completions are 4, at most 3"),
        (row(completions=["a", 7]), "completions[1] must be text"),
        (row(completions=["a", "b" * 21]), "completions[1] has 21 bytes"),
        (row(user_id="No one"), "user_id must be letters"),
        (row(user_id=True), "user_id must be text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_row_is_set_aside_with_its_reason(tmp_path: Path, bad: Any, reason: str) -> None:
    before, rejected, after = read(tmp_path, row(), bad, row())
    assert isinstance(rejected, Rejected)
    assert isinstance(before, Candidates)
    assert isinstance(after, Candidates)
    assert reason in rejected.reason
    assert before.mark.bytes < rejected.mark.bytes < after.mark.bytes
    told = json.loads(rejected.as_line())
    assert (told["line"], told["reason"]) == (2, rejected.reason)
    assert told["row"].startswith(("{", "["))


def scored(*rewards: float, **fields: Any) -> ScoredRow:
    texts = [chr(ord("a") + i) for i in range(len(rewards))]
    return ScoredRow(
        **{"prompt": "p", "completions": texts, "rewards": list(rewards), "user_id": "u", "id": 7, **fields}
    )


def test_the_best_stands_against_the_worst() -> None:
    (pair,) = pairs_of(scored(0.5, -1.0, 2.0, 0.0), Pairing())
    assert pair == {
        "id": 7,
        "prompt": "p",
        "chosen": "c",
        "rejected": "b",
        "user_id": "u",
        "chosen_reward": 2.0,
        "rejected_reward": -1.0,
        "margin": 3.0,
        "probability": pytest.approx(1 / (1 + math.exp(-3.0))),
    }
    several = list(pairs_of(scored(0.5, -1.0, 2.0, 0.0, 0.1), Pairing(per_prompt=9)))
    assert [(each["chosen"], each["rejected"]) for each in several if each] == [("c", "b"), ("a", "d")]
    (unnamed,) = pairs_of(scored(1.0, 0.0, id=None, user_id=None), Pairing())
    assert unnamed is not None
    assert ("id" in unnamed, unnamed["user_id"]) == (False, None)


def test_near_ties_and_equal_completions_make_no_pair() -> None:
    assert list(pairs_of(scored(1.0), Pairing())) == []
    assert list(pairs_of(scored(1.0, 1.0), Pairing())) == [None]
    assert list(pairs_of(scored(1.0, 0.0, completions=["a", "a"]), Pairing())) == []
    for pairing, kept in (
        (Pairing(min_margin=1.0), True),
        (Pairing(min_margin=1.01), False),
        (Pairing(min_probability=0.73), True),
        (Pairing(min_probability=0.74), False),
    ):
        assert [pair is not None for pair in pairs_of(scored(1.0, 0.0), pairing)] == [kept]


def test_messages_make_messages() -> None:
    (pair,) = pairs_of(scored(1.0, 0.0, prompt=CHAT), Pairing())
    assert pair is not None
    assert pair["prompt"] == CHAT
    assert pair["chosen"] == [{"role": "assistant", "content": "a"}]
    (made,) = pairs_of(scored(1.0, 0.0), Pairing(conversational=True))
    assert made is not None
    assert (made["prompt"], made["rejected"]) == ([CHAT[1]], [{"role": "assistant", "content": "b"}])


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"prompt": "p", "completions": ["a"]}, "rewards is missing: give what `metareward score` wrote"),
        ({"rewards": [1.0], "id": 1}, "prompt is missing: score without --drop-texts"),
        ({"prompt": "p", "completions": ["a"], "rewards": [1.0, 2.0]}, "one for each completion"),
        ({"prompt": "p", "completions": ["a"], "rewards": [None]}, "rewards must be numbers"),
        ({"prompt": "p", "completions": ["a"], "rewards": [10**400]}, "rewards must be finite"),
    ],
    ids=["unscored", "dropped", "short", "null", "huge"],
)
def test_what_was_not_scored_is_refused_by_line(tmp_path: Path, bad: Any, reason: str) -> None:
    good = {"prompt": "p", "completions": ["a"], "rewards": [1.0]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(good)}\n\n{json.dumps(bad)}\n")
    with LineSource("--input", tmp_path / "rows.jsonl", max_bytes=1000) as source, pytest.raises(BadRow) as refused:
        list(read_scored(source))
    assert str(refused.value).startswith("line 3: ")
    assert reason in str(refused.value)
