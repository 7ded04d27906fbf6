from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from service.cli import app
from service.datasets.jsonl import read_jsonl
from service.datasets.simulated import SimulatedPeople, Sizes, simulate
from service.datasets.simulated_choices import (
    Behaviour,
    RatingScale,
    perceived_difference,
    scale_for_consistency,
    sigmoid,
)
from service.datasets.simulated_prompts import TRAINING_TOPICS
from service.datasets.surface_features import AXES, surface_features
from service.errors import ConfigurationError

MIDDLING = Sizes(
    users=240, unseen_share=0.3, pairs=30, support_pairs=15, query_pairs=15, prompts=96, new_prompts=48, answers=8
)
TINY = Sizes(users=8, pairs=5, support_pairs=3, query_pairs=4, prompts=12, new_prompts=6, answers=3)


@pytest.fixture(scope="module")
def people() -> SimulatedPeople:
    return simulate(0, MIDDLING)


def margins(people: SimulatedPeople) -> np.ndarray:
    tastes = np.array([people.person[pair.user_id].taste for pair in people.pairs])
    return np.asarray((tastes * people.differences).sum(1))


def test_simulated_features_have_about_unit_scale(people: SimulatedPeople) -> None:
    features = np.array([surface_features(completion) for _, completion in people.texts])
    assert np.abs(features.mean(0)).max() < 0.3
    assert (np.abs(features.std(0) - 1) < 0.2).all()


@pytest.mark.parametrize("kinds", [True, False])
def test_the_noise_is_as_asked_and_the_mean_taste_in_the_stated_band(people: SimulatedPeople, kinds: bool) -> None:
    """Standard errors: 0.4 points for the pairs, about 1.5 points for the people behind the mean taste."""
    found = people if kinds else simulate(0, MIDDLING, Behaviour(kinds=False))
    assert found.accuracy() == pytest.approx(0.85, abs=0.015)
    for part in ("train", "support", "query"):
        assert found.accuracy(part=part) == pytest.approx(0.85, abs=0.03)
    assert 0.60 <= found.accuracy(found.population_taste) <= 0.65


def test_choices_follow_bradley_terry_on_the_true_utility(people: SimulatedPeople) -> None:
    """Expected accuracy, from the probabilities alone, is the observed one: nothing but the stated noise was added."""
    margin_P = margins(people)
    pair = people.pairs[7]
    utilities = [people.true_utility(pair.user_id, text) for text in (pair.chosen, pair.rejected)]
    assert utilities[0] - utilities[1] == pytest.approx(margin_P[7])
    sure_P = sigmoid(np.abs(margin_P))
    assert sure_P.mean() == pytest.approx(0.85, abs=1e-3)
    for low, high in ((0.5, 0.7), (0.7, 0.9), (0.9, 1.0)):
        group = (sure_P >= low) & (sure_P < high)
        error = np.sqrt((sure_P * (1 - sure_P))[group].mean() / group.sum())
        assert (margin_P[group] > 0).mean() == pytest.approx(sure_P[group].mean(), abs=4 * error)


def test_a_person_s_choices_give_the_true_taste_back() -> None:
    """Ridge logistic regression on the true features: 14 numbers from 600 choices."""
    sizes = dataclasses.replace(TINY, users=4, pairs=600, prompts=300, answers=4)
    people = simulate(3, sizes, Behaviour(contrarians=0.0))
    for person in people.people:
        if not person.id.startswith("seen"):
            continue
        x = people.differences[[pair.user_id == person.id for pair in people.pairs]]
        taste = np.zeros(len(AXES))
        for _ in range(20):
            p = sigmoid(x @ taste)
            hessian = (x * (p * (1 - p))[:, None]).T @ x + np.eye(len(AXES))
            taste += np.linalg.solve(hessian, x.T @ (1 - p) - taste)
        assert np.corrcoef(taste, person.taste)[0, 1] > 0.9
        assert np.abs(taste - person.taste).max() < 0.4 * np.abs(person.taste).max()


def test_contrarians_and_the_more_decided_are_there(people: SimulatedPeople) -> None:
    contrarian = [person for person in people.people if person.contrarian]
    assert 3 <= len(contrarian) <= 25
    against_P = np.array([people.person[pair.user_id].contrarian for pair in people.pairs])
    as_population_P = people.differences @ people.population_taste > 0
    assert as_population_P[against_P].mean() < 0.45
    assert as_population_P[~against_P].mean() > 0.60
    decided_P = np.array([people.person[pair.user_id].decided for pair in people.pairs])
    hit_P = margins(people) > 0
    assert hit_P[decided_P > 1.2].mean() > hit_P[decided_P < 0.8].mean() + 0.03


def test_lapses_spare_no_choice_however_clear() -> None:
    people = simulate(0, MIDDLING, Behaviour(consistency=0.8, lapse=0.2))
    assert people.accuracy() == pytest.approx(0.8, abs=0.015)
    margin_P = margins(people)
    clear_P = np.abs(margin_P) > 6
    assert clear_P.sum() > 300
    assert (margin_P[clear_P] < 0).mean() == pytest.approx(0.1, abs=4 * 0.3 / np.sqrt(clear_P.sum()))


def test_grades_tell_how_sure_a_choice_is_and_change_none(people: SimulatedPeople) -> None:
    graded = simulate(0, MIDDLING, Behaviour(graded=True))
    assert [dataclasses.replace(pair, strength=None) for pair in graded.pairs] == list(people.pairs)
    margin_P = margins(graded)
    strength_P = np.array([pair.strength for pair in graded.pairs])
    points_P = np.array([graded.person[pair.user_id].scale.points for pair in graded.pairs])
    assert set(points_P) == {10, 100}
    assert (strength_P == np.round(strength_P)).all()
    assert (strength_P >= 1).all()
    assert (strength_P < points_P).all()
    for points in (10, 100):
        mine = points_P == points
        assert np.corrcoef(strength_P[mine], margin_P[mine])[0, 1] > 0.4
        assert len(set(strength_P[mine])) > 0.5 * points
    assert len({person.scale.gain for person in graded.people}) == len(graded.people)
    scale = RatingScale(points=10, gain=2.0)
    assert [scale.strength(z) for z in (0.0, -1.6, 2.0, 99.0)] == [1.0, 3.0, 4.0, 9.0]


def test_the_scale_of_tastes_solves_its_equation() -> None:
    ones = np.ones(7)
    assert scale_for_consistency(ones, Behaviour()) == pytest.approx(np.log(0.85 / 0.15), rel=1e-5)
    lapsing = Behaviour(consistency=0.8, lapse=0.1)  # 0.9 p + 0.05 = 0.8
    assert scale_for_consistency(-3 * ones, lapsing) == pytest.approx(np.log(5) / 3, rel=1e-5)
    with pytest.raises(ConfigurationError, match="out of reach"):
        scale_for_consistency(np.array([0.0, 0.0, 1.0]), Behaviour())


def test_perceived_differences_are_logistic() -> None:
    rng = np.random.default_rng(0)
    found = np.array([perceived_difference(1.0, 0.0, rng) for _ in range(20_000)])
    for at in (-1.0, 0.0, 2.5):
        assert (found > at).mean() == pytest.approx(1 / (1 + np.exp(at - 1.0)), abs=0.015)
    lapsed = np.array([perceived_difference(50.0, 0.25, rng) for _ in range(20_000)])
    assert (lapsed < 25).mean() == pytest.approx(0.25, abs=0.015)


def test_unseen_people_judge_other_texts(people: SimulatedPeople) -> None:
    training = {topic.name for topic in TRAINING_TOPICS}
    topic_of = {prompt.question: prompt.topic for prompt in people.prompts}
    texts: dict[str, set[str]] = {"train": set(), "support": set(), "query": set()}
    topics: dict[tuple[str, str], set[str]] = {}
    for pair in people.pairs:
        assert (pair.split == "seen") == (pair.part == "train") == (topic_of[pair.prompt] in training)
        texts[pair.part] |= {pair.chosen, pair.rejected}
        topics.setdefault((pair.user_id, pair.part), set()).add(topic_of[pair.prompt])
    assert not texts["train"] & (texts["support"] | texts["query"])
    for person in people.people:
        if person.id.startswith("unseen"):
            assert not topics[person.id, "support"] & topics[person.id, "query"]
    counts = {part: sum(pair.part == part for pair in people.pairs) for part in texts}
    assert counts == {"train": 168 * 30, "support": 72 * 15, "query": 72 * 15}


PRINT_DIGEST = """
import hashlib, json
from service.datasets.simulated import Sizes, simulate
from service.datasets.simulated_choices import Behaviour
sizes = Sizes(users=6, pairs=9, answers=3, support_pairs=4, query_pairs=4, prompts=20, new_prompts=10)
people = simulate(7, sizes, Behaviour(graded=True, lapse=0.05))
rows = json.dumps([[pair.as_row() for pair in people.pairs], people.as_json()])
print(hashlib.sha256(rows.encode()).hexdigest())
"""


def test_the_seed_decides_everything_whatever_the_hash_order() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", PRINT_DIGEST],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[2],
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1
    assert digests != {hashlib.sha256(b"").hexdigest()}


def test_a_seed_gives_the_recorded_choices() -> None:
    """The demo checkpoint is trained on such rows: what changes them changes it."""
    rows = json.dumps([pair.as_row() for pair in simulate(0, TINY).pairs], ensure_ascii=False)
    assert hashlib.sha256(rows.encode()).hexdigest() == RECORDED


RECORDED = "60fd785710741be03939249579ef40465b9b1a3e28b6f6b3e3526ff36669109e"


def test_more_people_see_the_same_texts() -> None:
    few, more = (simulate(5, dataclasses.replace(TINY, users=users)) for users in (4, 9))
    assert few.prompts == more.prompts
    assert simulate(6, TINY).prompts != few.prompts


def test_what_is_written_is_read_as_it_is(tmp_path: Path) -> None:
    people = simulate(1, TINY, Behaviour(graded=True))
    people.write(tmp_path / "people.jsonl", tmp_path / "people.json")
    data = read_jsonl(tmp_path / "people.jsonl", seed=0)
    assert data.notes == []
    table = data.splits["default"]
    assert (len(table.seen()), len(table.support()), len(table.query())) == (6 * 5, 2 * 3, 2 * 4)
    rows = zip(table.user_P, table.chosen_P, table.rejected_P, table.strength_P, strict=True)
    found = [(data.users[u], data.texts[c].completion, data.texts[r].completion, s) for u, c, r, s in rows]
    assert found == [(pair.user_id, pair.chosen, pair.rejected, pair.strength) for pair in people.pairs]
    written = json.loads((tmp_path / "people.json").read_text())
    assert {person["id"]: person["taste"] for person in written["people"]} == {
        person.id: person.taste.tolist() for person in people.people
    }
    assert written["behaviour"]["consistency"] == 0.85


def test_the_command_writes_what_it_was_asked_for(tmp_path: Path) -> None:
    sizes = ("--users", "8", "--pairs", "5", "--support-pairs", "3", "--query-pairs", "4", "--answers", "3")
    sizes += ("--prompts", "12", "--new-prompts", "6")
    done = CliRunner().invoke(app, ["simulate", *sizes, "--seed", "1", "--output", str(tmp_path / "a.jsonl")])
    assert done.exit_code == 0, done.output
    assert "the true taste predicts" in done.output
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert rows == [pair.as_row() for pair in simulate(1, TINY).pairs]
    assert "strength" not in rows[0]
    options = ("--graded", "--no-kinds", "--lapse", "0.1", "--consistency", "0.75", "--contrarians", "0.2")
    done = CliRunner().invoke(app, ["simulate", *sizes, *options, "--output", str(tmp_path / "b.jsonl")])
    assert done.exit_code == 0, done.output
    written = json.loads((tmp_path / "b.people.json").read_text())
    assert written["behaviour"] == {
        "kinds": False,
        "graded": True,
        "lapse": 0.1,
        "consistency": 0.75,
        "contrarians": 0.2,
        "decided_spread": 0.3,
        "drift": "none",
    }
    assert {person["kind"] for person in written["people"]} == {"gaussian"}


@pytest.mark.parametrize(
    "numbers", [{"users": 1}, {"pairs": 0}, {"unseen_share": 1.0}, {"answers": 1}, {"query_pairs": 0}]
)
def test_impossible_numbers_are_named(numbers: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(numbers))):
        Sizes(**numbers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "numbers", [{"consistency": 0.5}, {"lapse": -0.1}, {"contrarians": 0.5}, {"decided_spread": 9}]
)
def test_impossible_behaviour_is_named(numbers: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(numbers))):
        Behaviour(**numbers)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="consistency"):
        Behaviour(consistency=0.9, lapse=0.3)
