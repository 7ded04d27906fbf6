from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.datasets.jsonl import read_jsonl
from service.datasets.simulated import HELD_OUT_TOPICS, TRAINING_TOPICS, SimulatedPeople, simulate
from service.datasets.simulated_phrases import HELD_OUT, TRAINING, PhraseBank
from service.datasets.simulated_texts import Style, write_answer
from service.datasets.surface_features import AXES, raw_features, surface_features
from service.datasets.taste import population_taste, preference_probability
from service.errors import ConfigurationError


@pytest.fixture(scope="module")
def people() -> SimulatedPeople:
    return simulate(0, users=200, pairs_per_user=20, unseen_share=0.3, support_pairs=10, query_pairs=10)


def test_topics_are_many_well_formed_and_disjoint() -> None:
    topics = TRAINING_TOPICS + HELD_OUT_TOPICS
    assert len(topics) >= 60
    assert len({topic.name for topic in topics}) == len(topics)
    assert {topic.kind for topic in TRAINING_TOPICS} == {topic.kind for topic in HELD_OUT_TOPICS} == {"how-to", "facts"}
    for what in ("points", "examples"):
        said = [text for topic in topics for text in getattr(topic, what)]
        assert len(set(said)) == len(said)
        assert all(re.fullmatch(r"\w[^;.{}\n]*", text) for text in said), what
    assert all(len(topic.points) == 5 and len(topic.examples) == 2 for topic in topics)


def phrases(bank: PhraseBank) -> set[str]:
    lists = [
        *bank.questions.values(),
        *(frames for by_register in bank.frames.values() for frames in by_register.values()),
        *bank.hedged.values(),
        *bank.reasons.values(),
        (
            bank.hedge_tails,
            bank.openings,
            bank.asides,
            bank.closings,
            bank.example_leads,
            bank.examples,
            bank.list_openings,
            bank.bullets,
        ),
    ]
    flat = [phrase for group in lists[:-1] for phrase in group] + [phrase for group in lists[-1] for phrase in group]
    flat += [prefix for register in bank.prefixes.values() for prefix in register if prefix]
    flat += [word for register in bank.substitutions.values() for word in register.values()]
    return {phrase.lower() for phrase in flat} - {"{p}.", "{c}."}


def test_the_banks_share_no_phrase() -> None:
    training, held_out = phrases(TRAINING), phrases(HELD_OUT)
    assert len(training) > 60
    assert len(held_out) > 60
    assert not training & held_out


@pytest.mark.parametrize("bank", [TRAINING, HELD_OUT])
def test_each_phrase_shows_on_its_axis_and_on_no_other(bank: PhraseBank) -> None:
    point, axis = "water the soil", {name: index for index, name in enumerate(AXES)}

    def features(phrase: str) -> np.ndarray:
        return raw_features(phrase.format(p=point, P=point, c=point, C=point, e=point, t="roses", n=1))

    for by_register in bank.frames.values():
        for register, sign in (("casual", -1), ("neutral", 0), ("formal", 1)):
            for phrase in by_register[register]:
                found = features(phrase)
                assert np.sign(found[axis["formality"]]) == sign, phrase
                assert (found[2:][np.arange(2, 6) != axis["formality"]] == 0).all(), phrase
    groups = {
        "hedging": [p for hedged in bank.hedged.values() for p in hedged] + [point + tail for tail in bank.hedge_tails],
        "warmth": [*bank.openings, *bank.asides, *bank.closings],
        "examples": [*bank.example_leads, *bank.examples],
    }
    for name, group in groups.items():
        for phrase in group:
            found = features(phrase)
            assert found[axis[name]] > 0, phrase
            others = [other for other in ("formality", "hedging", "warmth", "examples") if other != name]
            assert [found[axis[other]] for other in others] == [0, 0, 0], phrase
    for reasons in bank.reasons.values():
        for phrase in reasons:
            assert (features(phrase)[2:] == 0).all(), phrase
    for bullet in bank.bullets:
        assert features(bullet + point)[axis["lists"]] == 1, bullet


@pytest.mark.parametrize(("topics", "bank"), [(TRAINING_TOPICS, TRAINING), (HELD_OUT_TOPICS, HELD_OUT)])
def test_every_knob_moves_its_feature(topics: tuple, bank: PhraseBank) -> None:
    def mean(style: Style) -> np.ndarray:
        rng = np.random.default_rng(0)
        return np.mean(
            [surface_features(write_answer(topic, style, bank, rng)) for topic in topics for _ in range(3)], 0
        )

    plain = Style(length=1, lists=False, register="neutral", register_share=1.0, hedging=0.0, warmth=0, examples=0)
    turned = {
        "length": {"length": 3},
        "lists": {"lists": True},
        "formality": {"register": "formal"},
        "hedging": {"hedging": 1.0},
        "warmth": {"warmth": 2},
        "examples": {"examples": 2},
    }
    base = mean(plain)
    for index, name in enumerate(AXES):
        moved = mean(Style(**(plain.__dict__ | turned[name]))) - base
        assert moved[index] > 1.0, (name, moved)
    assert mean(Style(**(plain.__dict__ | {"register": "casual"})))[2] < base[2] - 1.0


def test_features_of_texts_from_elsewhere() -> None:
    assert np.isfinite(surface_features("")).all()
    assert np.isfinite(surface_features("🌅 \n\n 你好")).all()
    assert raw_features("- one\n2) two\nthree\n* four")[1] == 0.75
    assert raw_features("I don\u2019t know.")[2] == raw_features("I don't know.")[2] < 0
    assert raw_features("Maybe.")[3] > raw_features("Maybe. It rains. It snows.")[3] > 0


def test_simulated_features_have_about_unit_scale(people: SimulatedPeople) -> None:
    features = np.array([surface_features(completion) for _, completion in people.texts])
    assert np.abs(features.mean(0)).max() < 0.3
    assert (np.abs(features.std(0) - 1) < 0.2).all()


def test_the_noise_is_in_the_stated_band(people: SimulatedPeople) -> None:
    assert people.accuracy() == pytest.approx(0.85, abs=0.015)
    assert 0.60 <= people.accuracy(population_taste()) <= 0.65
    for part in ("train", "support", "query"):
        assert people.accuracy(part=part) == pytest.approx(0.85, abs=0.025)


def test_choices_follow_bradley_terry_on_the_true_utility(people: SimulatedPeople) -> None:
    """Expected accuracy, from the probabilities alone, is the observed one: nothing but the stated noise was added."""
    margins = np.array(
        [
            people.true_utility(pair.user_id, pair.chosen) - people.true_utility(pair.user_id, pair.rejected)
            for pair in people.pairs
        ]
    )
    sure = 1 / (1 + np.exp(-np.abs(margins)))
    assert (margins > 0).mean() == pytest.approx(
        sure.mean(), abs=4 * np.sqrt((sure * (1 - sure)).mean() / len(margins))
    )
    assert preference_probability(2.0, -1.0) == pytest.approx(1 / (1 + np.exp(-3)))
    assert preference_probability(-800.0, 0.0) == pytest.approx(0.0)


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
    assert counts == {"train": 140 * 20, "support": 60 * 10, "query": 60 * 10}


def test_people_differ_from_each_other(people: SimulatedPeople) -> None:
    tastes = np.array([person.taste for person in people.people])
    assert (tastes.std(0) > 0.6).all()
    np.testing.assert_allclose(tastes.mean(0), population_taste(), atol=4 * tastes.std(0).max() / np.sqrt(len(tastes)))
    correlation = np.corrcoef(tastes.T)
    assert correlation[AXES.index("formality"), AXES.index("warmth")] < -0.15
    assert correlation[AXES.index("length"), AXES.index("examples")] > 0.15


PRINT_DIGEST = """
import hashlib, json
from service.datasets.simulated import simulate
people = simulate(7, users=6, pairs_per_user=9, answers_per_prompt=3, support_pairs=4, query_pairs=4)
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
    """The demo checkpoint is trained on these rows: what changes them changes it."""
    people = simulate(0, users=4, pairs_per_user=3, support_pairs=2, query_pairs=2)
    rows = json.dumps([pair.as_row() for pair in people.pairs], ensure_ascii=False)
    assert hashlib.sha256(rows.encode()).hexdigest() == RECORDED


RECORDED = "34ad8baf7d2a37513f9daaa594b53d453f99d1cb33d9ebab66c05cb9aaab7fb5"


def test_more_people_see_the_same_texts() -> None:
    few = simulate(5, users=4, pairs_per_user=2, support_pairs=1, query_pairs=1, answers_per_prompt=2)
    more = simulate(5, users=9, pairs_per_user=2, support_pairs=1, query_pairs=1, answers_per_prompt=2)
    assert few.prompts == more.prompts
    assert simulate(6, users=4, pairs_per_user=2, answers_per_prompt=2).prompts != few.prompts


def test_what_is_written_is_read_as_it_is(tmp_path: Path) -> None:
    people = simulate(1, users=8, pairs_per_user=5, support_pairs=3, query_pairs=4, answers_per_prompt=3)
    people.write(tmp_path / "people.jsonl", tmp_path / "people.json")
    data = read_jsonl(tmp_path / "people.jsonl", seed=0)
    assert data.notes == []
    table = data.splits["default"]
    assert (len(table.seen()), len(table.support()), len(table.query())) == (6 * 5, 2 * 3, 2 * 4)
    rows = zip(table.user_P, table.chosen_P, table.rejected_P, strict=True)
    found = [(data.users[u], data.texts[c].completion, data.texts[r].completion) for u, c, r in rows]
    assert found == [(pair.user_id, pair.chosen, pair.rejected) for pair in people.pairs]
    written = json.loads((tmp_path / "people.json").read_text())
    assert {person["id"]: person["taste"] for person in written["people"]} == {
        person.id: person.taste.tolist() for person in people.people
    }


@pytest.mark.parametrize(
    "numbers",
    [{"users": 1}, {"pairs_per_user": 0}, {"unseen_share": 1.0}, {"answers_per_prompt": 1}, {"query_pairs": 0}],
)
def test_impossible_numbers_are_named(numbers: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(numbers))):
        simulate(0, **numbers)  # type: ignore[arg-type]
