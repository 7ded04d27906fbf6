"""Stored statements as the solver sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.mrm import Support
from service.mrm.state import FloatArray, IntArray
from service.mrm.statements import half_life_weights, ranking_stages, rating_groups
from service.mrm.suggest import among
from service.store.records import StoredEvidence


def support_of(stored: Sequence[StoredEvidence], heads: int, half_life_s: float | None = None) -> Support:
    """The support of stored statements: rows of pairs and rankings in the order given, then ratings in theirs.

    A function of the set, up to the order of its rows: of ratings those of one group are compared, those alone in
    theirs with each other (`rating_groups`). Without what `outright_first` leaves out.

    Args:
        stored: Statements under the same heads.
        heads: K.
        half_life_s: The age in seconds, relative to the newest statement, at which one counts half; None: all count
            alike.
    """
    return support_and_ages(stored, heads, half_life_s)[0]


def support_and_ages(
    stored: Sequence[StoredEvidence], heads: int, half_life_s: float | None = None
) -> tuple[Support, FloatArray, FloatArray]:
    """`support_of`, and the seconds before the newest statement of its rows [P] and of its ratings [R]."""
    said = outright_first(stored)
    choices, ratings = _parted(said)
    diffs_PK, stages_P, lengths = _rows(choices, heads)
    ages_P, ages_R = _ages(said)
    grades = [np.nan if each.kind == "ranking" or each.grade is None else each.grade for each in choices]
    support = Support.of(
        diffs_PK,
        np.repeat(np.array(grades, dtype=np.float64), lengths),
        np.array([each.base_rewards for each in ratings]).reshape(len(ratings), heads),
        np.array([each.grade for each in ratings], dtype=np.float64),
        rating_groups([each.group for each in ratings]),
        weights_P=np.repeat(np.array([each.weight for each in choices]), lengths)
        * half_life_weights(ages_P, half_life_s),
        tilts_P=np.repeat(np.array([each.tilt for each in choices]), lengths),
        stages_P=stages_P,
        weights_R=np.array([each.weight for each in ratings]) * half_life_weights(ages_R, half_life_s),
    )
    return support, ages_P, ages_R


def _ages(stored: Sequence[StoredEvidence]) -> tuple[FloatArray, FloatArray]:
    choices, ratings = _parted(stored)
    newest = max((each.event_time for each in stored), default=None)
    ages_C, ages_R = (
        np.array([(newest - each.event_time).total_seconds() for each in part] if newest else [], dtype=np.float64)
        for part in (choices, ratings)
    )
    return np.repeat(ages_C, [1 if each.ranks is None else _compared(each.ranks) for each in choices]), ages_R


def outright_first(stored: Sequence[StoredEvidence]) -> Sequence[StoredEvidence]:
    """`stored` without the events that compare nothing but what the user has compared outright.

    What somebody said of two texts is not outvoted by any number of their clicks on these.
    """
    events = [each for each in stored if each.source is not None and each.kind != "rating"]
    if not events or len(events) == len(stored):
        return stored
    heads = events[0].base_rewards.shape[-1]
    outright_PK, _, _ = _rows([each for each in stored if each.source is None and each.kind != "rating"], heads)
    if not len(outright_PK):
        return stored
    rows_JK, _, lengths = _rows(events, heads)
    known_J = among(rows_JK, outright_PK)
    ends = np.cumsum(lengths)
    doubled = {
        id(each) for each, end, length in zip(events, ends, lengths, strict=True) if known_J[end - length : end].all()
    }
    return [each for each in stored if id(each) not in doubled]


def _parted(stored: Sequence[StoredEvidence]) -> tuple[list[StoredEvidence], list[StoredEvidence]]:
    """Choices, and ratings."""
    return [each for each in stored if each.kind != "rating"], [each for each in stored if each.kind == "rating"]


def _rows(choices: Sequence[StoredEvidence], heads: int) -> tuple[FloatArray, IntArray, list[int]]:
    """Differences [P, K], stages [P], and how many rows each choice has."""
    diffs: list[FloatArray] = []
    stages: list[int] = []
    lengths: list[int] = []
    next_stage = 0
    for each in choices:
        if each.ranks is None:
            diffs.append(each.base_rewards)
            stages.append(next_stage)
            lengths.append(1)
            next_stage += 1
        else:
            diffs_JK, stage_J = ranking_stages(each.base_rewards, each.ranks)
            diffs += list(diffs_JK)
            stages += (next_stage + stage_J).tolist()
            lengths.append(len(stage_J))
            next_stage += int(stage_J.max(initial=-1)) + 1
    return np.array(diffs).reshape(len(diffs), heads), np.array(stages, dtype=np.int64), lengths


def _compared(ranks: Sequence[int]) -> int:
    """How many pairs of a ranking's texts are not tied: its rows."""
    _, count_T = np.unique(ranks, return_counts=True)
    return int(len(ranks) ** 2 - (count_T**2).sum()) // 2
