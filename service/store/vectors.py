"""Vectors as bytes in a column: little-endian float64, the same on every machine."""

from __future__ import annotations

import numpy as np

from service.store.records import Vector


def to_bytes(vector: Vector) -> bytes:
    """The bytes of a float64 vector."""
    return np.ascontiguousarray(vector, dtype="<f8").tobytes()


def from_bytes(data: bytes) -> Vector:
    """A read-only float64 vector over `data`."""
    return np.frombuffer(data, dtype="<f8").astype(np.float64, copy=False)
