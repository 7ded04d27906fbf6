"""The weights of a causal decoder as a stream: read tensor by tensor, written in shards, never whole in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from service.backbone.huggingface import ModelSource, quiet_transformers
from service.errors import BackboneError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

SHARD_BYTES: Final = 2 * 2**30
_PREFIX: Final = "model."
_INDEX: Final = "model.safetensors.index.json"
_SINGLE: Final = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor that is not read yet.

    Attributes:
        name: As a `*ForSequenceClassification` model calls it.
        shape: Its shape.
        dtype: What it is written in.
        read: Brings it into memory.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> Weight:
        """A tensor that is in memory already."""
        return cls(name, tuple(tensor.shape), tensor.dtype, tensor.contiguous)

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model's directory.

    Raises:
        BackboneError: It has none.
    """
    if (directory / _INDEX).is_file():
        try:
            named = json.loads((directory / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, AttributeError) as error:
            raise BackboneError(f"{_INDEX} of the backbone {directory.name} cannot be read; fetch it again") from error
        return [directory / name for name in sorted(set(named))]
    if (directory / _SINGLE).is_file():
        return [directory / _SINGLE]
    raise BackboneError(f"the backbone {directory.name} has no {_SINGLE}; save it as safetensors")


def read_safetensors(directory: Path, dtype: torch.dtype | None) -> list[Weight]:
    """The base model's weights in a directory; what else it holds (a language head, a reward head) is left.

    Args:
        directory: Of a base model, or one with a head around it.
        dtype: What to write them in; None for each as it is stored.

    Raises:
        BackboneError: A file is missing or no safetensors.
    """
    import safetensors

    found: list[Weight] = []
    for file in weight_files(directory):
        try:
            with safetensors.safe_open(file, framework="pt") as tensors:
                found += [_stored(file, name, tensors.get_slice(name), dtype) for name in tensors.keys()]  # noqa: SIM118
        except (OSError, safetensors.SafetensorError) as error:
            raise BackboneError(f"{file.name} of the backbone {directory.name} cannot be read: {error}") from error
    found = [weight for weight in found if not weight.name.endswith("rotary_emb.inv_freq")]  # of old files: computed
    if any(weight.name.startswith(_PREFIX) for weight in found):
        return [weight for weight in found if weight.name.startswith(_PREFIX)]
    return [replace(weight, name=_PREFIX + weight.name) for weight in found]


def read_gguf(source: ModelSource, dtype: torch.dtype | None) -> tuple[list[Weight], PretrainedConfig]:
    """The weights of a `.gguf` file, unpacked to float32 or `dtype`, and its config; it is in memory once."""
    import torch
    from transformers import AutoModel

    with quiet_transformers():
        model = AutoModel.from_pretrained(source.location, dtype=dtype or torch.float32, **source.arguments())
    return [Weight.of(_PREFIX + name, tensor) for name, tensor in model.state_dict().items()], model.config


def write_shards(directory: Path, weights: Iterable[Weight], *, shard_bytes: int = SHARD_BYTES) -> int:
    """Write safetensors as transformers does: one file, or several and an index. Holds about two shards in memory.

    Returns:
        Bytes of the tensors.
    """
    from safetensors.torch import save_file

    shards: list[list[Weight]] = [[]]
    for weight in sorted(weights, key=lambda weight: weight.name):
        if shards[-1] and sum(each.bytes for each in shards[-1]) + weight.bytes > shard_bytes:
            shards.append([])
        shards[-1].append(weight)
    total = sum(weight.bytes for shard in shards for weight in shard)
    index: dict[str, Any] = {"metadata": {"total_size": total}, "weight_map": {}}
    for number, shard in enumerate(shards, 1):
        name = _SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({weight.name: weight.read() for weight in shard}, directory / name, metadata={"format": "pt"})
        (directory / name).chmod(0o644)  # it is written for its owner alone; a server runs as somebody else
        index["weight_map"].update({weight.name: name for weight in shard})
    if len(shards) > 1:
        (directory / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return total


def missing_and_extra(weights: Sequence[Weight], expected: dict[str, tuple[int, ...]]) -> tuple[list[str], list[str]]:
    """What a model asks for and the weights lack or have in another shape, and what they have beyond it."""
    have = {weight.name: weight.shape for weight in weights}
    lacking = sorted(name for name, shape in expected.items() if have.get(name) != shape)
    return lacking, sorted(set(have) - set(expected))


def _stored(file: Path, name: str, described: Any, dtype: torch.dtype | None) -> Weight:
    shape = tuple(described.get_shape())
    if not shape:
        raise BackboneError(f"{file.name} holds a tensor {name} of no dimensions, which no plain decoder has")

    def read() -> torch.Tensor:
        import safetensors

        with safetensors.safe_open(file, framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(name)
        return tensor.to(dtype or tensor.dtype).contiguous()

    return Weight(name, shape, dtype or described[0:0].dtype, read)
