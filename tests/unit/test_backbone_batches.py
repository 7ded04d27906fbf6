"""Padded groups: every text once, within the limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.backbone.batches import check_batch, padded_groups


@given(st.lists(st.integers(1, 300), max_size=60), st.integers(1, 2000), st.floats(0, 1))
def test_groups_hold_every_text_once_within_tokens_and_waste(lengths, max_padded_tokens, max_waste):
    groups = padded_groups(lengths, max_padded_tokens=max_padded_tokens, max_waste=max_waste)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        padded = len(group) * max(lengths[index] for index in group)
        waste = padded - sum(lengths[index] for index in group)
        assert len(group) == 1 or padded <= max_padded_tokens
        assert waste <= max_waste * padded + 1e-9


def test_equal_lengths_stay_together():
    assert padded_groups([7, 3, 7, 3], max_padded_tokens=100, max_waste=0.0) == [[0, 2], [1, 3]]


@pytest.mark.parametrize("batch", [[], [[1], []], [[1, 2, 3, 4]]])
def test_what_no_backbone_reads_is_refused(batch):
    with pytest.raises(ValueError, match=r"at least one text|reads 1 to 3"):
        check_batch(batch, 3)
