"""Which prefixes are kept, for whom, and within which memory."""

from __future__ import annotations

import pytest

from service.backbone import prefix_cache
from service.backbone.packing import encode
from service.backbone.prefix_cache import BLOCK_TOKENS, PrefixCache

PROMPT = list(range(100))


def text(*ending: int) -> bytes:
    return encode([*PROMPT, *ending])


def test_a_prompt_is_kept_from_its_second_completion_on() -> None:
    cache: PrefixCache[str] = PrefixCache(1000)
    assert cache.worth_keeping(text(7), b"", 0) == 0
    assert cache.worth_keeping(text(8), b"", 0) == 100 // BLOCK_TOKENS * BLOCK_TOKENS
    cache.put(text(8), b"", 96, "prompt", 10)
    assert cache.worth_keeping(text(9), b"", 96) == 0
    found = cache.find(text(9), b"")
    assert found is not None
    assert (found.tokens, found.payload) == (96, "prompt")
    assert cache.find(encode([5, *PROMPT]), b"") is None
    assert (cache.stats.hits, cache.stats.lookups, cache.stats.tokens_reused) == (1, 2, 96)


def test_the_longest_prefix_is_found_and_never_the_whole_text() -> None:
    cache: PrefixCache[int] = PrefixCache(1000)
    for tokens in (16, 48, 96):
        cache.put(text(7), b"", tokens, tokens, 10)
    assert [found.payload if (found := cache.find(encode(PROMPT[:n]), b"")) else 0 for n in (97, 96, 48, 17, 16)] == [
        96,
        48,
        16,
        16,
        0,
    ]


def test_scopes_never_meet() -> None:
    cache: PrefixCache[str] = PrefixCache(1000)
    assert cache.worth_keeping(text(7), b"ann", 0) == 0
    assert cache.worth_keeping(text(8), b"bob", 0) == 0  # the first that bob sends, whatever ann sent
    cache.put(text(7), b"ann", 96, "ann's", 10)
    assert cache.find(text(9), b"bob") is None
    assert cache.find(text(9), b"ann") is not None


def test_memory_is_bounded_and_the_least_recently_used_goes() -> None:
    cache: PrefixCache[int] = PrefixCache(30)
    texts = [encode([number, *PROMPT]) for number in range(5)]
    for number in range(3):
        cache.put(texts[number], b"", 96, number, 10)
    assert cache.find(texts[0], b"") is not None
    cache.put(texts[3], b"", 96, 3, 10)
    assert [cache.find(key, b"") is not None for key in texts[:4]] == [True, False, True, True]
    cache.put(texts[4], b"", 96, 4, 31)
    assert cache.find(texts[4], b"") is None
    cache.put(texts[0], b"", 96, 9, 20)  # again, and larger
    assert cache.stats.nbytes <= 30
    assert cache.stats.evicted == 2
    cache.clear()
    assert (cache.stats.nbytes, cache.stats.entries) == (0, 0)
    assert cache.find(texts[0], b"") is None


@pytest.mark.parametrize("count", [5000])
def test_texts_that_were_seen_long_ago_are_forgotten(count: int) -> None:
    cache: PrefixCache[int] = PrefixCache(1)
    for number in range(count):
        cache.worth_keeping(encode([number] * 20), b"", 0)
    assert cache.worth_keeping(encode([0] * 40), b"", 0) == 0
    assert cache.worth_keeping(encode([count - 1] * 40), b"", 0) == BLOCK_TOKENS


def test_long_texts_are_forgotten_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "_REMEMBERED_BYTES", 3 * len(text(0)))
    cache: PrefixCache[int] = PrefixCache(1)
    for number in range(4):
        cache.worth_keeping(encode([number, *PROMPT]), b"", 0)
    assert cache.worth_keeping(encode([0, *PROMPT, 7]), b"", 0) == 0
    assert cache.worth_keeping(encode([3, *PROMPT, 7]), b"", 0) == 96


def test_a_batch_that_ran_out_of_memory_does_not_seem_to_come_twice() -> None:
    cache: PrefixCache[int] = PrefixCache(1000)
    assert cache.worth_keeping(text(7), b"", 0) == 0
    cache.clear()
    assert cache.worth_keeping(text(7), b"", 0) == 0
    assert cache.worth_keeping(text(8), b"", 0) == 96


def test_a_cache_of_no_size_remembers_nothing() -> None:
    cache: PrefixCache[int] = PrefixCache(0)
    assert [cache.worth_keeping(text(7), b"", 0) for _ in range(3)] == [0, 0, 0]
    cache.put(text(7), b"", 96, 1, 1)
    assert cache.find(text(8), b"") is None
