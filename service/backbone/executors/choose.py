"""Which executor serves a model on a device: by what it can run, by whether it is right, then by measurement.

Whatever is chosen has scored probe texts as transformers scores each of them alone; a form that is wrong on this
device, or fails on it, is never used, and the log says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from service.backbone.executors.attention import (
    Attention,
    FlexAttention,
    MaskedAttention,
    PathAttention,
    VarlenAttention,
)
from service.backbone.executors.decoder import PackedDecoder, unsupported, windowed
from service.backbone.executors.linears import linear_for
from service.backbone.executors.transformer import MaskedTransformer, PaddedTransformer
from service.backbone.prefix_cache import PrefixCache, PrefixCacheStats
from service.backbone.protocol import Dtype
from service.errors import BackboneError

if TYPE_CHECKING:
    import torch

ExecutorName = Literal["auto", "packed", "masked", "padded"]
AttentionName = Literal["auto", "path", "masked", "flex", "varlen", "paged"]

# Largest difference of a probe text's hidden state from transformers' own, relative to the state's norm. Measured with
# random Llama and Qwen3 models and SmolLM2-135M: float32 1.5e-6, bfloat16 1.7e-2; a wrong mask or position gives 0.1
# or more. float8 is compared with bfloat16, from which it differs as float8 does.
TOLERANCES: Final[dict[Dtype, float]] = {"float32": 1e-3, "bfloat16": 0.08, "float8": 0.3}
_PAGE: Final = 256
_TIMED_ROUNDS: Final = 3

_log = logging.getLogger(__name__)


class Executor(Protocol):
    """Token ids to hidden states on one device; see `service.backbone.protocol.Backbone.forward`."""

    @property
    def name(self) -> str:
        """What settings and logs call it."""
        ...

    @property
    def shares_prefixes(self) -> bool:
        """Whether a common prefix is computed once."""
        ...

    @property
    def prefixes(self) -> PrefixCacheStats | None:
        """What it keeps of prefixes between batches; None where it keeps nothing."""
        ...

    def forward(self, texts: Sequence[Sequence[int]], scopes: Sequence[bytes] | None = None) -> torch.Tensor:
        """[B, D] float32."""
        ...

    def release_memory(self) -> None:
        """Let go of everything that can be computed again."""
        ...


@dataclass(frozen=True, slots=True)
class ExecutorOptions:
    """How to run a decoder.

    Attributes:
        executor: ``packed`` (own kernels, prefixes kept between batches), ``masked`` (transformers under a 4-D mask),
            ``padded``; ``auto`` takes the first of them that can run the model and is right.
        attention: The packed executor's; ``auto`` takes ``path`` on a CPU and the fastest measured on CUDA.
        prefix_cache_bytes: What prefixes may take between batches; 0 keeps none.
    """

    executor: ExecutorName = "auto"
    attention: AttentionName = "auto"
    prefix_cache_bytes: int = 0


def choose_executor(load: Callable[[], Any], device: str, dtype: Dtype, options: ExecutorOptions) -> Executor:
    """An executor that is right on this device.

    Args:
        load: Loads the base model (without a head) with sdpa attention onto the device, in bfloat16 for float8.
        device: Where it is.
        dtype: What is computed in.
        options: What the settings ask for.

    Raises:
        BackboneError: What was asked for by name cannot run this model, or is wrong here.
    """
    import torch

    model = load()
    probes = list(_probes(int(model.config.vocab_size)))
    alone = PaddedTransformer(model)
    expected = torch.cat([alone.forward([probe]) for probe in probes])
    reason = unsupported(model)
    if dtype == "float8" and options.executor not in ("auto", "packed"):
        raise BackboneError(f"dtype float8 needs the packed executor; set EXECUTOR={options.executor} to auto")
    if dtype == "float8" and reason is not None:
        raise BackboneError(
            f"dtype float8 needs the packed executor, which does not run this model, because {reason}; "
            "set DTYPE to bfloat16"
        )
    if options.executor in ("auto", "packed"):
        if reason is None:
            packed = _packed(model, device, dtype, options, probes, expected)
            if packed is not None:
                return packed
            if dtype == "float8":
                raise BackboneError("float8 products are wrong on this device (see the log); set DTYPE to bfloat16")
            if options.executor == "packed":
                raise BackboneError("the packed executor is wrong on this device; set EXECUTOR=auto and see the log")
            model = load()  # its weights were taken over
        elif options.executor == "packed":
            raise BackboneError(f"EXECUTOR=packed does not run this model, because {reason}; set EXECUTOR=auto")
        else:
            _log.info("the packed executor does not run this model, because %s", reason)
    if options.executor != "padded" and not windowed(model):
        masked = MaskedTransformer(model)
        if _difference(masked.forward(probes), expected) <= TOLERANCES[dtype]:
            return masked
        _log.warning("transformers' own model is wrong under a packed mask; texts will be padded")
    if options.executor == "masked":
        raise BackboneError("EXECUTOR=masked is wrong for this model; set EXECUTOR=auto")
    return PaddedTransformer(model)


def _packed(
    model: Any,
    device: str,
    dtype: Dtype,
    options: ExecutorOptions,
    probes: Sequence[Sequence[int]],
    expected: torch.Tensor,
) -> PackedDecoder | None:
    """The packed executor with the fastest attention that is right here; None: none is."""
    cuda = device.startswith("cuda")
    decoder = PackedDecoder(
        model,
        linear_for(device, dtype),
        PathAttention(),
        PrefixCache(options.prefix_cache_bytes),
        compiled=cuda,
    )
    candidates = _candidates(options.attention, cuda)
    fastest = _fastest(decoder, candidates, device, dtype, probes, expected)
    if fastest is None and cuda:
        _log.warning("no attention was right; trying again without torch.compile")
        decoder.compile(False)
        fastest = _fastest(decoder, candidates, device, dtype, probes, expected)
    if fastest is None:
        return None
    decoder.attention = fastest
    decoder.cache = PrefixCache(options.prefix_cache_bytes)  # counts and remembers no probes
    return decoder


def _fastest(
    decoder: PackedDecoder,
    candidates: Sequence[Attention],
    device: str,
    dtype: Dtype,
    probes: Sequence[Sequence[int]],
    expected: torch.Tensor,
) -> Attention | None:
    """The attention that takes the least time among those that are right; None: none is."""
    best: tuple[float, Attention] | None = None
    for attention in candidates:
        decoder.attention = attention
        try:
            # Twice, because the second time finds the prefixes of the first.
            difference = max(_difference(decoder.forward(probes), expected) for _ in range(2))
            seconds = _seconds(decoder, device) if len(candidates) > 1 else 0.0
        except Exception as error:  # of a kernel or a compiler that this device or version lacks
            _log.warning("attention %s does not run here (%s)", attention.name, type(error).__name__, exc_info=True)
            continue
        finally:
            decoder.release_memory()
        if difference > TOLERANCES[dtype]:
            _log.warning("attention %s is wrong here: %.1e from transformers", attention.name, difference)
            continue
        timed = f", {1e3 * seconds:.1f} ms for best of 16" if seconds else ""
        _log.info("attention %s: %.1e from transformers%s", attention.name, difference, timed)
        if best is None or seconds < best[0]:
            best = seconds, attention
    return None if best is None else best[1]


def _candidates(name: AttentionName, cuda: bool) -> list[Attention]:
    every: dict[str, Callable[[], Attention]] = {
        "varlen": VarlenAttention,
        "paged": lambda: VarlenAttention(_PAGE),
        "flex": FlexAttention,
        "masked": MaskedAttention,
        "path": PathAttention,
    }
    if name != "auto":
        return [every[name]()]
    return [make() for make in every.values()] if cuda else [PathAttention()]


def _probes(vocab_size: int) -> Iterator[list[int]]:
    """Texts that share prefixes at several depths, repeat, end inside one another, or stand alone."""
    import numpy as np

    generator = np.random.default_rng(0)

    def run(tokens: int) -> list[int]:
        return [int(token) for token in generator.integers(0, vocab_size, tokens)]

    prompt = run(40)
    turn = prompt + run(20)
    yield from (prompt + run(12), prompt + run(30), turn + run(5), turn + run(25), turn, prompt, run(1), run(50), turn)


def _seconds(decoder: PackedDecoder, device: str) -> float:
    """The fastest of a few rounds of best-of-n work: 4 prompts of 300 tokens, 16 completions of 100 each."""
    import torch

    prompts = [[1 + prompt] * 300 for prompt in range(4)]
    texts = [prompts[i % 4] + [100 + i] * 100 for i in range(64)]
    best = float("inf")
    for _ in range(_TIMED_ROUNDS):
        decoder.release_memory()
        started = time.perf_counter()
        decoder.forward(texts)
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return best


def _difference(hidden_BD: torch.Tensor, expected_BD: torch.Tensor) -> float:
    """The largest distance of a text's state from what is expected, relative to the norm; NaN counts as infinite."""
    relative_B = (hidden_BD - expected_BD).norm(dim=1) / expected_BD.norm(dim=1)
    return float(relative_B.nan_to_num(float("inf")).max())
