"""Clients that know reward models of vLLM's and OpenRLHF's only: their requests and their reading, step by step.

What they send and how they read it is that of verl 0.9.1 (`experimental/reward_loop/reward_loop.py`: the
discriminative reward model), OpenRLHF 0.11.2 (`utils/agent.py`, `trainer/ppo_utils/samples_generator.py`) and vLLM
0.32 (the fields of its `/classify`).
"""

from __future__ import annotations

import math
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from guarded import Guarded

PROMPT, ANSWER = "Why is the sky blue?", "Air scatters blue light most."
CHATML_PROMPT = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
LLAMA_3_PROMPT = (
    f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{PROMPT}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
MINILM_TEXT = f"{PROMPT}\n\n{ANSWER}"
GET_REWARD = "/v1/openrlhf/get_reward"


@pytest.fixture(scope="module")
def ada(server: Any) -> str:
    """Somebody who has said what they like."""
    user = f"ada-{uuid.uuid4().hex[:8]}"
    pair = {"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "What a lovely question, dear! There are so many."}
    with server.client() as client:
        client.post(f"/users/{user}/adapt", json={"pairs": [pair]}).raise_for_status()
    return user


def scored(api: httpx.Client, user: str | None, completion: str = ANSWER, prompt: Any = PROMPT) -> dict[str, Any]:
    body = {"user_id": user, "prompt": prompt, "completions": [completion], "return_base_rewards": True}
    answer: dict[str, Any] = api.post("/score", json=body).raise_for_status().json()
    return answer


def verl_disrm(client: httpx.Client, model: str, rm_prompt: str) -> float:
    """verl's `compute_score_disrm`: one text a request, 5xx repeated, a 4xx raised; the last class of the last text."""
    for _ in range(16):
        response = client.post("/classify", json={"model": model, "input": rm_prompt, "use_activation": False})
        if 400 <= response.status_code < 500:
            response.raise_for_status()
        if response.status_code == 200:
            output = response.json()
            return float(output["data"][-1]["probs"][-1])
    raise AssertionError("given up")


def openrlhf_sample(client: httpx.Client, url: str, query: str, prompt: str, label: Any) -> dict[str, Any]:
    """OpenRLHF's `_fetch_rewards_via_http` and what a sample keeps: five tries, then the reward is None."""
    payload = {"query": [query], "prompts": [prompt], "labels": [label]}
    for _ in range(5):
        response = client.post(url, json=payload)
        if response.status_code < 400:
            info = response.json()
            score = info.get("scores")
            kept = {"reward": info.get("rewards"), "scores": info.get("rewards") if score is None else score}
            return kept | {"extra_logs": info.get("extra_logs") or {}}
    return {"reward": None, "scores": None, "extra_logs": {}}


def as_tensor_of_one(value: Any) -> float:
    """What `torch.tensor([value])` takes where value is what came for one sample: a list of one finite number."""
    assert isinstance(value, list)
    (number,) = value
    assert isinstance(number, float)
    assert math.isfinite(number)
    return number


def test_verls_reward_model_is_the_users(api: httpx.Client, ada: str) -> None:
    reward = verl_disrm(api, f"demo@{ada}", MINILM_TEXT)
    assert reward == pytest.approx(scored(api, ada)["rewards"][0], abs=1e-6)
    assert reward != pytest.approx(scored(api, None)["rewards"][0], abs=1e-3)
    # MiniLM has no template of its own, so verl took one of another model.
    chat = f"{CHATML_PROMPT}{ANSWER}<|im_end|>\n"
    assert verl_disrm(api, f"demo@{ada}", chat) == pytest.approx(reward, abs=1e-6)


def test_every_form_of_vllms_classify_gives_the_reward_of_score(api: httpx.Client, ada: str) -> None:
    expected = scored(api, ada)
    conversation = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWER}]
    listed = api.get("/v1/models").raise_for_status().json()["data"]
    assert [model["id"] for model in listed] == ["demo"]
    ids = api.post("/classify", json={"input": MINILM_TEXT}).json()["usage"]["prompt_tokens"]
    checkpoint_id = api.get("/info").json()["checkpoint"]["checkpoint_id"]
    for body in (
        {"model": f"demo@{ada}", "input": [MINILM_TEXT]},
        {"model": f"{checkpoint_id}@{ada}", "input": MINILM_TEXT},
        {"model": "demo", "user": ada, "input": MINILM_TEXT, "truncate_prompt_tokens": -1, "priority": 3},
        {"user": ada, "messages": conversation, "add_generation_prompt": False, "mm_processor_kwargs": None},
        {"model": f"demo@{ada}", "user": ada, "input": f"[CLS]{MINILM_TEXT}[SEP]", "add_special_tokens": False},
    ):
        answer = api.post("/classify", json=body).raise_for_status().json()
        (row,) = answer["data"]
        assert row["probs"] == pytest.approx(expected["rewards"], abs=1e-6), body
        assert (row["index"], row["label"], row["num_classes"]) == (0, "LABEL_0", 1)
        assert answer["usage"] == {"prompt_tokens": ids, "total_tokens": ids, "completion_tokens": 0}
        assert answer["object"] == "list"
        assert answer["model"] == body.get("model", "demo")


def test_without_a_user_a_text_has_the_base_rewards_of_the_checkpoint(api: httpx.Client) -> None:
    expected = scored(api, None)["base_rewards"][0]
    answer = api.post("/classify", json={"model": "demo", "input": ["Other.", MINILM_TEXT]}).raise_for_status().json()
    row = answer["data"][1]
    assert row["probs"] == pytest.approx(expected, abs=1e-6)
    assert row["num_classes"] == len(expected)
    assert row["label"] == f"LABEL_{max(range(len(expected)), key=expected.__getitem__)}"


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        ({"model": "other@ada", "input": "x"}, 404, "model", "no loaded checkpoint"),
        ({"model": "demo@", "input": "x"}, 422, "model", "behind the @"),
        ({"model": "demo@ada", "user": "bob", "input": "x"}, 422, "user", "one user"),
        ({"user": "a b", "input": "x"}, 422, "user", "letters, digits"),
        ({"model": 5, "input": "x"}, 422, "model", "no string"),
        ({"input": "x", "use_activation": True}, 422, "use_activation", "softmax"),
        ({"input": "x", "truncate_prompt_tokens": 16}, 422, "truncate_prompt_tokens", "-1"),
        ({"input": "x", "truncate_prompt_tokens": -1, "truncation_side": "right"}, 422, "truncation_side", "left"),
        ({"input": "word " * 600}, 422, "input[0]", "at most 512"),
        ({"input": [[101], [101] * 513]}, 422, "input[1]", "at most 512"),
        ({"input": [[101, 30_522]]}, 422, "input[0]", "0 to 30521"),
        ({"input": [[]]}, 422, "input[0]", "at least one"),
        ({"input": ["x"] * 4097}, 422, "input", "at most 4096"),
        ({"input": "x" * 262_145}, 422, "input[0]", "bytes"),
        ({"input": [101] * 262_145, "truncate_prompt_tokens": -1}, 422, "input[0]", "at most 262144"),
        ({"messages": [{"role": "user", "content": "x"}]}, 422, "messages", "the completion"),
        ({"messages": [{"role": "user", "content": ""}] * 1025}, 422, "messages", "at most 1024"),
        ({}, 422, "input", "either input or messages"),
        ([], 422, "body", "no JSON object"),
    ],
)
def test_what_is_wrong_is_told_in_vllms_words_and_as_a_problem(
    api: httpx.Client, body: Any, status: int, param: str, says: str
) -> None:
    response = api.post("/classify", json=body)
    assert response.status_code == status, response.text
    problem = response.json()
    assert problem["type"].startswith("urn:metareward:problem:")
    error = problem["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, status)
    assert says in error["message"]
    assert error["type"] == ("NotFoundError" if status == 404 else "BadRequestError")


def test_the_gate_and_the_door_speak_to_vllms_clients_too(api: httpx.Client, guarded: Guarded) -> None:
    plain = api.post("/classify", content=b"{}", headers={"content-type": "text/plain"})
    assert (plain.status_code, plain.json()["error"]["type"]) == (415, "UnsupportedMediaTypeError")
    with guarded.client() as nobody:
        for response in (nobody.post("/classify", json={"input": "x"}), nobody.get("/v1/models")):
            assert (response.status_code, response.json()["error"]["type"]) == (401, "AuthenticationError")
    assert "error" not in api.post("/score", json={}).json()


def test_another_tenants_user_has_the_populations_reward(guarded: Guarded) -> None:
    user = f"u{uuid.uuid4().hex[:10]}"
    pair = {"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "What a lovely question, dear!"}
    with guarded.client(guarded.key("one")) as one, guarded.client(guarded.key("two", "score")) as two:
        one.post(f"/users/{user}/adapt", json={"pairs": [pair]}).raise_for_status()
        theirs, mine = (verl_disrm(client, f"demo@{user}", MINILM_TEXT) for client in (one, two))
        assert mine == pytest.approx(scored(two, None)["rewards"][0], abs=1e-6)
        assert mine != pytest.approx(theirs, abs=1e-3)
        sample = openrlhf_sample(two, f"{GET_REWARD}?user={user}", CHATML_PROMPT + ANSWER, CHATML_PROMPT, None)
        assert sample["reward"] == pytest.approx([mine], abs=1e-6)
        assert sample["extra_logs"]["cold_start"] == [1.0]


@pytest.mark.parametrize("path", ["/classify", GET_REWARD])
def test_a_used_up_quota_ends_no_training_run(guarded: Guarded, path: str) -> None:
    tenant = f"t{uuid.uuid4().hex[:10]}"
    guarded.tenants.set_quotas(tenant, tokens_per_minute=10)
    with guarded.client(guarded.key(tenant, "score")) as client:
        texts = [f"Why? {i} times" for i in range(9)]
        answers = [client.post(path, json={"input": t, "query": [t], "prompts": ["Why?"]}) for t in texts]
        assert answers[0].status_code == 200, answers[0].text
        refused = next(answer for answer in answers if answer.status_code != 200)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert (refused.json()["type"], refused.json()["quota"]) == ("urn:metareward:problem:quota-exceeded", "tokens")
    metrics = httpx.get(guarded.server.metrics_url).text
    assert f'metareward_requests_total{{route="{path}",status="429"}}' in metrics, "no failure of the server's"


@pytest.mark.parametrize(
    ("prompt", "end"),
    [(CHATML_PROMPT, "<|im_end|>"), (CHATML_PROMPT, ""), (LLAMA_3_PROMPT, "<|eot_id|>"), (f"{PROMPT} ", "")],
)
def test_openrlhf_trains_on_the_reward_of_score(api: httpx.Client, ada: str, prompt: str, end: str) -> None:
    expected = scored(api, ada)
    query = f"{prompt}{ANSWER}{end}"
    for url, label in (
        (GET_REWARD, ada),
        (GET_REWARD, f'{{"user_id": "{ada}"}}'),
        (f"{GET_REWARD}?user={ada}", "an answer to be checked"),
        (f"{GET_REWARD}?user={ada}", None),
    ):
        sample = openrlhf_sample(api, url, query, prompt, label)
        reward = as_tensor_of_one(sample["reward"])
        assert reward == pytest.approx(expected["rewards"][0], abs=1e-6)
        assert as_tensor_of_one(sample["scores"]) == pytest.approx(1 / (1 + math.exp(-reward)))
        logs = {name: as_tensor_of_one(value) for name, value in sample["extra_logs"].items()}
        assert logs.pop("reward_std") == pytest.approx(expected["reward_std"][0], abs=1e-6)
        unknown = float(prompt == f"{PROMPT} ")
        known = {"cold_start": 0, "population": 0, "stale": 0, "truncated": 0, "unknown_format": unknown}
        assert logs == known


def test_a_batch_of_many_users_and_nobody_is_answered_in_order(api: httpx.Client, ada: str) -> None:
    query = f"{CHATML_PROMPT}{ANSWER}<|im_end|>"
    labels = [ada, "", "nobody-yet", None, ada]
    body = {"query": [query] * 5, "prompts": [CHATML_PROMPT] * 5, "labels": labels}
    answer = api.post(GET_REWARD, json=body).raise_for_status().json()
    of_ada, of_nobody = scored(api, ada)["rewards"][0], scored(api, None)["rewards"][0]
    assert answer["rewards"] == pytest.approx([of_ada, of_nobody, of_nobody, of_nobody, of_ada], abs=1e-6)
    assert answer["extra_logs"]["cold_start"] == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert answer["extra_logs"]["population"] == [0.0, 1.0, 0.0, 1.0, 0.0]
    assert {len(values) for values in (answer["scores"], *answer["extra_logs"].values())} == {5}


def test_a_policy_that_runs_on_is_shortened_and_told_of(api: httpx.Client) -> None:
    long = "word " * 700
    body = {"query": [f"{CHATML_PROMPT}{long}", f"{CHATML_PROMPT}{ANSWER}"], "prompts": [CHATML_PROMPT] * 2}
    answer = api.post(GET_REWARD, json=body).raise_for_status().json()
    assert answer["extra_logs"]["truncated"] == [1.0, 0.0]
    refused = api.post(f"{GET_REWARD}?truncate=false", json=body)
    assert [issue["field"] for issue in refused.json()["errors"]] == ["query[0]"]


@pytest.mark.parametrize("path", ["/classify", GET_REWARD])
def test_texts_that_take_long_to_read_hold_up_nobody(api: httpx.Client, server: Any, path: str) -> None:
    text = f"{CHATML_PROMPT}Yes." + "<|im_end|> " * 23_000
    body = {"input": [text] * 24, "query": [text] * 24}
    with ThreadPoolExecutor() as pool, server.client() as other:
        began = time.monotonic()
        reading = pool.submit(api.post, path, json=body)
        waits = []
        while not reading.done():
            asked = time.monotonic()
            other.get("/v1/models").raise_for_status()
            waits.append(time.monotonic() - asked)
        took = time.monotonic() - began
    assert reading.result().status_code == 200, reading.result().text
    assert max(waits) < took / 2


@pytest.mark.parametrize("body", [{"query": [], "prompts": [], "labels": []}, {"query": []}])
def test_nothing_is_answered_with_nothing(api: httpx.Client, body: dict[str, Any]) -> None:
    response = api.post(GET_REWARD, json=body)
    assert (response.status_code, response.json()) == (200, {"rewards": [], "scores": [], "extra_logs": {}})


@pytest.mark.parametrize(
    ("url", "body", "fields"),
    [
        (GET_REWARD, {}, ["query"]),
        (GET_REWARD, {"query": "x"}, ["query"]),
        (GET_REWARD, {"query": ["x", 5]}, ["query[1]"]),
        (GET_REWARD, {"query": ["x"], "prompts": []}, ["prompts"]),
        (GET_REWARD, {"query": ["x"], "prompts": [5]}, ["prompts[0]"]),
        (GET_REWARD, {"query": ["x", "y"], "prompts": ["x", "z"]}, ["query[1]"]),
        (GET_REWARD, {"query": ["x"], "prompts": ["x"], "labels": ["42 apples"]}, ["labels[0]"]),
        (GET_REWARD, {"query": ["x"], "prompts": ["x"], "labels": "ada"}, ["labels"]),
        (GET_REWARD, {"query": ["x"] * 4097}, ["query"]),
        (GET_REWARD, {"query": ["x" * 262_145]}, ["query[0]"]),
        (GET_REWARD, {"query": ["x" * 99], "prompts": ["x" * 262_145]}, ["prompts[0]"]),
        (GET_REWARD, {"query": ["x"], "prompts": ["x"], "labels": ['{"user_id": ' + "[" * 100_000]}, ["labels[0]"]),
        (GET_REWARD, [], ["body"]),
        (f"{GET_REWARD}?user=a%20b", {"query": []}, ["user"]),
        (f"{GET_REWARD}?user=", {"query": []}, ["user"]),
        (f"{GET_REWARD}?truncate=perhaps", {"query": []}, ["truncate"]),
    ],
)
def test_what_openrlhf_did_not_mean_to_send_is_named(api: httpx.Client, url: str, body: Any, fields: list[str]) -> None:
    response = api.post(url, json=body)
    assert response.status_code == 422, response.text
    assert [issue["field"] for issue in response.json()["errors"]] == fields
    assert "apples" not in response.text
