"""Maps from the heads of other checkpoints, beside a checkpoint's own two files.

Each is a file of its own, named and digested by the manifest. It decides nothing of rewards, so a checkpoint that is
linked keeps its ids. The start of the other checkpoint is in it too: states can be carried where that one is gone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from service.checkpoints.manifest import MapRecord
from service.checkpoints.tensors import read_tensors
from service.errors import CheckpointError
from service.mrm import GaussianStart, SoftmaxStart, Start
from service.mrm.carry import Fidelity, LinearMaps


@dataclass(frozen=True, eq=False)
class MapFrom:
    """How what was measured, or solved, with the heads of another checkpoint is carried to this one's.

    Attributes:
        heads_id: Of the other checkpoint's heads.
        checkpoint_id: The other checkpoint.
        name: Its short name.
        maps: Of weights and of differences, [K, K_from].
        start: The start that its users were solved from.
        fidelity: How well users' rewards survive.
        differences_fidelity: How well mapped differences stand for measured ones; mean over users.
        differences: How many differences the maps were fitted to.
        held_out: How many others the fidelities were measured on.
        data: The data set that they are of.
    """

    heads_id: str
    checkpoint_id: str
    name: str
    maps: LinearMaps
    start: Start
    fidelity: Fidelity
    differences_fidelity: float
    differences: int
    held_out: int
    data: str

    @property
    def file(self) -> str:
        """Its file's name in the checkpoint's directory."""
        return f"map-{self.heads_id[:16]}.safetensors"

    def payload(self) -> bytes:
        """Its file."""
        tensors = {"weights_KK": self.maps.weights_KK, "diffs_KK": self.maps.diffs_KK}
        if isinstance(self.start, SoftmaxStart):
            tensors |= {
                "from_logits_K": self.start.logits_K,
                "from_inner": np.array([self.start.inner_lr, self.start.inner_steps], dtype=np.float64),
            }
        else:
            tensors |= {
                "from_mean_K": self.start.mean_K,
                "from_precision_KK": self.start.precision_KK,
                "from_temperature": np.array([self.start.temperature]),
            }
        return safetensors.numpy.save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})

    def record(self, payload: bytes) -> MapRecord:
        """What the manifest says of it."""
        return MapRecord(
            from_heads_id=self.heads_id,
            from_checkpoint_id=self.checkpoint_id,
            from_name=self.name,
            fidelity=self.fidelity.mean,
            fidelity_low=self.fidelity.low,
            differences_fidelity=self.differences_fidelity,
            differences=self.differences,
            held_out=self.held_out,
            data=self.data,
            file=self.file,
            sha256=hashlib.sha256(payload).hexdigest(),
        )


def read_map(directory: Path, record: MapRecord, heads: int) -> MapFrom:
    """A map that the manifest of a checkpoint with K = `heads` names.

    Raises:
        CheckpointError: Its file is missing, altered, or not of these shapes; the message names it.
    """
    path = directory / record.file
    tensors = read_tensors(path, record.sha256, hint=f": link the checkpoint to {record.from_name} again")
    try:
        maps = LinearMaps(_pop(tensors, "weights_KK", 2), _pop(tensors, "diffs_KK", 2))
        start = _read_start(tensors)
    except KeyError as error:
        raise CheckpointError(f"{path}: lacks the tensor {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if tensors:
        raise CheckpointError(f"{path}: holds unknown tensors: {', '.join(sorted(tensors))}")
    if maps.diffs_KK.shape != (heads, start.heads):
        raise CheckpointError(
            f"{path}: maps {list(maps.diffs_KK.shape)} do not lead from K = {start.heads} to K = {heads}"
        )
    return MapFrom(
        heads_id=record.from_heads_id,
        checkpoint_id=record.from_checkpoint_id,
        name=record.from_name,
        maps=maps,
        start=start,
        fidelity=Fidelity(record.fidelity, record.fidelity_low),
        differences_fidelity=record.differences_fidelity,
        differences=record.differences,
        held_out=record.held_out,
        data=record.data,
    )


def _read_start(tensors: dict[str, npt.NDArray[Any]]) -> Start:
    if "from_logits_K" in tensors:
        lr, steps = _pop(tensors, "from_inner", 1).tolist()
        return SoftmaxStart(_pop(tensors, "from_logits_K", 1), lr, int(steps))
    (temperature,) = _pop(tensors, "from_temperature", 1).tolist()
    return GaussianStart(_pop(tensors, "from_mean_K", 1), _pop(tensors, "from_precision_KK", 2), temperature)


def _pop(tensors: dict[str, npt.NDArray[Any]], name: str, dimensions: int) -> npt.NDArray[np.float64]:
    tensor = tensors.pop(name)
    if tensor.dtype != np.float64 or tensor.ndim != dimensions:
        raise CheckpointError(f"{name} must be float64 of {dimensions} dimensions, got {tensor.dtype} of {tensor.ndim}")
    return tensor
