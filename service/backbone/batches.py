"""How texts of mixed lengths are put into padded device batches: pure policy, in tokens."""

from __future__ import annotations

from collections.abc import Sequence


def check_batch(batch: Sequence[Sequence[int]], max_tokens: int) -> None:
    """Refuse what a backbone cannot read; a caller that tokenised with its renderer never meets this.

    Raises:
        ValueError: An empty batch or text, or a text of more than `max_tokens` token ids.
    """
    if not batch:
        raise ValueError("a batch needs at least one text")
    for index, token_ids in enumerate(batch):
        if not 0 < len(token_ids) <= max_tokens:
            raise ValueError(f"text {index} has {len(token_ids)} token ids; the backbone reads 1 to {max_tokens}")


def padded_groups(lengths: Sequence[int], *, max_padded_tokens: int, max_waste: float) -> list[list[int]]:
    """Split texts into groups that are padded to their longest member.

    Longest first; a group ends where one more text would take it past `max_padded_tokens` (rows times the longest),
    or where padding would be more than the share `max_waste` of it. A single text may exceed the limit alone.

    Args:
        lengths: Tokens of each text.
        max_padded_tokens: The most tokens, padding included, in a group of more than one text.
        max_waste: The largest share of padding in a group, between 0 (equal lengths only) and 1.

    Returns:
        Groups of indices into `lengths`, longest texts first; every index exactly once.
    """
    groups: list[list[int]] = []
    real = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups:
            padded = (len(groups[-1]) + 1) * lengths[groups[-1][0]]
            if padded <= max_padded_tokens and padded - real - lengths[index] <= max_waste * padded:
                groups[-1].append(index)
                real += lengths[index]
                continue
        groups.append([index])
        real = lengths[index]
    return groups
