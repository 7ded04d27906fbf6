"""Simulated people whose taste changes: the truth that they answer from at each of their pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from service.cli import app
from service.datasets.simulated import SimulatedPeople, Sizes, simulate
from service.datasets.simulated_choices import Behaviour
from service.datasets.simulated_drift import EARLIEST, LATEST, Drift

SIZES = Sizes(
    users=60, unseen_share=0.8, pairs=5, support_pairs=60, query_pairs=60, prompts=24, new_prompts=24, answers=8
)


@pytest.fixture(scope="module", params=[Drift.SLOW, Drift.SWITCH])
def people(request: pytest.FixtureRequest) -> SimulatedPeople:
    return simulate(0, SIZES, Behaviour(drift=request.param))


def share_predicted(people: SimulatedPeople, early: bool, by_first_taste: bool) -> float:
    """Share of the unseen people's first or last quarter of support pairs that their first or last taste predicts."""
    hits = []
    for pair, difference in zip(people.pairs, people.differences, strict=True):
        if pair.part == "support" and (pair.time < 0.25 if early else pair.time > 0.85):
            person = people.person[pair.user_id]
            assert person.change is not None
            taste = person.change.first_taste if by_first_taste else person.taste
            hits.append(taste @ difference > 0)
    return float(np.mean(hits))


def test_support_pairs_follow_the_taste_of_their_time(people: SimulatedPeople) -> None:
    assert people.accuracy() == pytest.approx(0.85, abs=0.02)  # 3,000 pairs: standard error 0.7 points
    assert share_predicted(people, early=True, by_first_taste=True) > 0.8
    assert share_predicted(people, early=False, by_first_taste=False) > 0.8
    # another's taste
    assert share_predicted(people, early=True, by_first_taste=False) < 0.7
    assert share_predicted(people, early=False, by_first_taste=True) < 0.7


def test_queries_follow_the_last_taste_and_seen_people_do_not_change(people: SimulatedPeople) -> None:
    queries = [pair for pair in people.pairs if pair.part == "query"]
    assert {pair.time for pair in queries} == {1.0}
    assert people.accuracy(part="query") == pytest.approx(0.85, abs=0.03)
    for person in people.people:
        assert (person.change is None) == person.id.startswith("seen")


def test_a_switch_has_its_moment_and_a_slow_change_has_a_middle(people: SimulatedPeople) -> None:
    for person in people.people:
        if person.change is None:
            continue
        first = person.change.first_taste
        np.testing.assert_array_equal(person.taste_at(0.0), first)
        np.testing.assert_array_equal(person.taste_at(1.0), person.taste)
        moment = person.change.moment
        if moment is None:
            np.testing.assert_allclose(person.taste_at(0.5), (first + person.taste) / 2)
        else:
            assert EARLIEST <= moment <= LATEST
            np.testing.assert_array_equal(person.taste_at(moment - 1e-9), first)
            np.testing.assert_array_equal(person.taste_at(moment), person.taste)


def test_people_who_do_not_change_are_those_of_before() -> None:
    steady, changing = simulate(3, SIZES), simulate(3, SIZES, Behaviour(drift=Drift.SWITCH))
    assert [person.kind for person in steady.people] == [person.kind for person in changing.people]
    assert [(pair.prompt, {pair.chosen, pair.rejected}) for pair in steady.pairs] == [
        (pair.prompt, {pair.chosen, pair.rejected}) for pair in changing.pairs
    ]
    assert all("change" not in person.as_json() for person in steady.people)


def test_the_command_makes_them(tmp_path: Path) -> None:
    sizes = ("--users", "8", "--pairs", "5", "--support-pairs", "3", "--query-pairs", "4", "--answers", "3")
    sizes += ("--prompts", "12", "--new-prompts", "6", "--drift", "switch")
    done = CliRunner().invoke(app, ["simulate", *sizes, "--output", str(tmp_path / "a.jsonl")])
    assert done.exit_code == 0, done.output
    assert "time" not in json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    written = json.loads((tmp_path / "a.people.json").read_text())
    assert written["behaviour"]["drift"] == "switch"
    assert {len(person["change"]["first_taste"]) for person in written["people"] if "change" in person} == {14}
