"""Reward functions as TRL calls them: what is sent for a batch, and what comes back when things are missing."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import math
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from metareward_client import AsyncClient, Client, InvalidRequest, MetarewardError, Overloaded, ServerError
from metareward_client.trl import reward_function

KINDS = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@dataclass
class Scorer:
    """Answers as a server does: a text's reward is its length, and each state and deviation is the user's."""

    items: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200
    asked: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    busy_until: threading.Event | None = None

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked += 1
        if self.busy_until is not None:
            assert self.busy_until.wait(30)
        if self.status != 200:
            errors = [{"field": name, "message": message} for name, message in self.problems.items()]
            return httpx.Response(self.status, json={"detail": "no", "errors": errors}, headers={"Retry-After": "9"})
        if request.url.path == "/info":
            return httpx.Response(200, json={"version": "0", "checkpoint": {"name": "c", "checkpoint_id": "c"}})
        body = json.loads(request.content)
        assert body["truncate"] is True
        self.items += body["items"]
        return httpx.Response(
            200,
            json={
                "results": [self._result(item) for item in body["items"]],
                "checkpoint_id": "c",
                "timings_ms": {},
            },
        )

    def _result(self, item: dict[str, Any]) -> dict[str, Any]:
        user, texts = item.get("user_id"), item["completions"]
        state = "population" if user is None else "cold_start" if user == "new" else "adapted"
        return {
            "user_id": user,
            "user_state": state,
            "version": 0,
            "rewards": [float(len(text)) for text in texts],
            "reward_std": [0.5 if state == "adapted" else 1.5] * len(texts),
            "order": list(range(len(texts))),
            "truncated": [index for index, text in enumerate(texts) if len(text) > 9],
        }


def called(scorer: Scorer, asynchronous: bool, columns: dict[str, Any], **options: Any) -> list[float | None]:
    """What the reward function answers to a batch, called as TRL does."""
    transport = httpx.MockTransport(scorer)
    if asynchronous:

        async def call() -> list[float | None]:
            async with AsyncClient("http://server", transport=transport) as client:
                return await reward_function(client, asynchronous=True, **options)(**columns)

        return asyncio.run(call())
    with Client("http://server", transport=transport) as client:
        return reward_function(client, **options)(**columns)


def batch(*rows: tuple[Any, Any, str], **more: Any) -> dict[str, Any]:
    users, prompts, completions = zip(*rows, strict=True)
    columns = {"prompts": list(prompts), "completions": list(completions), "completion_ids": [[1]] * len(rows)}
    return columns | {"user_id": list(users), "trainer_state": object(), "kind": ["a"] * len(rows)} | more


@KINDS
def test_rows_of_a_user_and_prompt_are_one_item_and_come_back_in_order(asynchronous: bool) -> None:
    scorer = Scorer()
    rows = batch(("ada", "p", "one"), ("bob", "p", "three"), ("ada", "p", "a"), ("ada", "q", ""), ("bob", "p", "four"))

    rewards = called(scorer, asynchronous, rows)

    assert rewards == [3.0, 5.0, 1.0, 0.0, 4.0]
    assert [(item["user_id"], item["prompt"], item["completions"]) for item in scorer.items] == [
        ("ada", "p", ["one", "a"]),
        ("bob", "p", ["three", "four"]),
        ("ada", "q", [""]),
    ]


@KINDS
@pytest.mark.parametrize(
    ("options", "users", "rewards"),
    [
        pytest.param({}, ["ada", None, "7"], [3.0, 3.0, 3.0], id="population"),
        pytest.param({"on_missing_user": "none"}, ["ada", "7"], [3.0, None, 3.0], id="none"),
        pytest.param({"default_user": "eve"}, ["ada", "eve", "7"], [3.0, 3.0, 3.0], id="default"),
        pytest.param({"user_column": None}, [None, None, None], [3.0, 3.0, 3.0], id="no-column"),
    ],
)
def test_rows_without_a_user(
    asynchronous: bool, options: dict[str, Any], users: list[str | None], rewards: list[float | None]
) -> None:
    scorer = Scorer()

    answer = called(scorer, asynchronous, batch(("ada", "p", "one"), (None, "q", "two"), (7, "r", "six")), **options)

    assert answer == rewards
    assert [item.get("user_id") for item in scorer.items] == users


@KINDS
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_missing_user": "error"}, "row 1 of the batch has no user in the column 'user_id'"),
        ({"user_column": "person"}, "no column 'person': name another with user_column, or user_column=None"),
        ({"prompt_column": "question"}, "no column 'question': name another with prompt_column"),
    ],
    ids=["error", "column", "prompt-column"],
)
def test_what_a_data_set_lacks_is_named(asynchronous: bool, options: dict[str, Any], message: str) -> None:
    scorer = Scorer()
    with pytest.raises(ValueError, match=message):
        called(scorer, asynchronous, batch(("ada", "p", "one"), (None, "p", "two")), **options)
    assert not scorer.items


@KINDS
def test_a_batch_of_nobody_asks_for_nothing_where_none_was_chosen(asynchronous: bool) -> None:
    scorer, metrics = Scorer(), dict[str, float]()
    rows = batch((None, "p", "one"), log_metric=metrics.__setitem__)

    assert called(scorer, asynchronous, rows, on_missing_user="none") == [None]
    assert scorer.asked == 0
    assert metrics["rewards/personal_reward/none_share"] == 1.0


@KINDS
def test_a_prompt_column_and_what_is_visible_are_what_is_scored(asynchronous: bool) -> None:
    scorer = Scorer()
    rows = batch(("ada", "You write for ada. p", "Hm.</think>one"), question=["p"])

    rewards = called(scorer, asynchronous, rows, prompt_column="question", visible=after_thinking)

    assert rewards == [3.0]
    assert (scorer.items[0]["prompt"], scorer.items[0]["completions"]) == ("p", ["one"])


def after_thinking(text: str) -> str:
    return text.rpartition("</think>")[2]


@KINDS
def test_the_scale_of_probabilities_is_between_0_and_1(asynchronous: bool) -> None:
    rewards = called(Scorer(), asynchronous, batch(("ada", "p", "two"), ("ada", "p", "x" * 800)), scale="probability")
    assert rewards == [pytest.approx(1 / (1 + math.exp(-3))), 1.0]


@KINDS
def test_what_happened_is_logged_where_the_trainer_takes_it(asynchronous: bool) -> None:
    metrics, extra = dict[str, float](), dict[str, list[Any]]()
    rows = batch(
        ("ada", "p", "one"),
        ("new", "p", "a long text"),
        (None, "p", "two"),
        ("ada", "q", "six"),
        log_metric=metrics.__setitem__,
        log_extra=extra.__setitem__,
    )

    called(Scorer(), asynchronous, rows, name="taste")

    assert metrics.pop("rewards/taste/seconds") >= 0
    assert metrics == {
        "rewards/taste/none_share": 0.0,
        "rewards/taste/cold_start_share": 0.25,
        "rewards/taste/population_share": 0.25,
        "rewards/taste/stale_share": 0.0,
        "rewards/taste/truncated_share": 0.25,
        "rewards/taste/posterior_std": 1.0,
    }
    assert extra == {"taste/user_state": ["adapted", "cold_start", "population", "adapted"]}


@KINDS
@pytest.mark.parametrize(
    ("prompt", "completion"),
    [(None, "x"), ([1, 2], "x"), ([{"content": "p"}], "x"), ([{"role": "user", "content": ["p"]}], "x"), ("p", None)],
)
def test_a_row_that_says_nothing_is_named(asynchronous: bool, prompt: Any, completion: Any) -> None:
    rows = batch(("ada", "p", "one"), ("ada", prompt, completion))
    with pytest.raises(ValueError, match="row 1 of the batch: prompt and completion must each be a text or a list"):
        called(Scorer(), asynchronous, rows)


@KINDS
@pytest.mark.parametrize(("status", "error"), [(503, Overloaded), (500, ServerError)])
def test_without_an_answer_rewards_are_an_error_or_none(
    asynchronous: bool, status: int, error: type[MetarewardError], caplog: pytest.LogCaptureFixture
) -> None:
    scorer, metrics, extra = Scorer(status=status), dict[str, float](), dict[str, list[Any]]()
    rows = batch(("ada", "p", "one"), ("ada", "p", "two"), log_metric=metrics.__setitem__, log_extra=extra.__setitem__)

    with pytest.raises(error):
        called(scorer, asynchronous, rows, timeout=1)
    assert called(scorer, asynchronous, rows, timeout=1, on_failure="none") == [None, None]

    assert metrics["rewards/personal_reward/none_share"] == 1.0
    assert extra == {"personal_reward/user_state": [None, None]}
    assert "a batch gets no rewards" in caplog.text


@KINDS
def test_a_server_that_does_not_answer_is_spoken_of(asynchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    said, spoken_of = list[str](), threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            spoken_of.set()

    listener, logger = Listener(), logging.getLogger("metareward_client.trl")
    monkeypatch.setattr("metareward_client.trl.PATIENCE_S", 0.01)
    monkeypatch.setattr(logger, "handlers", [listener])

    # It answers once the function has spoken.
    rewards = called(Scorer(busy_until=spoken_of), asynchronous, batch(("ada", "p", "one")))

    assert rewards == [3.0]
    assert len(said) == 1
    assert "no answer yet from" in said[0]
    assert "http://server" in said[0]


@KINDS
def test_what_the_server_refuses_for_good_is_raised_in_any_case_and_names_the_row(asynchronous: bool) -> None:
    problems = {"items[1].user_id": "bad", "items[0].completions[1]": "long", "items": "many"}
    rows = batch(("ada", "p", "one"), ("a b", "p", "one"), ("ada", "p", "two"))

    with pytest.raises(InvalidRequest) as caught:
        called(Scorer(status=422, problems=problems), asynchronous, rows, on_failure="none")

    assert dict(caught.value.errors) == {"rows[1].user_id": "bad", "rows[2].completion": "long", "items": "many"}


@KINDS
def test_a_function_is_named_shown_and_pickled_by_its_options(asynchronous: bool) -> None:
    function = reward_function(
        "http://127.0.0.1:9", name="taste", api_key="mrk_secret", asynchronous=asynchronous, visible=after_thinking
    )
    again = pickle.loads(pickle.dumps(function))

    assert again.__name__ == "taste"
    assert repr(again) == repr(function)
    assert "name='taste'" in repr(function)
    assert "secret" not in repr(function)
    # By this TRL decides whether to await it.
    assert inspect.iscoroutinefunction(again.__call__) is asynchronous


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: reward_function(on_missing_user="nobody"), "on_missing_user must be one of population, none, error"),
        (lambda: reward_function(on_failure="ignore"), "on_failure must be one of raise, none"),
        (lambda: reward_function(scale="log"), "scale must be one of raw, probability"),
        (lambda: reward_function(timeout=0), "timeout must be above 0"),
        (lambda: reward_function(Client(), api_key="k"), "api_key goes into the client"),
    ],
    ids=["missing", "failure", "scale", "timeout", "key"],
)
def test_an_option_that_cannot_be_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_client_of_the_other_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="needs an AsyncClient"):
        reward_function(Client(), asynchronous=True)
    with pytest.raises(TypeError, match="needs asynchronous=True"):
        reward_function(AsyncClient())
