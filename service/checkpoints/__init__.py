"""Checkpoints: base reward heads, start and provenance, strict on reading."""

from service.checkpoints.checkpoint import Checkpoint, load_checkpoint, read_manifest
from service.checkpoints.manifest import BackboneIdentity, Golden, Manifest
from service.checkpoints.maps import MapFrom

__all__ = ["BackboneIdentity", "Checkpoint", "Golden", "Manifest", "MapFrom", "load_checkpoint", "read_manifest"]
