"""Texts to hidden states: the one expensive step, in batches of bounded tokens, shard by shard.

The backbone comes in as an object: this package does not know how one is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from service.datasets.manifest import BackboneInfo, DatasetManifest
from service.datasets.texts import Text
from service.datasets.writer import EmbeddedDatasetWriter
from service.errors import FieldIssue, InvalidInput

if TYPE_CHECKING:
    import torch

DEFAULT_BATCH_TOKENS: Final = 8192
_SHOWN: Final = 20


class Tokens(Protocol):
    """A text as the backbone reads it."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """At least one."""

    @property
    def truncated(self) -> bool:
        """Whether something was left out."""


class TextRenderer(Protocol):
    """What embedding needs of `service.backbone.protocol.Renderer`."""

    def tokenise(self, messages: Any, completion: str, *, truncate: bool) -> Tokens:
        """Render and tokenise; a `ValueError` says what is wrong with the text."""


class Described(Protocol):
    """What embedding needs of `service.backbone.protocol.BackboneSpec`."""

    def as_json(self) -> dict[str, Any]:
        """All fields as plain JSON values."""


class TextBackbone(Protocol):
    """What embedding needs of `service.backbone.protocol.Backbone`."""

    @property
    def spec(self) -> Described:
        """What it is."""

    @property
    def renderer(self) -> TextRenderer:
        """How its texts become token ids."""

    def forward(self, batch: Sequence[Sequence[int]]) -> torch.Tensor:
        """[B, D] float32, each row as if the text were alone."""


def backbone_info(backbone: TextBackbone) -> BackboneInfo:
    """How a data set names the backbone."""
    return BackboneInfo.from_spec(backbone.spec.as_json())


def token_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[NDArray[np.intp]]:
    """Divide texts into batches of similar length.

    Longest first, so that a batch that does not fit into memory fails at once and not after an hour.

    Args:
        lengths: Tokens of each text.
        batch_tokens: Rows times the longest of a batch stay at or below it; a longer text is a batch of its own.

    Yields:
        Positions in `lengths`; every position exactly once.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < order.size:
        rows = max(1, batch_tokens // int(lengths[order[start]]))
        yield order[start : start + rows]
        start += rows


def _forward(
    backbone: TextBackbone, token_ids: Sequence[Sequence[int]], batch_tokens: int, on_texts: Callable[[int], None]
) -> NDArray[np.float32]:
    h_BD: NDArray[np.float32] | None = None
    for batch in token_batches([len(ids) for ids in token_ids], batch_tokens):
        rows = backbone.forward([token_ids[index] for index in batch]).cpu().numpy()
        if h_BD is None:
            h_BD = np.empty((len(token_ids), rows.shape[1]), np.float32)
        h_BD[batch] = rows
        on_texts(len(batch))
    if h_BD is None:
        raise ValueError("there must be at least one text")
    return h_BD


def _tokenise(backbone: TextBackbone, texts: Sequence[Text], first: int) -> list[Tokens]:
    tokens: list[Tokens] = []
    issues: list[FieldIssue] = []
    for index, text in enumerate(texts):
        try:
            tokens.append(backbone.renderer.tokenise(text.as_chat(), text.completion, truncate=True))
        except ValueError as error:
            issues.append(FieldIssue(f"text {first + index}", str(error)))
    if len(issues) > _SHOWN:
        issues[_SHOWN:] = [FieldIssue("texts", f"and {len(issues) - _SHOWN} more")]
    if issues:
        raise InvalidInput(issues)
    return tokens


def embed_texts(
    backbone: TextBackbone,
    texts: Sequence[Text],
    writer: EmbeddedDatasetWriter,
    golden: Sequence[Text],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_texts: Callable[[int], None] = lambda count: None,
) -> DatasetManifest:
    """Embed what the writer does not have yet, and finish the data set.

    Batches never cross shards, so a resumed run computes what the killed one would have. Texts longer than the
    backbone reads are truncated by its renderer, marked and counted (`DatasetManifest.truncated_texts`).

    Args:
        backbone: Loaded.
        texts: All N texts, in the writer's order.
        writer: Open, for the same texts.
        golden: The golden texts; embedded one by one, as a server meets them.
        batch_tokens: Bounds the memory of a forward pass.
        on_texts: Called with the number of texts after each batch.

    Raises:
        InvalidInput: The backbone's template refuses some texts (the first 20 are named).
    """
    shards = writer.shards()
    for number in writer.pending():
        rows = shards[number]
        tokens = _tokenise(backbone, texts[rows.start : rows.stop], rows.start)
        h_ND = _forward(backbone, [text.token_ids for text in tokens], batch_tokens, on_texts)
        writer.write_shard(number, h_ND, [text.truncated for text in tokens])
    golden_GD = [
        backbone.forward([text.token_ids]).cpu().numpy()[0]
        for text in (_tokenise(backbone, golden, 0) if golden else [])
    ]
    return writer.finish(np.stack(golden_GD) if golden_GD else np.empty((0, writer.hidden_size), np.float32))
