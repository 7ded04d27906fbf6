from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.datasets.embedded import EmbeddedDataset, EmbeddedDatasetWriter
from service.datasets.embedding import backbone_info, embed_texts, token_batches
from service.datasets.manifest import SourceInfo
from service.datasets.pairs import TRAIN, PairTable
from service.datasets.texts import PreferenceData, Text, user_prompt
from service.errors import InvalidInput

MAX_TOKENS = 30


@dataclass
class Tokens:
    token_ids: tuple[int, ...]
    truncated: bool


@dataclass
class Spec:
    fingerprint: str = "f"

    def as_json(self) -> dict[str, Any]:
        return {"id": "bytes", "fingerprint": self.fingerprint, "template_id": "t", "hidden_size": 4}


@dataclass
class ByteBackbone:
    """A backbone whose tokens are bytes and whose hidden states are sums over them; it counts what it does."""

    spec: Spec = field(default_factory=Spec)
    batches: list[list[int]] = field(default_factory=list)

    @property
    def renderer(self) -> ByteBackbone:
        return self

    def tokenise(self, messages: Any, completion: str, *, truncate: bool) -> Tokens:
        if "forbidden" in completion:
            raise ValueError("is refused by this model's chat template")
        ids = tuple(f"{messages[-1]['content']} {completion}".encode())
        return Tokens(ids[-MAX_TOKENS:], len(ids) > MAX_TOKENS)

    def forward(self, batch: Sequence[Sequence[int]]) -> torch.Tensor:
        self.batches.append([len(ids) for ids in batch])
        return torch.tensor([[sum(ids), len(ids), ids[0], ids[-1]] for ids in batch], dtype=torch.float32)


def data(completions: list[str]) -> PreferenceData:
    texts = [Text(user_prompt("p"), completion) for completion in completions]
    table = PairTable.of([0], [TRAIN], [0], [1])
    return PreferenceData(texts, np.zeros(len(texts), np.int32), ["ann"], {"default": table})


def open_writer(path: Path, source: PreferenceData, shard_texts: int = 8) -> EmbeddedDatasetWriter:
    return EmbeddedDatasetWriter(
        path,
        backbone=backbone_info(ByteBackbone()),
        columns=source.columns(),
        source=SourceInfo(format="jsonl", name="x"),
        created_by="test",
        golden_texts_id=hashlib.sha256().hexdigest(),
        shard_texts=shard_texts,
    )


@given(st.lists(st.integers(1, 500), min_size=1, max_size=200), st.integers(1, 2000))
def test_batches_hold_every_text_once_and_obey_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(token_batches(lengths, budget))
    assert sorted(index for batch in batches for index in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget
    longest = [max(lengths[index] for index in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_every_text_gets_its_own_hidden_state(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = data([f"{number} " + "x" * int(rng.integers(0, 40)) for number in range(50)])
    backbone, seen = ByteBackbone(), []
    golden = [Text(user_prompt("g"), "one"), Text(user_prompt("g"), "two two")]
    with open_writer(tmp_path / "d", source) as writer:
        manifest = embed_texts(backbone, source.texts, writer, golden, batch_tokens=64, on_texts=seen.append)
    stored = EmbeddedDataset.open(tmp_path / "d")
    tokens = [backbone.tokenise(text.as_chat(), text.completion, truncate=True) for text in source.texts]
    expected = backbone.forward([text.token_ids for text in tokens]).numpy()
    np.testing.assert_array_equal(stored.gather(range(50)), expected)
    np.testing.assert_array_equal(stored.golden_GD[1], [sum(b"g two two"), 9, ord("g"), ord("o")])
    assert sum(seen) == 50
    assert all(len(batch) == 1 or len(batch) * max(batch) <= 64 for batch in backbone.batches[:-1])
    assert manifest.truncated_texts == sum(text.truncated for text in tokens) > 0
    np.testing.assert_array_equal(stored.text_truncated(), [text.truncated for text in tokens])


def test_a_resumed_run_computes_only_what_is_missing(tmp_path: Path) -> None:
    source = data([f"text {number}" for number in range(20)])

    class Dies(ByteBackbone):
        def forward(self, batch: Sequence[Sequence[int]]) -> torch.Tensor:
            if len(self.batches) == 2:
                raise MemoryError
            return super().forward(batch)

    with open_writer(tmp_path / "d", source) as writer, pytest.raises(MemoryError):
        embed_texts(Dies(), source.texts, writer, [])
    backbone = ByteBackbone()
    with open_writer(tmp_path / "d", source) as writer:
        assert writer.pending() == [2]
        embed_texts(backbone, source.texts, writer, [])
    assert sum(map(len, backbone.batches)) == 4
    with open_writer(tmp_path / "whole", source) as writer:
        embed_texts(ByteBackbone(), source.texts, writer, [])
    whole, resumed = (EmbeddedDataset.open(tmp_path / name) for name in ("whole", "d"))
    np.testing.assert_array_equal(whole.gather(range(20)), resumed.gather(range(20)))
    assert whole.manifest == resumed.manifest


def test_texts_that_the_template_refuses_are_listed(tmp_path: Path) -> None:
    source = data([f"{'forbidden' if number % 5 == 3 else 'fine'} {number}" for number in range(20)])
    with open_writer(tmp_path / "d", source, shard_texts=100) as writer:
        with pytest.raises(InvalidInput) as caught:
            embed_texts(ByteBackbone(), source.texts, writer, [])
        assert writer.pending() == [0]
    assert [issue.field for issue in caught.value.issues] == ["text 3", "text 8", "text 13", "text 18"]
