"""Files of tensors beside a manifest that knows their digests."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy.typing as npt
import safetensors
import safetensors.numpy

from service.errors import CheckpointError


def read_tensors(path: Path, sha256: str, *, hint: str = "") -> dict[str, npt.NDArray[Any]]:
    """The tensors of a safetensors file, by name.

    Raises:
        CheckpointError: It cannot be read (`hint` says what to do then), is another file, or is none of that format.
    """
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}){hint}") from error
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise CheckpointError(f"{path}: was altered or belongs to another manifest (its SHA-256 differs)")
    try:
        return safetensors.numpy.load(payload)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: is no safetensors file ({error})") from error
