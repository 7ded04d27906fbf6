"""examples/best_of_n.py, small: its arithmetic beside plain loops, and the whole of it on a server."""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from metareward_client import Client

from benchmarks.server import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

from best_of_n_study import worlds  # noqa: E402
from best_of_n_study.answers import Sampling, kept, whole_sentences  # noqa: E402
from best_of_n_study.gains import captured, gain, got  # noqa: E402
from best_of_n_study.people import Question, draw_people, questions  # noqa: E402
from best_of_n_study.prompts import SUPPORT_PROMPTS, TEST_PROMPTS, TRAINING_PROMPTS  # noqa: E402
from best_of_n_study.study import TOLD, World, agreement, run, table  # noqa: E402

ANSWERS = kept(worlds.KEPT, Sampling())


def _few(prompts: tuple[str, ...], count: int = 3, answers: int = 4) -> dict[str, list[str]]:
    return {prompt: ANSWERS[prompt][:answers] for prompt in prompts[:count]}


def test_what_people_get_is_what_a_plain_loop_finds() -> None:
    random = np.random.default_rng(0)
    utilities, rewards = random.normal(size=(2, 5, 4, 3))
    first, best = utilities[:, :, 0], got(utilities, rewards)
    for person in range(5):
        gains = []
        for prompt in range(4):
            liked = max(range(3), key=lambda answer: rewards[person, prompt, answer])
            assert best[person, prompt] == utilities[person, prompt, liked]
            gains.append(utilities[person, prompt, liked] - utilities[person, prompt, 0])
        over = gain(best, first)
        assert over.gain_U[person] == pytest.approx(sum(gains) / 4)
        variance = sum((each - sum(gains) / 4) ** 2 for each in gains) / 3
        assert over.error_U[person] == pytest.approx((variance / 4) ** 0.5)
    over = gain(best, first)
    assert over.share == sum(each > 0 for each in over.gain_U) / 5
    assert over.error == pytest.approx(np.std(over.gain_U, ddof=1) / 5**0.5)


def test_the_true_utility_as_reward_gets_the_best_of_all() -> None:
    utilities = np.random.default_rng(1).normal(size=(5, 4, 3))
    best = got(utilities, utilities)
    assert (best == utilities.max(axis=2)).all()
    assert captured(best, utilities.mean(axis=2), utilities.max(axis=2)) == 1.0
    # one reward for all is the same as that reward for each
    assert (got(utilities, utilities[0]) == got(utilities, np.stack([utilities[0]] * 5))).all()


def test_people_choose_as_their_tastes_say_and_are_right_85_times_in_100() -> None:
    told = _few(SUPPORT_PROMPTS, 4, 8)
    people = draw_people(200, 5, told)
    assert agreement(people, told) == pytest.approx(0.85, abs=0.02)
    texts = next(iter(told.values()))
    utility = people.utilities({"": texts})[0, 0]
    a, b = min(combinations(range(8), 2), key=lambda pair: abs(abs(utility[pair[0]] - utility[pair[1]]) - 1))
    asked = Question("", texts[a], texts[b])
    share = np.mean([people.choice(0, asked, number) == (asked.a, asked.b) for number in range(2000)])
    assert share == pytest.approx(1 / (1 + np.exp(utility[b] - utility[a])), abs=0.04)


def test_questions_come_from_every_prompt_before_one_comes_again() -> None:
    told = _few(SUPPORT_PROMPTS, 6)
    asked = questions(told, 12, (0, 1))
    assert sorted(each.prompt for each in asked[:6]) == sorted(each.prompt for each in asked[6:]) == sorted(told)
    assert all(each.a != each.b and {each.a, each.b} <= set(told[each.prompt]) for each in asked)


def test_all_answers_are_there_and_no_prompt_is_in_two_parts() -> None:
    parts = [*TRAINING_PROMPTS, *SUPPORT_PROMPTS, *TEST_PROMPTS]
    assert len(set(parts)) == len(parts) == 48
    assert {len(ANSWERS[prompt]) for prompt in parts} == {worlds.ANSWERS}
    assert all(text.strip() for prompt in parts for text in ANSWERS[prompt])


@pytest.mark.parametrize(
    ("text", "whole"),
    [("One. Two", "One."), ("1. eggs\n2. mi", "1. eggs"), ("No end", "No end"), ('He said "no!" and', 'He said "no!"')],
)
def test_an_answer_that_was_cut_ends_with_a_whole_sentence(text: str, whole: str) -> None:
    assert whole_sentences(text) == whole


def test_a_small_study_on_a_server(server: ServerProcess) -> None:
    world = World(_few(SUPPORT_PROMPTS), _few(TEST_PROMPTS))
    people = draw_people(4, 3, world.told_about)
    with Client(server.url) as client:
        study = run(client, world, people, "a few")
        assert not [user for user in client.users().users if user.user_id.startswith("study-")]
        prompt, texts = next(iter(world.judged.items()))
        liked = client.score(prompt, texts).order[0]
    utilities = people.utilities(world.judged)
    assert study.ways["population's reward"][:, 0] == pytest.approx(utilities[:, 0, liked])
    assert (study.ways["best of all (oracle)"] == utilities.max(axis=2)).all()
    for curve in study.curves.values():
        assert (curve[0].gain_U == 0).all()  # who told nothing is rewarded as the population
    own = study.ways[f"own reward, {TOLD} pairs by chance"] - study.ways["population's reward"]
    assert study.after_ten.gain_U == pytest.approx(own.mean(axis=1))
    assert f"| {study.after_ten.mean:+.2f} ± {study.after_ten.error:.2f} |" in table(study)
