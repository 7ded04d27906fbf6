"""The worker on real weights: answers equal to each text alone, and a self-check that tells right from wrong."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from service.backbone.golden import golden_token_ids, packing_token_ids
from service.backbone.load import load_backbone
from service.worker.messages import BaseRewardHeads
from service.worker.selfcheck import GoldenRecord, Question, self_check
from service.worker.worker import Worker

RNG = np.random.default_rng(0)
HEADS = BaseRewardHeads.of(RNG.normal(size=(8, 384)).astype(np.float32), RNG.normal(size=8))


@pytest.fixture(scope="module")
def minilm():
    return load_backbone("minilm", device="cpu", dtype="float32")


@pytest.fixture
def worker(minilm):
    worker = Worker(minilm, HEADS, max_batch_tokens=256, max_queue_tokens=100_000)
    worker.start()
    yield worker
    assert worker.stop(drain=True, timeout_s=60)


def test_concurrent_answers_equal_each_text_alone(worker, minilm):
    requests = [
        [
            minilm.renderer.tokenise(
                [{"role": "user", "content": "why " * int(RNG.integers(1, 60))}], f"because {row} {n}", truncate=True
            ).token_ids
            for n in range(4)
        ]
        for row in range(8)
    ]
    answers: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda row=row: answers.update({row: worker.base_rewards(requests[row], 60)}))
        for row in range(len(requests))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert worker.stats.items == 32
    assert worker.stats.batches < 32  # texts shared batches
    for row, texts in enumerate(requests):
        alone = np.array([HEADS.A_KD @ minilm.forward([text])[0].double().numpy() + HEADS.b_K for text in texts])
        np.testing.assert_allclose(answers[row], alone, atol=2e-5)


def test_self_check_tells_right_from_wrong(worker, minilm):
    texts = golden_token_ids(minilm.renderer)

    def score(question):
        return np.stack([row.result(60) for row in worker.submit(question.texts, scope=question.scope)])

    recorded = score(Question(texts, b"")).astype(np.float32)
    golden = GoldenRecord(texts, recorded, "float32", "float32", packing_token_ids(minilm.renderer))
    right = self_check(score, golden, idle=True)
    assert right.passed
    assert right.difference("batched") < 1e-4
    assert right.difference("neighbours") < 1e-4
    doubled = dataclasses.replace(golden, texts=[(text[0], *text) for text in texts])
    wrong = self_check(score, doubled)
    assert not wrong.passed
    assert wrong.difference("recorded") > 0.1
