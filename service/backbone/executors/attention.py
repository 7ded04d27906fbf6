"""Attention over packed rows, in the forms that devices are fast at. All compute the same numbers.

`prepare` sees a batch's runs once; what it returns is called for every layer. `MaskedAttention` is the reference: one
product with an explicit mask. The others never look at a key that the mask would hide.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final, Protocol

from service.backbone.executors.layout import Piece, Run, alike, key_rows, pages_of, visible

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# A product of runs filled up to the longest costs up to this much more than each alone; a call costs about as much.
_MOST_FILLING: Final = 0.125
# Rows of keys that are copied for one product: with 8 key heads of 128 numbers, 256 MiB in float32.
_MOST_KEYS: Final = 65_536


@dataclass(frozen=True, slots=True)
class KeyValues:
    """One layer's keys and values [rows, key heads, head size]: of known prefixes, and of this batch."""

    prefixes: Sequence[tuple[Tensor, Tensor]]
    batch: tuple[Tensor, Tensor]

    def gather(self, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
        """Keys and values of the pieces, one behind the other; copied, so that they may outlive the batch."""
        import torch

        sources = [self.batch if piece.source < 0 else self.prefixes[piece.source] for piece in pieces]
        keys = [source[0][piece.start : piece.stop] for source, piece in zip(sources, pieces, strict=True)]
        values = [source[1][piece.start : piece.stop] for source, piece in zip(sources, pieces, strict=True)]
        return torch.cat(keys), torch.cat(values)

    def view(self, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
        """As `gather`, without a copy where there is one piece."""
        if len(pieces) > 1:
            return self.gather(pieces)
        piece = pieces[0]
        key, value = self.batch if piece.source < 0 else self.prefixes[piece.source]
        return key[piece.start : piece.stop], value[piece.start : piece.stop]

    def joined(self) -> tuple[Tensor, Tensor]:
        """All rows: those of the prefixes, then those of the batch."""
        import torch

        if not self.prefixes:
            return self.batch
        return (
            torch.cat([*(key for key, _ in self.prefixes), self.batch[0]]),
            torch.cat([*(value for _, value in self.prefixes), self.batch[1]]),
        )


Attend = Callable[["Tensor", KeyValues, float], "Tensor"]
"""Queries [T, query heads, head size], keys and values, the scale of the scores; gives [T, query heads * head size]."""


class Attention(Protocol):
    """One form."""

    @property
    def name(self) -> str:
        """What settings and logs call it."""
        ...

    def prepare(self, runs: Sequence[Run], prefix_tokens: Sequence[int], rows: int, device: torch.device) -> Attend:
        """What is the same in every layer.

        Args:
            runs: The queries, in the order of their rows, without gaps.
            prefix_tokens: Tokens of each known prefix.
            rows: Rows of keys and values that the batch computes.
            device: Where it runs.
        """
        ...


class MaskedAttention:
    """One scaled_dot_product_attention with a boolean mask (True: sees). Takes time for every hidden pair too."""

    name = "masked"

    def prepare(self, runs: Sequence[Run], prefix_tokens: Sequence[int], rows: int, device: torch.device) -> Attend:
        """As the protocol says."""
        import torch

        known = sum(prefix_tokens)
        queries = runs[-1].stop
        mask = visible(runs, queries, _offsets(prefix_tokens), known, known + rows)
        mask_TS = torch.from_numpy(mask).to(device)

        def attend(query: Tensor, held: KeyValues, scale: float) -> Tensor:
            key, value = held.joined()
            return _sdpa(query[None], key[None], value[None], scale, mask_TS)[0]

        return attend


@dataclass(frozen=True, slots=True)
class _Group:
    """Runs that are one product; with `asked`, filled up to the longest, else a single run as it is.

    Attributes:
        first: The longest run.
        mask: [queries, keys] of it (True: sees); None where all see all, or where `causal` says it.
        causal: Whether nothing comes before its queries.
        asked: [N, queries] rows of the queries.
        seen: [N, keys] rows of the keys, prefixes first.
        real: [N, queries] which of the queries are no filling.
    """

    first: Run
    mask: Tensor | None
    causal: bool
    asked: Tensor | None = None
    seen: Tensor | None = None
    real: Tensor | None = None


class PathAttention:
    """Each run with the keys on its own path, runs of like shapes together: what CPUs are fastest at.

    Runs with as many keys before them, and about as many queries, are one product: filled up behind their last query
    they need no masks of their own, because what was filled up is seen by what was filled up only.
    """

    name = "path"

    def prepare(self, runs: Sequence[Run], prefix_tokens: Sequence[int], rows: int, device: torch.device) -> Attend:
        """As the protocol says."""
        groups = [
            _group([runs[index] for index in group], _offsets(prefix_tokens), sum(prefix_tokens), device)
            for group in alike(runs, most_filling=_MOST_FILLING, most_keys=_MOST_KEYS)
        ]
        joins = any(group.asked is not None for group in groups)

        def attend(query: Tensor, held: KeyValues, scale: float) -> Tensor:
            attended = query.new_empty(query.shape[0], query.shape[1] * query.shape[2])
            keys, values = held.joined() if joins else held.batch
            for group in groups:
                if group.asked is None or group.seen is None or group.real is None:
                    key, value = held.view(group.first.pieces)
                    rows = slice(group.first.start, group.first.stop)
                    part = _product(query[None, rows], key[None], value[None], scale, group)
                    attended[rows] = part[0]
                else:
                    part = _product(query[group.asked], keys[group.seen], values[group.seen], scale, group)
                    attended[group.asked[group.real]] = part[group.real]
            return attended

        return attend


def _group(runs: Sequence[Run], offsets: Sequence[int], known: int, device: torch.device) -> _Group:
    import torch

    queries, before = runs[0].queries, runs[0].keys - runs[0].queries
    mask = None
    if before and queries > 1:
        mask = torch.ones(queries, before + queries, dtype=torch.bool, device=device).tril(before)
    causal = queries > 1 and not before
    if len(runs) == 1:
        return _Group(runs[0], mask, causal)
    asked = torch.stack([_filled(torch.arange(run.start, run.stop), queries) for run in runs])
    seen = torch.stack([_filled(torch.from_numpy(key_rows([run], offsets, known)), before + queries) for run in runs])
    real = torch.arange(queries) < torch.tensor([[run.queries] for run in runs])
    return _Group(runs[0], mask, causal, asked.to(device), seen.to(device), real.to(device))


def _product(query: Tensor, key: Tensor, value: Tensor, scale: float, group: _Group) -> Tensor:
    """In float32 on a CPU: its bfloat16 attention is slower (49 against 34 ms for best-of-16 with SmolLM2's heads)."""
    if query.is_cpu:
        attended = _sdpa(query.float(), key.float(), value.float(), scale, group.mask, group.causal)
        return attended.to(query.dtype)
    return _sdpa(query, key, value, scale, group.mask, group.causal)


class FlexAttention:
    """torch's flex_attention with a BlockMask: hidden blocks cost nothing, nothing is copied. Compiled on CUDA."""

    name = "flex"

    def __init__(self) -> None:
        self._compiled: Any = None

    def prepare(self, runs: Sequence[Run], prefix_tokens: Sequence[int], rows: int, device: torch.device) -> Attend:
        """As the protocol says."""
        import torch
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        known = sum(prefix_tokens)
        queries, keys = runs[-1].stop, known + rows
        mask = torch.from_numpy(visible(runs, queries, _offsets(prefix_tokens), known, keys)).to(device)

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return mask[query, key]

        block_mask = create_block_mask(sees, None, None, queries, keys, device=device)
        if device.type == "cuda" and self._compiled is None:
            self._compiled = torch.compile(flex_attention, dynamic=True)
        flex: Any = self._compiled or flex_attention

        def attend(query: Tensor, held: KeyValues, scale: float) -> Tensor:
            key, value = held.joined()
            attended: Tensor = flex(
                query.transpose(0, 1)[None],
                key.transpose(0, 1)[None],
                value.transpose(0, 1)[None],
                block_mask=block_mask,
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            return attended[0].transpose(0, 1).reshape(len(query), -1)

        return attend


class VarlenAttention:
    """torch's variable-length flash attention (CUDA): every run with its own keys, gathered once a layer.

    With a `page` runs share the pages that hold the same rows, as a paged key/value cache does (torch 2.12 or newer);
    without, each has a copy of its own.
    """

    def __init__(self, page: int | None = None) -> None:
        self.name = "varlen" if page is None else "paged"
        self._page = page

    def prepare(self, runs: Sequence[Run], prefix_tokens: Sequence[int], rows: int, device: torch.device) -> Attend:
        """As the protocol says.

        Raises:
            RuntimeError: This version of torch has no such attention.
        """
        import torch
        from torch.nn.attention.varlen import varlen_attn

        known = inspect.signature(varlen_attn).parameters
        if self._page is not None and "block_table" not in known:
            raise RuntimeError(f"torch {torch.__version__} has no paged varlen attention")
        offsets, before = _offsets(prefix_tokens), sum(prefix_tokens)
        lengths = torch.tensor([run.keys for run in runs], dtype=torch.int32)
        starts_q = torch.tensor([0, *(run.stop for run in runs)], dtype=torch.int32, device=device)
        starts_k = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)).to(device)
        most_q, most_k = max(run.queries for run in runs), int(lengths.max())
        options: dict[str, Any] = {"window_size": (-1, 0)}  # causal; the last query is lined up with the last key
        if self._page is None:
            index = torch.from_numpy(key_rows(runs, offsets, before)).to(device)
        else:
            pages, table = pages_of(runs, offsets, before, self._page)
            index = torch.from_numpy(pages).to(device)
            options |= {"seqused_k": lengths.to(device), "block_table": torch.from_numpy(table).to(device)}

        def attend(query: Tensor, held: KeyValues, scale: float) -> Tensor:
            key, value = (part[index] for part in held.joined())
            if "enable_gqa" in known:
                options["enable_gqa"] = query.shape[1] != key.shape[1]
            elif query.shape[1] != key.shape[1]:
                group = query.shape[1] // key.shape[1]
                key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
            if self._page is not None:
                key, value = (part.view(-1, self._page, *part.shape[1:]) for part in (key, value))
            cu_seq_k = None if self._page is not None else starts_k
            attended: Any = varlen_attn(query, key, value, starts_q, cu_seq_k, most_q, most_k, scale=scale, **options)
            return attended.reshape(len(query), -1)  # type: ignore[no-any-return]

        return attend


def _offsets(prefix_tokens: Sequence[int]) -> list[int]:
    """Where each prefix begins in the concatenation of all."""
    return [0, *accumulate(prefix_tokens)][:-1]


def _filled(rows: Tensor, length: int) -> Tensor:
    """`rows` filled up with their last to `length`."""
    import torch

    return torch.cat([rows, rows[-1:].expand(length - len(rows))])


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """[N, T, query heads, head size] over [N, S, key heads, head size] to [N, T, query heads * head size]."""
    from torch.nn.functional import scaled_dot_product_attention

    attended = scaled_dot_product_attention(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        scale=scale,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    return attended.transpose(1, 2).flatten(2)
