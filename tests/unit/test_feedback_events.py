"""What a user was seen doing, as evidence: which comparison, how much it counts, and when it says nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from service.mrm import GaussianStart, Support, solve
from service.mrm.statements import ranking_stages, uniform_choice_noise
from service.operations.carry import statement_of
from service.operations.feedback_events import SOURCES, FeedbackEvent, FeedbackNoise, Source, issues_of, measure_event
from service.store.records import NewEvidence

NOISE = FeedbackNoise(
    {"chosen": 0.1, "regenerated": 0.25, "copied": 0.2, "edited": 0.15, "dwell": 0.35, "thumbs": 0.1}, alone=0.2
)
PHI_NK = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0], [0.5, 0.5, 0.5], [3.0, -1.0, 0.0]])
KEYS = [bytes([i]) * 32 for i in (7, 3, 5, 1)]


def event(source: Source, texts: int, *, favours: bool = True, **more: Any) -> FeedbackEvent:
    names = [f"text {i}" for i in range(texts)]
    return FeedbackEvent(source, [{"role": "user", "content": "p"}], names, favours, names, "events[0]", **more)


def evidence(of: FeedbackEvent, noise: FeedbackNoise = NOISE) -> list[NewEvidence]:
    """Of an event whose texts are the last of a request, in the order of their names."""
    places = [int(name.split()[1]) for name in of.completions]
    keys = [b"\xff" * 32, *(KEYS[place] for place in places)]
    phi_BK = np.array([np.full(3, 9.0), *PHI_NK[places]])
    found = measure_event(of, keys, phi_BK, 1, noise)
    for each in found:
        # What is retained of it is enough to measure it anew.
        anew = statement_of(each.evidence, phi_BK[list(each.texts)])
        np.testing.assert_array_equal(each.evidence.base_rewards, anew)
    return [each.evidence for each in found]


@pytest.mark.parametrize("favours", [True, False])
def test_two_texts_are_a_pair_with_the_noise_of_the_source(favours: bool) -> None:
    (pair,) = evidence(event("edited", 2, favours=favours))
    assert (pair.kind, pair.source) == ("pair", "edited")
    np.testing.assert_allclose(pair.base_rewards, (PHI_NK[0] - PHI_NK[1]) * (1 if favours else -1))
    assert (pair.weight, pair.tilt) == (pytest.approx(0.7), 0.0)


@pytest.mark.parametrize("favours", [True, False])
def test_a_text_alone_is_compared_with_the_average_and_counts_less(favours: bool) -> None:
    (order,) = evidence(event("copied", 1, favours=favours))
    rows_JK, _ = ranking_stages(order.base_rewards, order.ranks)
    np.testing.assert_allclose(rows_JK, [PHI_NK[0] if favours else -PHI_NK[0]])
    assert (order.weight, order.tilt) == (pytest.approx(0.6 * 0.6), 0.0)


def test_one_of_several_is_one_choice() -> None:
    (choice,) = evidence(event("chosen", 4))
    assert (choice.kind, choice.ranks) == ("ranking", (0, 1, 1, 1))
    assert (choice.weight, choice.tilt) == (pytest.approx(0.8), 0.0)


def test_against_one_of_several_all_others_together_count_as_one_answer() -> None:
    (choice,) = evidence(event("thumbs", 4, favours=False))
    rows_JK, stages_J = ranking_stages(choice.base_rewards, choice.ranks)
    np.testing.assert_allclose(sorted(rows_JK.tolist()), sorted((PHI_NK[1:] - PHI_NK[0]).tolist()))
    assert len(set(stages_J.tolist())) == 3
    assert 3 * choice.weight == pytest.approx(0.8)


def test_the_longer_read_is_preferred_the_more_surely_the_longer() -> None:
    def read(*seconds: float) -> list[NewEvidence]:
        return evidence(event("dwell", len(seconds), seconds=seconds))

    (longer,), (shorter,) = read(20.0, 5.0), read(5.0, 20.0)
    np.testing.assert_allclose(longer.base_rewards, PHI_NK[0] - PHI_NK[1])
    np.testing.assert_allclose(shorter.base_rewards, PHI_NK[1] - PHI_NK[0])
    assert longer.weight == shorter.weight == pytest.approx(0.3 * 15 / 25)
    weights = [read(1.0 + ratio, 1.0)[0].weight for ratio in (0.1, 1.0, 3.0, 100.0, 1e6)]
    assert weights == sorted(weights)
    assert weights[-1] == pytest.approx(0.3, rel=1e-4)
    assert read(0.0, 4.0)[0].weight == pytest.approx(0.3)
    # scale does not matter, and equal times are left out
    assert sorted(pair.weight for pair in read(8.0, 2.0, 8.0, 0.0)) == pytest.approx([longer.weight, 0.3])


@pytest.mark.parametrize("source", SOURCES)
def test_what_an_event_says_is_its_name(source: Source) -> None:
    more: dict[str, Any] = {"seconds": (1.0, 5.0, 9.0)} if source == "dwell" else {}
    said = event(source, 3, **more)
    ids = [each.evidence_id for each in evidence(said)]
    assert ids == [each.content_key.hex() for each in evidence(said)]
    assert len(set(ids)) == len(ids) == (2 if source == "dwell" else 1)
    seconds = (1.0, 9.0, 5.0) if source == "dwell" else None
    turned = dataclasses.replace(said, completions=["text 0", "text 2", "text 1"], seconds=seconds)
    again = evidence(turned)
    assert sorted(each.evidence_id for each in again) == sorted(ids), "the order of the others says nothing"
    other: Source = "copied" if source != "copied" else "thumbs"
    assert evidence(event(other, 3))[0].evidence_id not in ids, "another act is evidence of its own"
    if source != "dwell":
        assert evidence(dataclasses.replace(said, favours=False))[0].evidence_id not in ids


def test_a_named_event_names_its_evidence() -> None:
    assert [each.evidence_id for each in evidence(event("chosen", 3, id="e-1"))] == ["e-1"]
    times: dict[str, Any] = {"seconds": (1.0, 5.0, 9.0), "id": "e-2"}
    first = evidence(event("dwell", 3, **times))
    assert sorted(each.evidence_id for each in first) == ["e-2~1", "e-2~2"]
    turned = dataclasses.replace(
        event("dwell", 3, **times), completions=["text 0", "text 2", "text 1"], seconds=(1.0, 9.0, 5.0)
    )
    again = evidence(turned)
    assert {e.evidence_id: e.content_key for e in again} == {e.evidence_id: e.content_key for e in first}


def test_what_says_nothing_or_is_switched_off_is_refused_by_its_field() -> None:
    def fields(of: FeedbackEvent, noise: FeedbackNoise = NOISE) -> list[str]:
        return [issue.field for issue in issues_of(of, noise)]

    for source in SOURCES:
        assert fields(event(source, 2)) == []
        for off in ({}, {source: 0.5}, {source: 0.4999}):  # nothing, or next to nothing
            assert fields(event(source, 2), FeedbackNoise(off, 0.2)) == ["events[0].type"]
    assert fields(event("copied", 1), FeedbackNoise({"copied": 0.2}, 0.5)) == ["events[0].shown"]
    assert fields(event("copied", 2), FeedbackNoise({"copied": 0.2}, 0.5)) == []
    for seconds in ((0.0, 0.0), (7.0, 7.0, 7.0), (7.0, 7.01)):
        assert fields(event("dwell", len(seconds), seconds=seconds)) == ["events[0].seconds"]
    assert fields(event("dwell", 3, seconds=(7.0, 7.0, 8.0))) == []


def test_events_teach_more_when_their_noise_is_known() -> None:
    """Picks that are blind half of the time: counted for half they predict better than taken at their word.

    And better than with tilts, which are unbiased, but pull ever harder the surer the user is.
    """
    rng = np.random.default_rng(0)
    start = GaussianStart(np.zeros(8), np.eye(8))
    readings = {"counted half": (0.5, 0.0), "at their word": (1.0, 0.0), "tilted": uniform_choice_noise(0.5, 4)}
    losses: dict[str, list[float]] = {name: [] for name in readings}
    for _ in range(60):
        taste_K = rng.normal(size=8)
        rows: list[np.ndarray] = []
        for _ in range(10):
            phi_nK = rng.normal(size=(4, 8)) * 0.5
            blind = rng.random() < 0.5
            taken = rng.integers(4) if blind else int(np.argmax(phi_nK @ taste_K + rng.gumbel(size=4)))
            rows.extend(phi_nK[taken] - np.delete(phi_nK, taken, axis=0))
        asked_PK = rng.normal(size=(200, 8)) * 0.7
        truth_P = expit(asked_PK @ taste_K)
        for name, (weight, tilt) in readings.items():
            support = Support.of(
                rows, weights_P=[weight] * 30, tilts_P=[tilt] * 30, stages_P=np.repeat(np.arange(10), 3)
            )
            logits_P = asked_PK @ solve(support, start).weights_K
            losses[name].append(float((np.logaddexp(0.0, -logits_P) + (1.0 - truth_P) * logits_P).mean()))
    half, word, tilted = (np.mean(losses[name]) for name in readings)
    assert half < min(word, tilted) - 0.01
    assert half < np.log(2.0) - 0.01
