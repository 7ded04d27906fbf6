"""A decoder of the Llama family, run over packed rows: Llama, Mistral, Qwen2, Qwen3.

The same arithmetic as transformers' modules, whose weights it takes over, with three differences: rows of a batch are
tokens of a forest (`packing`), not of padded texts; products are fused with what follows them (`linears`); and the last
layer computes queries and MLP only for the tokens whose states are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from service.backbone.executors.attention import Attention, KeyValues
from service.backbone.executors.layout import ends_of, first_pieces, runs_of
from service.backbone.executors.linears import Linear
from service.backbone.packing import TOKEN_BYTES, encode, plan, rows_of
from service.backbone.prefix_cache import Entry, PrefixCache, PrefixCacheStats

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FAMILY: Final = frozenset({"llama", "mistral", "qwen2", "qwen3"})
# Tokens that run at once: bounded by what their activations take. On CUDA the next row is planned while this one runs.
ROW_TOKENS: Final = {"cpu": 16_384, "cuda": 8192}
_PRODUCT: Final = "_proj"

Prefix = list[tuple["Tensor", "Tensor"]]
"""Keys and values [P, key heads, head size] of a prefix, layer by layer."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights; the norms of queries and keys are None where the family has none."""

    input_norm: Tensor
    qkv: Linear
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Linear
    mlp_norm: Tensor
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Shape:
    """Heads of a layer's attention, and how its scores are scaled."""

    query_heads: int
    key_heads: int
    head_size: int
    scale: float
    epsilon: float


def unsupported(model: Any) -> str | None:
    """Why this decoder cannot be run here, in words; None: it can."""
    import torch

    config = model.config
    if config.model_type not in FAMILY:
        return f"its architecture is {config.model_type}"
    if getattr(config, "hidden_act", "") != "silu":
        return f"its activation is {config.hidden_act}"
    if windowed(model):
        return "some of its layers see a window only"
    if any(type(product) is not torch.nn.Linear for layer in model.layers for product in _products(layer)):
        return "its weights are quantised"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") not in {"default", "llama3", "linear", "yarn"}:
        return f"its positions are {rope['rope_type']}"  # depend on the longest text of the batch
    if model.rotary_emb.inv_freq.numel() * 2 != model.layers[0].self_attn.head_dim:
        return "its positions turn part of each head"
    return None


def windowed(model: Any) -> bool:
    """Whether some layers see a window only, which a mask of ours would widen."""
    layers = getattr(model.config, "layer_types", None)
    if layers is None:
        return bool(getattr(model.config, "sliding_window", None))
    return any(kind != "full_attention" for kind in layers)


class PackedDecoder:
    """Hidden states of texts, common prefixes computed once, also those of earlier batches."""

    name = "packed"
    shares_prefixes = True

    def __init__(
        self,
        model: Any,
        linear: Callable[[Tensor, Tensor | None], Linear],
        attention: Attention,
        cache: PrefixCache[Prefix],
        *,
        compiled: bool = False,
    ) -> None:
        """Take over the weights of a transformers model of the `FAMILY`, which is of no use afterwards.

        Args:
            model: The base model (without a head), in evaluation mode on its device.
            linear: Makes a product of a weight [O, I] and a bias.
            attention: How queries meet keys.
            cache: Where prefixes are kept between batches.
            compiled: Whether torch.compile fuses what lies between the products; the first batches take seconds then.
        """
        first = model.layers[0].self_attn
        config = model.config
        self.attention = attention
        self.cache = cache
        self.shape = Shape(
            query_heads=int(config.num_attention_heads),
            key_heads=int(config.num_key_value_heads),
            head_size=int(first.head_dim),
            scale=float(first.scaling),
            epsilon=float(config.rms_norm_eps),
        )
        self.compile(compiled)
        self._embedding = model.embed_tokens.weight.detach()
        self._norm = model.norm.weight.detach()
        numbers = 2 * len(model.layers) * self.shape.key_heads * self.shape.head_size
        self._token_bytes = numbers * self._embedding.element_size()  # keys and values of a token, of all layers
        self._rotary = model.rotary_emb
        self._layers: list[Layer] = []
        for module in model.layers:
            self._layers.append(_layer(module, linear))
            for part in (module.self_attn, module.mlp):
                for name in [name for name, _ in part.named_children() if name.endswith(_PRODUCT)]:
                    delattr(part, name)  # layer by layer, or an 8B model would be in memory twice

    def compile(self, compiled: bool) -> None:
        """Whether torch.compile fuses what lies between the products, from now on."""
        import torch

        self._turn: Any = torch.compile(turn, dynamic=True) if compiled else turn
        self._gated: Any = torch.compile(gated, dynamic=True) if compiled else None

    def forward(self, texts: Sequence[Sequence[int]], scopes: Sequence[bytes] | None = None) -> torch.Tensor:
        """[B, D] float32 hidden states of the texts' last tokens, after the final norm."""
        import torch

        hidden_BD = torch.empty(len(texts), self._embedding.shape[1], device=self._embedding.device)
        keys = [encode(text) for text in texts]
        whose = scopes or [b""] * len(texts)
        rows = rows_of(keys, whose, ROW_TOKENS[self._embedding.device.type])
        with torch.inference_mode():
            # Indices go to the device at a row's start only: such a copy waits for all that runs there.
            states = [
                self._row([texts[i] for i in row], [keys[i] for i in row], [whose[i] for i in row]) for row in rows
            ]
            hidden_BD[[index for row in rows for index in row]] = torch.cat(states)
        return hidden_BD

    @property
    def prefixes(self) -> PrefixCacheStats:
        """What it keeps of prefixes between batches."""
        return self.cache.stats

    def release_memory(self) -> None:
        """Let go of everything that can be computed again."""
        self.cache.clear()

    def _row(self, texts: Sequence[Sequence[int]], keys: Sequence[bytes], scopes: Sequence[bytes]) -> Tensor:
        import torch

        found = [self.cache.find(key, scope) for key, scope in zip(keys, scopes, strict=True)]
        sources: dict[int, int] = {}
        prefixes: list[Entry[Prefix]] = []
        for entry in found:
            if entry is not None and id(entry) not in sources:
                sources[id(entry)] = len(prefixes)
                prefixes.append(entry)
        source_of = [-1 if entry is None else sources[id(entry)] for entry in found]
        known = [0 if entry is None else entry.tokens for entry in found]
        packed = plan(keys, list(zip(scopes, source_of, strict=True)), known)
        runs = runs_of(packed, source_of, known)
        ends, row_of_text = ends_of(packed, runs)
        kept = self._kept(keys, scopes, known)

        device = self._embedding.device
        ids_T = torch.tensor(packed.token_ids(texts), device=device)
        positions_T = torch.tensor(packed.positions(), device=device)
        x_TD = self._embedding[ids_T]
        cos_T1D, sin_T1D = self._angles(x_TD, positions_T)
        attend = self.attention.prepare(runs, [entry.tokens for entry in prefixes], packed.tokens, device)
        attend_ends = self.attention.prepare(ends, [entry.tokens for entry in prefixes], packed.tokens, device)
        last_T = (
            torch.tensor([run.stop for run in (runs[s] for s in dict.fromkeys(packed.segment_of))], device=device) - 1
        )
        text_B = torch.tensor(row_of_text, device=device)  # before the layers: see `forward`
        kept_layers: list[Prefix] = [[] for _ in kept]
        for index, layer in enumerate(self._layers):
            query, key, value = self._queries_keys_values(layer, x_TD, cos_T1D, sin_T1D)
            held = KeyValues([entry.payload[index] for entry in prefixes], (key, value))
            for (text, tokens), layers in zip(kept, kept_layers, strict=True):
                layers.append(held.gather(first_pieces(runs[packed.segment_of[text]].pieces, tokens)))
            if index == len(self._layers) - 1:
                x_TD, query, attend = x_TD[last_T], query[last_T], attend_ends
            attended_TD = attend(query, held, self.shape.scale)
            x_TD = layer.output.plus(attended_TD, x_TD)
            normed_TD = self._rms(x_TD, layer.mlp_norm)
            if self._gated is None:
                wide = layer.up.times(normed_TD, layer.gate.silu(normed_TD))
            else:
                wide = self._gated(layer.gate(normed_TD), layer.up(normed_TD))
            x_TD = layer.down.plus(wide, x_TD)
        for (text, tokens), layers in zip(kept, kept_layers, strict=True):
            nbytes = sum(tensor.nbytes for pair in layers for tensor in pair)
            self.cache.put(keys[text], scopes[text], tokens, layers, nbytes)
        return self._rms(x_TD, self._norm)[text_B].float()

    def _kept(self, keys: Sequence[bytes], scopes: Sequence[bytes], known: Sequence[int]) -> list[tuple[int, int]]:
        """Texts whose first tokens are worth keeping, and how many; each prefix once.

        No more than the cache holds, the last ones where it cannot hold all: each is a copy of its whole path, and the
        turns of one long conversation together have a hundred times its tokens.
        """
        kept: dict[tuple[bytes, bytes], tuple[int, int]] = {}
        for text, (key, scope) in enumerate(zip(keys, scopes, strict=True)):
            tokens = self.cache.worth_keeping(key, scope, known[text])
            if tokens:
                kept[scope, key[: tokens * TOKEN_BYTES]] = (text, tokens)
        fitting: list[tuple[int, int]] = []
        room = self.cache.max_bytes // self._token_bytes
        for text, tokens in reversed(kept.values()):
            if tokens <= room:
                fitting.append((text, tokens))
                room -= tokens
        return fitting[::-1]

    def _angles(self, x_TD: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every token's angles [T, 1, head size / 2]."""
        half = self.shape.head_size // 2
        cos, sin = self._rotary(x_TD[None], positions_T[None])
        return cos[0, :, None, :half], sin[0, :, None, :half]

    def _queries_keys_values(
        self, layer: Layer, x_TD: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[T, heads, head size] of queries, keys (both turned by their positions) and values."""
        shape = self.shape
        heads = layer.qkv(self._rms(x_TD, layer.input_norm)).view(len(x_TD), -1, shape.head_size)
        query, key = self._turn(
            heads, shape.query_heads, shape.key_heads, cos, sin, layer.query_norm, layer.key_norm, shape.epsilon
        )
        return query, key, heads[:, -shape.key_heads :]

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        import torch

        return torch.nn.functional.rms_norm(x, weight.shape, weight, self.shape.epsilon)


def turn(
    heads: Tensor,
    query_heads: int,
    key_heads: int,
    cos: Tensor,
    sin: Tensor,
    query_norm: Tensor | None,
    key_norm: Tensor | None,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    """Queries and keys of [T, heads, head size], normed where the family does, turned by their positions (RoPE)."""
    import torch

    both = heads[:, : query_heads + key_heads]
    if query_norm is not None and key_norm is not None:
        rms_norm = torch.nn.functional.rms_norm
        query = rms_norm(both[:, :query_heads], query_norm.shape, query_norm, epsilon)
        both = torch.cat([query, rms_norm(both[:, query_heads:], key_norm.shape, key_norm, epsilon)], dim=1)
    left, right = both.chunk(2, dim=-1)
    both = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
    return both[:, :query_heads], both[:, query_heads:]


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU of the gate, times what it lets through."""
    import torch

    return torch.nn.functional.silu(gate) * up


def _products(module: Any) -> list[Any]:
    """A layer's products with weights, by the names that the family gives them."""
    return [part for name, part in module.named_modules() if name.endswith(_PRODUCT)]


def _layer(module: Any, linear: Callable[[Tensor, Tensor | None], Linear]) -> Layer:
    attention, mlp = module.self_attn, module.mlp
    query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    return Layer(
        input_norm=module.input_layernorm.weight.detach(),
        qkv=_joined([attention.q_proj, attention.k_proj, attention.v_proj], linear),
        query_norm=None if query_norm is None else query_norm.weight.detach(),
        key_norm=None if key_norm is None else key_norm.weight.detach(),
        output=_joined([attention.o_proj], linear),
        mlp_norm=module.post_attention_layernorm.weight.detach(),
        gate=_joined([mlp.gate_proj], linear),
        up=_joined([mlp.up_proj], linear),
        down=_joined([mlp.down_proj], linear),
    )


def _joined(modules: Sequence[Any], linear: Callable[[Tensor, Tensor | None], Linear]) -> Linear:
    """Several products of the same input as one."""
    import torch

    weights = [module.weight.detach() for module in modules]
    biases = [module.bias.detach() for module in modules if module.bias is not None]
    weight_OI = weights[0] if len(weights) == 1 else torch.cat(weights)
    return linear(weight_OI, torch.cat(biases) if biases else None)
