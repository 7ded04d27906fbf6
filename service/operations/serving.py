"""The checkpoint that requests are answered with. A request takes it once, and uses it to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.checkpoints import Checkpoint
from service.operations.base_rewards import BaseRewardReader
from service.operations.engine import Engine
from service.operations.texts import Text
from service.operations.user_states import UserStates
from service.store.records import HeadsView, ServingRow, StoredUser
from service.store.shared import SharedUsers


@dataclass(frozen=True, slots=True, eq=False)
class ServedCheckpoint:
    """A loaded checkpoint and what answers with it.

    Attributes:
        checkpoint: Its heads and its start.
        base_rewards: Texts to this checkpoint's base rewards.
        users: Users to their weights under it.
        engine: What computes its texts.
        hidden_columns: Where hidden states stand in the engine's answers; None where they do not.
    """

    checkpoint: Checkpoint
    base_rewards: BaseRewardReader
    users: UserStates
    engine: Engine
    hidden_columns: slice | None = None

    @property
    def view(self) -> HeadsView:
        """From where a solve looks at stored evidence."""
        return self.users.view

    @property
    def checkpoint_id(self) -> str:
        """What answers name it by."""
        return self.checkpoint.checkpoint_id

    async def hidden_states(
        self, tenant_id: str, texts: Sequence[Text], *, truncate: bool = False
    ) -> npt.NDArray[np.float32]:
        """Hidden states [n, D] of texts, from the engine: no cache holds them.

        What is computed fills the caches, so `base_rewards.read` of the same texts afterwards computes nothing.

        Raises:
            InvalidInput, QuotaExceeded, Overloaded, Unavailable, EngineError: As `BaseRewardReader.rows`.
        """
        if self.hidden_columns is None:
            raise RuntimeError("this engine gives no hidden states. This is a bug: RETENTION is checked at the start.")
        rows_BW = await self.base_rewards.rows(tenant_id, texts, truncate=truncate)
        return np.asarray(rows_BW[:, self.hidden_columns], dtype=np.float32)


class Serving:
    """Which of the loaded checkpoints answers now. Lives on one event loop."""

    def __init__(self, loaded: Sequence[ServedCheckpoint], shared: SharedUsers | None = None) -> None:
        """The first of `loaded` is active until `follow`; `shared` is what the replicas tell one another by."""
        self._shared = shared
        self._loaded = {served.checkpoint_id: served for served in loaded}
        self._default = self._active = loaded[0]
        self._shadow: ServedCheckpoint | None = None
        self._row: ServingRow | None = None

    @property
    def active(self) -> ServedCheckpoint:
        """The one that answers; take it once per request."""
        return self._active

    @property
    def shadow(self) -> ServedCheckpoint | None:
        """The one that scores beside it and answers nobody."""
        return self._shadow

    @property
    def loaded(self) -> Sequence[ServedCheckpoint]:
        """All that could answer."""
        return list(self._loaded.values())

    @property
    def row(self) -> ServingRow | None:
        """What all replicas are to serve, as last followed; None where nothing was ever activated."""
        return self._row

    @property
    def missing(self) -> str | None:
        """The checkpoint that should answer and is not loaded here."""
        return None if self._row is None or self._row.active in self._loaded else self._row.active

    def get(self, checkpoint_id: str) -> ServedCheckpoint | None:
        """A loaded checkpoint."""
        return self._loaded.get(checkpoint_id)

    def follow(self, row: ServingRow | None) -> None:
        """Serve what `row` says. Where its active one is not loaded, the one that answers goes on."""
        self._row = row
        if row is None:
            self._active, self._shadow = self._default, None
            return
        self._active = self._loaded.get(row.active, self._active)
        shadow = None if row.shadow is None else self._loaded.get(row.shadow)
        self._shadow = None if shadow is self._active else shadow

    def shortcomings(self) -> list[str]:
        """What this process should serve and cannot."""
        if self.missing is None:
            return []
        active = self._active
        return [
            f"checkpoint: {self.missing} is active and not loaded here, so {active.checkpoint_id} "
            f"({active.checkpoint.name}) answers; name its directory in CHECKPOINTS and start again"
        ]

    def publish(self, user: StoredUser, left_out: int = 0) -> None:
        """Remember a user as just committed; `left_out` statements the solve could not see."""
        for served in self._loaded.values():
            served.users.publish(user, left_out)
        if self._shared is not None:
            self._shared.publish_committed(user)

    def forget(self, tenant_id: str, user_id: str, incarnation: int | None) -> Sequence[asyncio.Task[None]]:
        """Remember that a user was just erased: the life that ended, or None if there was none.

        Returns:
            What ends when the other replicas can know, where there is a store to tell them by; it does not raise.
        """
        for served in self._loaded.values():
            served.users.forget(tenant_id, user_id)
        return [] if self._shared is None else [self._shared.erase(tenant_id, user_id, incarnation)]
