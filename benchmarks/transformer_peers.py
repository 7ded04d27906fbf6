"""What people score the n candidates of a prompt with today, on plain transformers. Token ids in, hidden states out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from service.backbone.packing import common_tokens, encode

Texts = Sequence[Sequence[int]]
Score = Callable[[Texts], torch.Tensor]


def loop(model: Any, texts: Texts) -> torch.Tensor:
    """One text at a time, as the model cards and the README of the published code do."""
    with torch.inference_mode():
        return torch.stack(
            [model(input_ids=_ids([text], model), use_cache=False).last_hidden_state[0, -1] for text in texts]
        ).float()


def padded(model: Any, texts: Texts) -> torch.Tensor:
    """All at once, padded on the right to the longest."""
    lengths = torch.tensor([len(text) for text in texts])
    width = int(lengths.max())
    mask = (torch.arange(width) < lengths[:, None]).long().to(model.device)
    ids = _ids([[*text, *([0] * (width - len(text)))] for text in texts], model)
    with torch.inference_mode():
        states = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    return states[torch.arange(len(texts)), lengths - 1].float()


def expanded_cache(model: Any, texts: Texts) -> torch.Tensor:
    """The common prefix once into a DynamicCache, repeated for every text; the rest padded on the right."""
    from transformers import DynamicCache

    first = encode(texts[0])
    prefix = min(common_tokens(first, encode(text)) for text in texts[1:])
    rest = [list(text[prefix:]) for text in texts]
    lengths = torch.tensor([len(text) for text in rest])
    width = int(lengths.max())
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=_ids([texts[0][:prefix]], model), past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(texts))
        mask = (torch.arange(width) < lengths[:, None]).long().to(model.device)
        states = model(
            input_ids=_ids([[*text, *([0] * (width - len(text)))] for text in rest], model),
            attention_mask=torch.cat([mask.new_ones(len(texts), prefix), mask], dim=1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
    return states[torch.arange(len(texts)), lengths - 1].float()


def _ids(texts: Texts, model: Any) -> torch.Tensor:
    return torch.tensor([list(text) for text in texts], device=model.device)
