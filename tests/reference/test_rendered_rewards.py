"""Texts that clients rendered, scored by a real decoder: the reward of /score for the messages that they were."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from models import random_llama

from benchmarks.random_checkpoint import checkpoint_on
from service.api.app import create_app
from service.backbone.load import load_backbone
from service.observability.metrics import Metrics
from service.runtime import build_runtime
from service.settings import Settings

USER = {"role": "user", "content": "Why is the sky blue?"}
ANSWERS = ["Air scatters blue light most.", "No idea, dear!\n\nAsk somebody else. "]
TURNS = [{"role": "system", "content": "Be terse."}, USER, {"role": "assistant", "content": "It is not."}, USER]
LLAMA_3 = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy is the sky blue?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Two checkpoints on a random Llama with SmolLM2's tokenizer and template, and a way to ask."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("rendered")
    directory = random_llama(folder / "llama")
    backbone = load_backbone(str(directory), device="cpu", dtype="float32")
    first = dataclasses.replace(checkpoint_on(backbone), name="first")
    second = dataclasses.replace(checkpoint_on(backbone, heads=5, seed=1), name="second")
    for checkpoint in (first, second):
        checkpoint.save(folder / checkpoint.name)
    settings = Settings(
        _env_file=None,
        checkpoint=folder / "first",
        checkpoints=str(folder / "second"),
        data_dir=folder / "data",
        device="cpu",
        dtype="float32",
    )
    runtime = build_runtime(settings, Metrics())
    app = create_app(runtime, settings)
    loop = asyncio.new_event_loop()

    def ask(path: str, body: Any) -> Any:
        async def post() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
                return await (client.get(path) if body is None else client.post(path, json=body))

        response = loop.run_until_complete(post())
        assert response.status_code == 200, response.text
        return response.json()

    pair = {"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "What a lovely question, dear!"}
    ask("/users/ada/adapt", {"pairs": [pair]})
    yield ask, AutoTokenizer.from_pretrained(directory), backbone, second
    loop.close()
    runtime.close()


def sample(ask: Ask, prompt: str, answers: list[str], end: str) -> Any:
    query = [f"{prompt}{answer}{end}" for answer in answers]
    prompts, labels = [prompt] * len(query), ["ada"] * len(query)
    return ask("/v1/openrlhf/get_reward", {"query": query, "prompts": prompts, "labels": labels})


def rewards(ask: Ask, messages: Any, answers: list[str] = ANSWERS) -> Any:
    body = {"user_id": "ada", "prompt": messages, "completions": answers, "return_base_rewards": True}
    return ask("/score", body)


@pytest.mark.parametrize("messages", [[USER], TURNS], ids=["question", "conversation"])
def test_texts_and_ids_that_a_client_rendered_have_the_reward_of_their_messages(served, messages):
    ask, tokenizer, _, _ = served
    expected = rewards(ask, messages)
    chats = [[*messages, {"role": "assistant", "content": answer}] for answer in ANSWERS]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    ids = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    for body in (
        {"model": "first@ada", "input": texts, "use_activation": False},
        {"model": "first", "user": "ada", "input": ids},
    ):
        answer = ask("/classify", body)
        assert [row["probs"][0] for row in answer["data"]] == pytest.approx(expected["rewards"], abs=1e-6)
        assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))
    for chat, reward in zip(chats, expected["rewards"], strict=True):
        answer = ask("/classify", {"model": "first@ada", "messages": chat})
        assert answer["data"][0]["probs"] == pytest.approx([reward], abs=1e-6)
    base = ask("/classify", {"model": "first", "input": texts})["data"]
    np.testing.assert_allclose([row["probs"] for row in base], expected["base_rewards"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("messages", [[USER], TURNS], ids=["question", "conversation"])
def test_samples_of_a_policy_have_the_reward_of_their_messages(served, messages):
    ask, tokenizer, _, _ = served
    expected = rewards(ask, messages)
    own = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    for end in ("<|im_end|>", "", "<|im_end|>\n<|endoftext|>"):
        sampled = sample(ask, own, ANSWERS, end)
        assert sampled["rewards"] == pytest.approx(expected["rewards"], abs=1e-6)
        assert sampled["extra_logs"]["unknown_format"] == [0.0, 0.0]


def test_samples_of_a_policy_of_another_family_too(served):
    ask = served[0]
    said = [answer.strip() for answer in ANSWERS]  # Llama 3's template trims what is said
    sampled = sample(ask, LLAMA_3, said, "<|eot_id|>")
    assert sampled["rewards"] == pytest.approx(rewards(ask, [USER], said)["rewards"], abs=1e-6)


def test_another_loaded_checkpoint_answers_by_its_name(served):
    ask, _, backbone, second = served
    assert [model["id"] for model in ask("/v1/models", None)["data"]] == ["first", "second"]
    ids = [1, 2, 3, 4]
    hidden_D = backbone.forward([ids]).numpy()[0]
    answer = ask("/classify", {"model": "second", "input": ids})
    np.testing.assert_allclose(answer["data"][0]["probs"], second.A_KD @ hidden_D + second.b_K, rtol=0, atol=1e-5)
    named = ask("/classify", {"model": f"{second.checkpoint_id}@ada", "input": ids})
    assert named["data"][0]["probs"] == ask("/classify", {"model": "second@ada", "input": ids})["data"][0]["probs"]
    assert named["data"][0]["probs"] != ask("/classify", {"model": "first@ada", "input": ids})["data"][0]["probs"]
