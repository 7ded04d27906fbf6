"""How many tokens one batch may have on this device: pure policy, no threads, no clock.

Nobody knows beforehand what fits: it depends on the model, on the device, and on who else is on it.
"""

from __future__ import annotations

from typing import Final

_GROWTH: Final = 1.25
# Batches near the limit that must succeed before a larger one is tried. Every failure doubles it, up to the bound:
# where the limit is the device's own, it is not run into for ever. Every larger one that holds halves it again: where
# somebody else had the memory for a moment, it is soon as before.
_FIRST_PATIENCE: Final = 64
_LONGEST_PATIENCE: Final = 4096
_NEAR: Final = 0.75


class BatchBudget:
    """`tokens`: the limit now, at most the one that was set. One thread writes."""

    def __init__(self, max_batch_tokens: int) -> None:
        self._max_tokens = max_batch_tokens
        self.tokens = max_batch_tokens
        self._patience = _FIRST_PATIENCE
        self._good = 0
        self._raised = self._has_fitted = False

    def out_of_memory(self, tokens: int) -> None:
        """A batch of `tokens` did not fit: half of it is the limit from now on."""
        self.tokens = max(1, min(self.tokens, tokens // 2))
        if self._has_fitted or self._patience == _FIRST_PATIENCE:  # the halves of one batch are one failure
            self._patience = min(_LONGEST_PATIENCE, 2 * self._patience)
        self._good = 0
        self._raised = self._has_fitted = False

    def restore(self, tokens: int) -> None:
        """The limit was `tokens` before a text came that does not fit alone: that tells nothing of the others."""
        self.tokens = max(self.tokens, tokens)

    def fitted(self, tokens: int) -> None:
        """A batch of `tokens` fitted; one that is far below the limit tells nothing."""
        self._has_fitted = True
        if self.tokens >= self._max_tokens or tokens < _NEAR * self.tokens:
            return
        self._good += 1
        if self._good >= self._patience:
            self._good = 0
            if self._raised:
                self._patience = max(_FIRST_PATIENCE, self._patience // 2)
            self._raised = True
            self.tokens = min(self._max_tokens, max(self.tokens + 1, int(self.tokens * _GROWTH)))
