"""What makes two backbones the same: a hash of everything that determines their hidden states.

Reading 16 GB at every start would cost minutes, so large tensors are sampled: 16 windows, evenly spread, 256 KiB in
all. Training changes nearly every number of every tensor, so two models of different training differ; an edit of a few
numbers between the windows of a large tensor is not seen (a file that was damaged that way fails the golden texts).
An 8B model costs about 75 MB of reads. The reading goes by tensor name, so splitting the same tensors into other files
changes nothing; nor does the dtype that a server computes in, its device, or the folder's name.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from service.errors import BackboneError

_WINDOWS: Final = 16
_SAMPLED_BYTES_PER_TENSOR: Final = 256 * 1024
_SAMPLED_BYTES_PER_GGUF: Final = 64 * 1024 * 1024

# Bookkeeping and the classification head: neither changes a hidden state, so a checkpoint that was exported into its
# backbone's own format (K labels, another pad id) still has the backbone's fingerprint.
_CONFIG_KEYS_WITHOUT_EFFECT: Final = frozenset(
    {
        "_name_or_path", "architectures", "dtype", "id2label", "label2id", "num_labels", "pad_token_id",
        "problem_type", "torch_dtype", "transformers_version", "use_cache",
    }
)  # fmt: skip
_HEAD_PREFIX: Final = "score."


def fingerprint_safetensors(config: Path, weights: Iterable[Path], rendering: str) -> str:
    """SHA-256 (hex) of a model kept as safetensors.

    Args:
        config: Its `config.json`.
        weights: Its safetensors files, in any order.
        rendering: Digest of tokenizer and template (`Renderer.template_id` or longer).

    Raises:
        BackboneError: A file is not what its name says.
    """
    digest = hashlib.sha256(b"metareward-backbone-1\0")
    digest.update(rendering.encode() + b"\0")
    digest.update(_canonical_config(config).encode() + b"\0")
    tensors = {name: (file, info) for file in weights for name, info in _read_header(file).items()}
    if not tensors:
        raise BackboneError(f"{config.parent.name}: no safetensors weights found beside config.json")
    for name in sorted(tensors):
        if name.startswith(_HEAD_PREFIX):
            continue
        file, (dtype, shape, begin, end) = tensors[name]
        digest.update(json.dumps([name, dtype, shape, end - begin]).encode() + b"\0")
        _hash_sample(digest, file, begin, end, _SAMPLED_BYTES_PER_TENSOR)
    return digest.hexdigest()


def fingerprint_gguf(file: Path, rendering: str) -> str:
    """SHA-256 (hex) of a model kept as one GGUF file: its size and 64 MiB of it (all of a smaller one)."""
    size = file.stat().st_size
    digest = hashlib.sha256(f"metareward-backbone-gguf-1\0{rendering}\0{size}\0".encode())
    _hash_sample(digest, file, 0, size, _SAMPLED_BYTES_PER_GGUF)
    return digest.hexdigest()


def _canonical_config(config: Path) -> str:
    try:
        fields: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{config.parent.name}/config.json cannot be read: {error}") from error
    kept = {key: value for key, value in fields.items() if key not in _CONFIG_KEYS_WITHOUT_EFFECT}
    return json.dumps(kept, sort_keys=True)


def _read_header(file: Path) -> dict[str, tuple[str, list[int], int, int]]:
    """Name -> (dtype, shape, first byte, end byte within the file) of each tensor of a safetensors file."""
    try:
        stream = file.open("rb")
    except OSError as error:
        raise BackboneError(f"{file.name} cannot be read: {error.strerror}") from error
    with stream:
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size - 8:
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
        except (struct.error, ValueError, RecursionError) as error:
            raise BackboneError(f"{file.name} is not a safetensors file: {error}") from error
    start = 8 + length
    try:
        tensors = {
            name: (str(info["dtype"]), list(info["shape"]), *_offsets(info, start))
            for name, info in header.items()
            if name != "__metadata__"
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BackboneError(f"{file.name} is not a safetensors file: its header does not describe tensors") from error
    size = file.stat().st_size
    for name, (_, _, begin, end) in tensors.items():
        if not start <= begin <= end <= size:
            raise BackboneError(f"{file.name} is not whole: tensor {name!r} lies outside the file; fetch it again")
    return tensors


def _offsets(info: dict[str, Any], start: int) -> tuple[int, int]:
    begin, end = info["data_offsets"]
    if not (isinstance(begin, int) and isinstance(end, int)):
        raise TypeError("offsets that are no integers")
    return start + begin, start + end


def _hash_sample(digest: hashlib._Hash, file: Path, begin: int, end: int, budget: int) -> None:
    """Feed the bytes [begin, end) of `file` into `digest`: all of up to `budget`, else evenly spread windows."""
    if begin == end:
        return
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if end - begin <= budget:
            digest.update(data[begin:end])
            return
        window = budget // _WINDOWS
        for index in range(_WINDOWS):
            at = begin + (end - begin - window) * index // (_WINDOWS - 1)
            digest.update(data[at : at + window])
