"""MiniLM beside the published implementations: sentence-transformers and transformers."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from service.backbone.golden import GOLDEN_TEXTS, golden_token_ids
from service.backbone.load import load_backbone, load_renderer
from service.backbone.minilm import MiniLMRenderer, minilm_directory
from service.backbone.protocol import TextTooLong, UnrenderableText


@pytest.fixture(scope="module")
def minilm():
    return load_backbone("minilm", device="cpu", dtype="float32")


def user(content):
    return [{"role": "user", "content": content}]


LONG = "the quick brown fox jumps over the lazy dog " * 40
TEXTS = [
    *GOLDEN_TEXTS,
    (user("Yes?"), "y"),
    (user("naïve café — 東京 🌅\u200d\u0301"), "\u0301 combining first, then \x00\ufffd"),
    (user(LONG), "short"),
    (user("Yes?"), ""),
    (user(LONG), " \n"),
]


def test_hidden_states_equal_sentence_transformers(minilm):
    from sentence_transformers import SentenceTransformer

    published = SentenceTransformer(str(minilm_directory()), device="cpu")
    published.max_seq_length = 512
    prompts = [next(turn["content"] for turn in reversed(prompt) if turn["role"] == "user") for prompt, _ in TEXTS]
    expected = published.encode([f"{p}\n\n{text[1]}" for p, text in zip(prompts, TEXTS, strict=True)])
    ids = [minilm.renderer.tokenise(*text, truncate=False).token_ids for text in TEXTS]
    np.testing.assert_allclose(minilm.forward(ids).numpy(), expected, atol=1e-5)


def test_batched_equals_alone_across_several_passes(minilm):
    ids = [minilm.renderer.tokenise(*text, truncate=False).token_ids for text in TEXTS] * 2
    alone = torch.cat([minilm.forward([text]) for text in ids])
    assert sum(map(len, ids)) > 1024  # more than one pass over the layers
    torch.testing.assert_close(minilm.forward(ids), alone, atol=1e-5, rtol=0)


def test_bfloat16_stays_near_float32(minilm):
    ids = golden_token_ids(minilm.renderer)
    half = load_backbone("minilm", device="cpu", dtype="bfloat16")
    assert half.spec.fingerprint == minilm.spec.fingerprint
    assert (half.forward(ids) - minilm.forward(ids)).norm(dim=1).max() < 0.03  # of length 1; measured 0.011


def test_the_prompt_gives_way_first_then_the_end_of_the_completion():
    renderer = load_renderer("minilm", max_tokens=8)
    words = {word: renderer.tokenise(user(word), "", truncate=False).token_ids[1] for word in "abcdefghijk"}

    def tokens(prompt, completion):
        text = renderer.tokenise(user(prompt), completion, truncate=True)
        assert text.truncated
        assert len(text.token_ids) == 8
        return [next(word for word in words if words[word] == token) for token in text.token_ids[1:-1]]

    assert tokens("a b c d e f", "g h") == list("cdefgh")
    assert tokens("a b c", "d e f g h i j k") == list("defghi")
    with pytest.raises(TextTooLong) as refused:
        renderer.tokenise(user("a b c d e f"), "g h", truncate=False)
    assert (refused.value.tokens, refused.value.limit) == (10, 8)
    assert "a b" not in str(refused.value)


def test_a_text_of_exactly_the_limit_is_whole():
    renderer = load_renderer("minilm", max_tokens=8)
    assert not renderer.tokenise(user("a b c"), "d e f", truncate=False).truncated


def test_only_the_last_user_message_counts(minilm):
    earlier = [{"role": "system", "content": "Be kind."}, *user("first"), {"role": "assistant", "content": "x"}]
    with_history = minilm.renderer.tokenise([*earlier, *user("second")], "answer", truncate=False)
    assert with_history == minilm.renderer.tokenise(user("second"), "answer", truncate=False)


def test_a_lone_surrogate_is_refused_without_an_echo(minilm):
    with pytest.raises(UnrenderableText) as refused:
        minilm.renderer.tokenise(user("secret \ud800"), "answer", truncate=True)
    assert "secret" not in str(refused.value)


def test_threads_may_share_a_renderer():
    renderer = MiniLMRenderer(minilm_directory())
    expected = [renderer.tokenise(*text, truncate=True) for text in TEXTS]
    seen: list[bool] = []

    def tokenise():
        seen.extend([renderer.tokenise(*text, truncate=True) for text in TEXTS] == expected for _ in range(20))

    threads = [threading.Thread(target=tokenise) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 120


def test_other_threads_go_on_while_a_long_text_is_tokenised():
    renderer = MiniLMRenderer(minilm_directory())
    ended = threading.Event()

    def tokenise():
        renderer.tokenise(user(LONG * 400), "answer", truncate=True)
        ended.set()

    tokenising = threading.Thread(target=tokenise)
    began = before = time.perf_counter()
    longest_pause = 0.0
    tokenising.start()
    while not ended.is_set():
        now = time.perf_counter()
        longest_pause, before = max(longest_pause, now - before), now
    tokenising.join()
    # Where the tokenizer keeps the interpreter to itself this is all of the time; the ids as Python's take some of it.
    assert longest_pause < 0.6 * (time.perf_counter() - began)
