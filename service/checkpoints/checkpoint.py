"""A checkpoint: K base reward heads on a named backbone, and the start from which users are adapted.

On disk it is a directory of two files, `heads.safetensors` and `manifest.json`. Reading is strict: a field too many,
a shape, a digest or a number that is not finite refuses the whole checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from pydantic import ValidationError

from service.checkpoints.manifest import FORMAT_VERSION, LINKED_FORMAT_VERSION, BackboneIdentity, Golden, Manifest
from service.checkpoints.maps import MapFrom, read_map
from service.checkpoints.tensors import read_tensors
from service.errors import CheckpointError
from service.mrm import GaussianStart, SoftmaxStart, Start

TENSORS_FILE = "heads.safetensors"
MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """Base reward heads, start and provenance.

    Attributes:
        name: Short name, shown to clients.
        backbone: Identity of the backbone that the heads belong to.
        A_KD: Heads, float32 [K, D]: base rewards = A h + b.
        b_K: Biases, float32 [K].
        start: Start of the recipe; its type names the recipe.
        golden: Recorded base rewards of the golden texts, or None.
        training: How it was made, JSON-able.
        maps: From which other heads on the backbone users are carried to these; they change no id.
    """

    name: str
    backbone: BackboneIdentity
    A_KD: npt.NDArray[np.float32]
    b_K: npt.NDArray[np.float32]
    start: Start
    golden: Golden | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    maps: tuple[MapFrom, ...] = ()

    def __post_init__(self) -> None:
        heads, hidden_size = self.start.heads, self.backbone.hidden_size
        if self.A_KD.shape != (heads, hidden_size) or self.b_K.shape != (heads,):
            raise CheckpointError(
                f"expected heads [{heads}, {hidden_size}] and biases [{heads}], "
                f"got {list(self.A_KD.shape)} and {list(self.b_K.shape)}"
            )
        if self.A_KD.dtype != np.float32 or self.b_K.dtype != np.float32:
            raise CheckpointError("heads and biases must be float32")
        if not (np.isfinite(self.A_KD).all() and np.isfinite(self.b_K).all()):
            raise CheckpointError("heads hold numbers that are not finite")
        if self.golden is not None and any(len(row) != heads for row in self.golden.base_rewards):
            raise CheckpointError(f"golden base rewards must have {heads} numbers each")
        if len({each.heads_id for each in self.maps}) != len(self.maps):
            raise CheckpointError("two maps lead from the same heads")

    @property
    def heads(self) -> int:
        """K."""
        return self.start.heads

    @property
    def recipe(self) -> str:
        """`map` or `softmax_adam`."""
        return "map" if isinstance(self.start, GaussianStart) else "softmax_adam"

    @cached_property
    def heads_id(self) -> str:
        """Digest of what decides base rewards: heads, biases, backbone, template. Equal ids, equal base rewards."""
        digest = hashlib.sha256()
        for part in (self.backbone.fingerprint, self.backbone.template_id):
            digest.update(part.encode() + b"\0")
        digest.update(_little_endian(self.A_KD, "<f4") + _little_endian(self.b_K, "<f4"))
        return digest.hexdigest()

    @cached_property
    def checkpoint_id(self) -> str:
        """Digest of what decides rewards: the base rewards' id and the start (16 hex digits)."""
        digest = hashlib.sha256(self.heads_id.encode())
        for name, tensor in sorted(_start_tensors(self.start).items()):
            digest.update(name.encode() + _little_endian(tensor, "<f8"))
        digest.update(json.dumps(_start_numbers(self.start), sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def save(self, directory: Path) -> None:
        """Write the two files and the maps; each appears whole or not at all, the manifest last."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {"A_KD": self.A_KD, "b_K": self.b_K, **_start_tensors(self.start)}
        payload = safetensors.numpy.save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
        maps = [(each, each.payload()) for each in self.maps]
        manifest = Manifest(
            format_version=LINKED_FORMAT_VERSION if maps else FORMAT_VERSION,
            name=self.name,
            recipe=self.recipe,
            heads=self.heads,
            backbone=self.backbone,
            heads_id=self.heads_id,
            tensors_sha256=hashlib.sha256(payload).hexdigest(),
            golden=self.golden,
            maps=[each.record(written) for each, written in maps] or None,
            training=dict(self.training),
            **_start_numbers(self.start),
        )
        _replace(directory / TENSORS_FILE, payload)
        for each, written in maps:
            _replace(directory / each.file, written)
        _replace(directory / MANIFEST_FILE, (manifest.model_dump_json(indent=1, exclude_none=True) + "\n").encode())


def load_checkpoint(directory: Path) -> Checkpoint:
    """Read and verify a checkpoint directory.

    Raises:
        CheckpointError: It is missing, altered, of another format, or inconsistent; the message names the file.
    """
    manifest = read_manifest(directory)
    path = directory / TENSORS_FILE
    tensors = read_tensors(path, manifest.tensors_sha256)
    try:
        start = _read_start(manifest, tensors)
        checkpoint = Checkpoint(
            name=manifest.name,
            backbone=manifest.backbone,
            A_KD=tensors.pop("A_KD"),
            b_K=tensors.pop("b_K"),
            start=start,
            golden=manifest.golden,
            training=manifest.training,
            maps=tuple(read_map(directory, record, manifest.heads) for record in manifest.maps or ()),
        )
    except KeyError as error:
        raise CheckpointError(f"{path}: lacks the tensor {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if tensors:
        raise CheckpointError(f"{path}: holds unknown tensors: {', '.join(sorted(tensors))}")
    if checkpoint.heads != manifest.heads or checkpoint.heads_id != manifest.heads_id:
        raise CheckpointError(f"{directory}: the manifest's heads and heads_id are not those of the tensors")
    return checkpoint


def read_manifest(directory: Path) -> Manifest:
    """Read only the manifest of a checkpoint directory.

    Raises:
        CheckpointError: It is missing or does not fit the format.
    """
    path = directory / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); is this a checkpoint directory?") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise CheckpointError(f"{path}: {problems}") from error


def _read_start(manifest: Manifest, tensors: dict[str, npt.NDArray[Any]]) -> Start:
    if manifest.recipe == "map":
        if manifest.temperature is None or manifest.inner_lr is not None or manifest.inner_steps is not None:
            raise CheckpointError("recipe `map` needs `temperature` and has no `inner_lr` or `inner_steps`")
        return GaussianStart(
            _pop_float64(tensors, "start_mean_K", 1),
            _pop_float64(tensors, "prior_precision_KK", 2),
            manifest.temperature,
            manifest.rating_gain,
        )
    if manifest.rating_gain is not None:
        raise CheckpointError("recipe `softmax_adam` has no `rating_gain`")
    if manifest.inner_lr is None or manifest.inner_steps is None or manifest.temperature is not None:
        raise CheckpointError("recipe `softmax_adam` needs `inner_lr` and `inner_steps` and has no `temperature`")
    return SoftmaxStart(_pop_float64(tensors, "start_logits_K", 1), manifest.inner_lr, manifest.inner_steps)


def _pop_float64(tensors: dict[str, npt.NDArray[Any]], name: str, dimensions: int) -> npt.NDArray[np.float64]:
    tensor = tensors.pop(name)
    if tensor.dtype != np.float64 or tensor.ndim != dimensions:
        raise CheckpointError(f"{name} must be float64 of {dimensions} dimensions, got {tensor.dtype} of {tensor.ndim}")
    return tensor


def _start_tensors(start: Start) -> dict[str, npt.NDArray[np.float64]]:
    if isinstance(start, SoftmaxStart):
        return {"start_logits_K": start.logits_K}
    return {"start_mean_K": start.mean_K, "prior_precision_KK": start.precision_KK}


def _start_numbers(start: Start) -> dict[str, Any]:
    if isinstance(start, SoftmaxStart):
        return {"inner_lr": start.inner_lr, "inner_steps": start.inner_steps}
    numbers = {"temperature": start.temperature}
    # left out where there is none: such a checkpoint keeps the id that it had before ratings were known
    return numbers if start.rating_gain is None else {**numbers, "rating_gain": start.rating_gain}


def _little_endian(tensor: npt.NDArray[Any], dtype: str) -> bytes:
    return np.ascontiguousarray(tensor).astype(dtype).tobytes()


def _replace(path: Path, payload: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(payload)
    temporary.replace(path)
