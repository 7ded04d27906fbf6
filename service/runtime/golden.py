"""What an engine of a checkpoint must answer before it serves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from service.backbone.golden import golden_texts_id, golden_token_ids, packing_token_ids
from service.backbone.protocol import Dtype, Renderer
from service.checkpoints import Checkpoint
from service.errors import CheckpointError
from service.worker.selfcheck import GoldenRecord


def golden_record(checkpoint: Checkpoint, renderer: Renderer, dtype: Dtype, *, with_biases: bool) -> GoldenRecord:
    """What an engine of this checkpoint must answer.

    Args:
        checkpoint: It recorded the golden texts, or did not.
        renderer: Of its backbone.
        dtype: What the engine computes in.
        with_biases: Whether the engine answers A h + b or A h.

    Raises:
        CheckpointError: The record is of other golden texts.
    """
    recorded_GK, recorded_dtype = recorded_golden(checkpoint)
    if recorded_GK is not None and not with_biases:
        recorded_GK = recorded_GK - checkpoint.b_K
    return GoldenRecord(golden_token_ids(renderer), recorded_GK, recorded_dtype, dtype, packing_token_ids(renderer))


def recorded_golden(checkpoint: Checkpoint) -> tuple[npt.NDArray[np.float64] | None, Dtype]:
    """Base rewards [G, K] of the golden texts as the checkpoint recorded them (None without), and their dtype.

    Raises:
        CheckpointError: They are of other golden texts.
    """
    golden = checkpoint.golden
    if golden is None:
        return None, "float32"
    if golden.texts_id != golden_texts_id():
        raise CheckpointError(
            f"checkpoint {checkpoint.name!r} recorded other golden texts than this version has; train it again"
        )
    return np.array(golden.base_rewards, dtype=np.float64), golden.dtype
