"""Any decoder of transformers, run as it is: packed under an explicit mask, or padded.

`MaskedTransformer` is the reference that faster executors are compared with, and what serves the architectures that
`decoder` does not know. `PaddedTransformer` is for those whose layers build masks of their own (sliding windows).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from service.backbone.batches import padded_groups
from service.backbone.executors.layout import runs_of, visible
from service.backbone.packing import encode, plan, rows_of

if TYPE_CHECKING:
    import torch

# The mask and, on CPUs, the scores grow with the square of a row.
_MASKED_ROW_TOKENS: Final = 4096
_MAX_PADDED_TOKENS: Final = 8192
_MAX_PADDING: Final = 0.1


class MaskedTransformer:
    """Packed rows, common prefixes once, under a boolean 4-D mask (True: sees) and explicit positions."""

    name = "masked"
    shares_prefixes = True
    prefixes = None

    def __init__(self, model: Any) -> None:
        """`model` is a base model without a head, with sdpa attention: eager attention misreads boolean masks."""
        self._model = model

    def forward(self, texts: Sequence[Sequence[int]], scopes: Sequence[bytes] | None = None) -> torch.Tensor:
        """[B, D] float32 hidden states of the texts' last tokens, after the final norm."""
        import torch

        device = self._model.device
        hidden_BD = torch.empty(len(texts), int(self._model.config.hidden_size), device=device)
        with torch.inference_mode():
            keys = [encode(text) for text in texts]
            for row in rows_of(keys, scopes, _MASKED_ROW_TOKENS):
                part = [texts[index] for index in row]
                packed = plan([keys[index] for index in row], None if scopes is None else [scopes[i] for i in row])
                runs = runs_of(packed, [-1] * len(part), [0] * len(part))
                mask = torch.from_numpy(visible(runs, packed.tokens, [], 0, packed.tokens))
                states_TD = self._model(
                    input_ids=torch.tensor([packed.token_ids(part)], device=device),
                    position_ids=torch.tensor([packed.positions()], device=device),
                    attention_mask=mask.to(device)[None, None],
                    use_cache=False,
                ).last_hidden_state[0]
                hidden_BD[row] = states_TD[torch.tensor(packed.last_rows, device=device)].float()
        return hidden_BD

    def release_memory(self) -> None:
        """Nothing is kept between batches."""


class PaddedTransformer:
    """Texts sorted by length and padded on the right in groups of like lengths; nothing is shared."""

    name = "padded"
    shares_prefixes = False
    prefixes = None

    def __init__(self, model: Any) -> None:
        """`model` is a base model without a head."""
        self._model = model

    def forward(self, texts: Sequence[Sequence[int]], scopes: Sequence[bytes] | None = None) -> torch.Tensor:
        """[B, D] float32 hidden states of the texts' last tokens, after the final norm."""
        import torch

        lengths = [len(token_ids) for token_ids in texts]
        hidden_BD = torch.empty(len(texts), int(self._model.config.hidden_size), device=self._model.device)
        with torch.inference_mode():
            for group in padded_groups(lengths, max_padded_tokens=_MAX_PADDED_TOKENS, max_waste=_MAX_PADDING):
                hidden_BD[group] = self._last_states([texts[index] for index in group])
        return hidden_BD

    def release_memory(self) -> None:
        """Nothing is kept between batches."""

    def _last_states(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        import torch

        device = self._model.device
        lengths_B = torch.tensor([len(token_ids) for token_ids in texts])
        width = int(lengths_B.max())
        # The id under the padding does not matter: the mask hides it, and causal attention never looks to the right.
        ids_BT = torch.tensor([[*token_ids, *([0] * (width - len(token_ids)))] for token_ids in texts])
        mask_BT = torch.arange(width)[None, :] < lengths_B[:, None]
        padded = bool((lengths_B < width).any())
        output = self._model(
            input_ids=ids_BT.to(device),
            attention_mask=mask_BT.long().to(device) if padded else None,
            use_cache=False,
        )
        states_BTD = output.last_hidden_state
        hidden_BD: torch.Tensor = states_BTD[
            torch.arange(len(texts), device=device), (lengths_B - 1).to(device)
        ].float()
        return hidden_BD
