"""From a setting's words to a backbone: which implementation, which device, which dtype."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Final, cast, get_args

from service.backbone.executors.choose import ExecutorOptions
from service.backbone.protocol import Backbone, Dtype, Renderer
from service.errors import BackboneError

MINILM: Final = "minilm"
AUTO: Final = "auto"
DEFAULT_OPTIONS: Final = ExecutorOptions(prefix_cache_bytes=512 << 20)


def load_backbone(
    name: str,
    *,
    device: str = AUTO,
    dtype: str = AUTO,
    max_tokens: int | None = None,
    options: ExecutorOptions = DEFAULT_OPTIONS,
) -> Backbone:
    """Load a backbone, ready to run.

    Args:
        name: ``minilm`` (the embedded default), a Hugging Face id, a model's directory, or a ``.gguf`` file.
        device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``: CUDA where there is one.
        dtype: ``float32``, ``bfloat16``, ``float8``, or ``auto``: float32 on a CPU and for MiniLM, else bfloat16.
        max_tokens: The longest text, in tokens. None for the backbone's default (512 for MiniLM, else 4096);
            a backbone that reads fewer keeps its own limit, which `spec.max_tokens` tells.
        options: How a decoder runs; MiniLM has one way only.

    Raises:
        BackboneError: Unknown device or dtype, or a model that cannot be loaded. The message says what to set.
    """
    _check_max_tokens(max_tokens)
    _require_torch()
    _let_waiting_threads_sleep()
    place = _device(device)
    number = _dtype(dtype, name, place)
    if name == MINILM:
        from service.backbone.minilm import MiniLM

        return MiniLM(device=place, dtype=number, max_tokens=max_tokens)
    from service.backbone.huggingface import HuggingFaceBackbone

    return HuggingFaceBackbone(name, device=place, dtype=number, max_tokens=max_tokens, options=options)


def load_renderer(name: str, *, max_tokens: int | None = None) -> Renderer:
    """Only the half that turns text into token ids: no weights, and no torch needed.

    Raises:
        BackboneError: Not found, or no chat template.
    """
    _check_max_tokens(max_tokens)
    if name == MINILM:
        from service.backbone.minilm import MiniLMRenderer, minilm_directory

        return MiniLMRenderer(minilm_directory(), max_tokens)
    from service.backbone.huggingface import ModelSource, load_chat_renderer

    return load_chat_renderer(ModelSource.of(name), max_tokens)


def _check_max_tokens(max_tokens: int | None) -> None:
    if max_tokens is not None and max_tokens < 3:
        raise BackboneError(f"max_tokens is {max_tokens}; a text has at least 3 tokens with its special ones")


def _require_torch() -> None:
    if find_spec("torch") is None:
        raise BackboneError(
            "a backbone needs torch, which is not installed here: set ENGINE_URL to a `metareward worker`, or install "
            "metareward[minilm] (for the embedded MiniLM) or metareward[torch]"
        )


def _let_waiting_threads_sleep() -> None:
    """Keep OpenMP's threads from spinning while they wait, unless the environment says otherwise.

    Spinning burns the core that the thread it waits for needs: with both of two cores shared with other work, MiniLM
    did 5 to 7 texts a second spinning and 27 to 29 sleeping. OpenMP reads this when torch is first imported; after that
    it changes nothing.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _device(device: str) -> str:
    import torch

    kind = device.partition(":")[0]
    if kind not in {AUTO, "cpu", "cuda"}:
        raise BackboneError(f"device is {device!r}; set it to auto, cpu, cuda or cuda:N")
    if device == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise BackboneError(f"device is {device!r}, but torch {torch.__version__} sees no CUDA; set device to cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise BackboneError(f"device is {device!r}; set it to auto, cpu, cuda or cuda:N") from None
    if kind == "cuda" and place.index is not None and place.index >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise BackboneError(f"device is {device!r}, but the last CUDA device here is cuda:{last}; set device to it")
    if kind == "cpu" and place.index:
        raise BackboneError(f"device is {device!r}; a machine has one cpu: set device to cpu")
    return device


def _dtype(dtype: str, name: str, device: str) -> Dtype:
    if dtype == AUTO:
        return "float32" if name == MINILM or device == "cpu" else "bfloat16"
    if dtype not in get_args(Dtype):
        raise BackboneError(f"dtype is {dtype!r}; set it to auto, float32, bfloat16 or float8")
    if dtype == "float8":
        _require_float8(name, device)
    return cast(Dtype, dtype)


def _require_float8(name: str, device: str) -> None:
    import torch

    if name == MINILM or device == "cpu" or torch.cuda.get_device_capability(device) < (8, 9):
        raise BackboneError(
            "dtype float8 needs a decoder on a CUDA device with float8 products (Ada, Hopper or newer); "
            "set DTYPE to bfloat16"
        )
