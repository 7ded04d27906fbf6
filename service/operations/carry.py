"""Users whose weights are of another checkpoint, as this one sees them: what they said decides, not those weights.

What was measured with this checkpoint's heads counts as it is; what was measured with heads that a good enough map
leads from, through the map. What neither reaches can be measured anew where texts or hidden states are retained; else
it is left out. The reasons are in docs/decisions/ (carrying users over).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from service.checkpoints import Checkpoint, MapFrom
from service.mrm import UserState
from service.mrm.carry import carry
from service.operations.base_rewards import BaseRewardReader
from service.operations.retention import RetainedHiddenStates, RetainedTexts, read_retained
from service.operations.solving import Solver
from service.operations.texts import Text
from service.store.carry_over import CarryOver
from service.store.records import Carried, HeadsView, NewEvidence, StoredEvidence, StoredUser, Vector
from service.store.users import UserRepository

logger = logging.getLogger(__name__)

_PAGE: Final = 1000
# Texts that are measured anew at a time: users who come for an answer meanwhile take turns with them.
_TEXTS_AT_ONCE: Final = 64


def view_of(checkpoint: Checkpoint, min_fidelity: float) -> HeadsView:
    """From where solves for a checkpoint look: its heads, and its maps of `min_fidelity` or better, the best first."""
    good = [each for each in checkpoint.maps if each.fidelity.mean >= min_fidelity]
    good.sort(key=lambda each: -each.fidelity.mean)
    maps = {each.heads_id: each.maps.diffs_KK for each in good}
    return HeadsView(checkpoint.checkpoint_id, checkpoint.heads_id, checkpoint.heads, maps)


@dataclass(frozen=True, slots=True, eq=False)
class CarriedUser:
    """A user under this checkpoint, carried to it or changed under it.

    Attributes:
        user: Weights, checkpoint and how they came about; identity and version are those of the row.
        left_out: Statements that count and that this checkpoint cannot see.
    """

    user: StoredUser
    left_out: int


def carry_user(
    row: StoredUser,
    checkpoint: Checkpoint,
    *,
    repository: UserRepository,
    view: HeadsView,
    solver: Solver,
    measured: bool = False,
) -> CarriedUser:
    """Solve for a user of another checkpoint; `measured`: some of what they said was just measured anew.

    Raises:
        Unavailable: The database does not answer.
    """
    support = repository.support_set(row.tenant_id, row.user_id, view)
    mapped = any(each.carried for each in support.evidence)
    how = how_carried(bool(support.evidence), mapped, left_out=support.left_out, measured=measured)
    linked = state_map(checkpoint, view, row.checkpoint_id) if how == "start" else None
    if linked is None:
        state, pairs = solver(support.evidence, checkpoint).state, support.total
    else:
        # What was said is out of reach, but not what it came to.
        how, pairs = "linear", row.pairs
        state = carry(UserState(row.weights_K, row.factor), linked.maps, linked.start, checkpoint.start)
    user = replace(
        row,
        checkpoint_id=checkpoint.checkpoint_id,
        heads_id=checkpoint.heads_id,
        weights_K=state.weights_K,
        factor=state.factor,
        pairs=pairs,
        carried=how,
    )
    return CarriedUser(user, support.left_out)


def how_carried(seen: bool, mapped: bool, *, left_out: int, measured: bool = False) -> Carried:
    """By what weights came about: the least exact part of the evidence that was used, or `start` where none could be.

    Args:
        seen: Whether any was used.
        mapped: Whether any of it went through a map.
        left_out: How much of it could not be used.
        measured: Whether some of it was measured anew.
    """
    if not seen and left_out:
        return "start"
    if mapped:
        return "linear"
    return "retained" if measured else "exact"


def state_map(checkpoint: Checkpoint, view: HeadsView, checkpoint_id: str) -> MapFrom | None:
    """What carries weights that were solved for under another checkpoint, where a good enough map does."""
    return next(
        (each for each in checkpoint.maps if each.checkpoint_id == checkpoint_id and each.heads_id in view.maps), None
    )


class Retained:
    """Measures with this checkpoint's heads what is retained of users. Lives on one event loop."""

    def __init__(
        self,
        *,
        checkpoint: Checkpoint,
        view: HeadsView,
        same_backbone: frozenset[str],
        base_rewards: BaseRewardReader,
        repository: UserRepository,
        carry_over: CarryOver,
        executor: Executor,
        limit: int,
    ) -> None:
        """Nothing is asked before `measure`.

        Args:
            checkpoint: Whose heads.
            view: What a solve for it sees anyway.
            same_backbone: Heads known to be of the same backbone: their hidden states are this checkpoint's.
            base_rewards: For texts.
            repository: Users.
            carry_over: Where what is retained is read, and what is measured is written.
            executor: The store's threads.
            limit: The newest so many statements are measured, as a solve sees no more.
        """
        self._checkpoint = checkpoint
        self._view = view
        self._same_backbone = same_backbone
        self._base_rewards = base_rewards
        self._repository = repository
        self._carry_over = carry_over
        self._executor = executor
        self._limit = limit

    def store(self, user: StoredUser) -> bool:
        """Let a user of this checkpoint have weights that see what was measured; False where they changed meanwhile.

        Raises:
            Unavailable: The database does not answer.
        """
        return self._carry_over.solved_anew(user)

    async def measure(self, carried: CarriedUser) -> bool:
        """Measure what was left out of a user's solve, as far as anything is retained of it, and store it.

        Returns:
            Whether a solve sees more now: by this, or by another replica that came first.

        Raises:
            InvalidInput, QuotaExceeded, Overloaded, Unavailable, EngineError: As `BaseRewardReader.read`, and the
                store.
        """
        user = carried.user
        loop = asyncio.get_running_loop()
        found, left_out = await loop.run_in_executor(self._executor, self._find, user)
        measured: dict[tuple[str, bytes], Vector] = {}
        texts: list[tuple[StoredEvidence, RetainedTexts]] = []
        for evidence, payload in found:
            try:
                kept = read_retained(payload)
            except ValueError as error:
                logger.warning("a statement stays left out: %s", error)
                continue
            if isinstance(kept, RetainedTexts):
                texts.append((evidence, kept))
            elif evidence.heads_id in self._same_backbone:
                measured[evidence.evidence_id, evidence.content_key] = statement_of(evidence, self._apply(kept))
        batch: list[tuple[StoredEvidence, RetainedTexts]] = []
        for each in texts:
            batch.append(each)
            if sum(len(kept.completions) for _, kept in batch) >= _TEXTS_AT_ONCE:
                measured |= await self._read(user.tenant_id, batch)
                batch = []
        measured |= await self._read(user.tenant_id, batch)
        if measured:
            heads_id = self._checkpoint.heads_id
            await loop.run_in_executor(
                self._executor, self._carry_over.add_measured, user.incarnation, heads_id, measured
            )
        return bool(measured) or left_out < carried.left_out

    def _find(self, user: StoredUser) -> tuple[list[tuple[StoredEvidence, bytes]], int]:
        """Statements that count and are not solved on, with what is retained of them, the newest; how many there are.

        Those of which nothing is retained are in the number only.
        """
        support = self._repository.support_set(user.tenant_id, user.user_id, self._view)
        found: list[tuple[StoredEvidence, bytes]] = []
        if not support.left_out:
            return found, 0
        seen = {each.evidence_id for each in support.evidence}
        after = None
        while page := self._repository.evidence(user.tenant_id, user.user_id, after, _PAGE):
            found += [
                (evidence, payload)
                for evidence, payload in page
                if payload is not None and evidence.live and evidence.evidence_id not in seen
            ]
            after = page[-1][0].evidence_id
        found.sort(key=lambda each: each[0].event_time, reverse=True)
        return found[: self._limit], support.left_out

    def _apply(self, kept: RetainedHiddenStates) -> npt.NDArray[np.float64]:
        A_KD, b_K = self._checkpoint.A_KD.astype(np.float64), self._checkpoint.b_K.astype(np.float64)
        return np.asarray(kept.states_ND.astype(np.float64) @ A_KD.T + b_K)

    async def _read(
        self, tenant_id: str, batch: Sequence[tuple[StoredEvidence, RetainedTexts]]
    ) -> dict[tuple[str, bytes], Vector]:
        if not batch:
            return {}
        texts = [Text(kept.messages, completion, "retained") for _, kept in batch for completion in kept.completions]
        base = await self._base_rewards.read(tenant_id, texts, truncate=True)
        measured: dict[tuple[str, bytes], Vector] = {}
        first = 0
        for evidence, kept in batch:
            rewards_NK = base.rewards_BK[first : first + len(kept.completions)]
            measured[evidence.evidence_id, evidence.content_key] = statement_of(evidence, rewards_NK)
            first += len(kept.completions)
        return measured


def statement_of(evidence: NewEvidence | StoredEvidence, rewards_NK: npt.NDArray[np.float64]) -> Vector:
    """Base rewards of a statement's texts [n, K] as `NewEvidence` has them."""
    if evidence.kind == "pair":
        return np.asarray(rewards_NK[0] - rewards_NK[1])
    if evidence.kind == "rating":
        return np.asarray(rewards_NK[0])
    # A text that was ranked against the average one: that is no text, and has the place behind the last.
    return np.concatenate([rewards_NK, np.zeros((len(evidence.ranks or ()) - len(rewards_NK), rewards_NK.shape[1]))])
