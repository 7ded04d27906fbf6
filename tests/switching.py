"""A server process with several checkpoints on one backbone, below HTTP: only the backbone is a toy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from operating import ByteRenderer, told, toy_hidden_state, user_says

from service.checkpoints import BackboneIdentity, Checkpoint, MapFrom
from service.mrm import GaussianStart
from service.mrm.carry import Fidelity, linear_maps
from service.observability.metrics import Metrics
from service.operations.adapt import Adapt
from service.operations.changes import UserChanges
from service.operations.checkpoints import Checkpoints
from service.operations.quotas import TenantLimits
from service.operations.readapt import Readapt
from service.operations.retention import Retention
from service.operations.said import PreferencePair, Ranking, Rating
from service.operations.score import Score, Scored, ScoreItem
from service.operations.shadow import Shadow
from service.operations.solving import HalfLife, Solver
from service.operations.telling import Telling
from service.operations.texts import GroupKeys
from service.operations.turns import Turns
from service.runtime.engine import stack
from service.runtime.engine_parts import EngineParts
from service.runtime.serving import open_serving
from service.settings import Settings
from service.store import Database
from service.store.carry_over import CarryOver
from service.store.serving import ServingRepository
from service.store.users import UserRepository
from service.worker.messages import StackedHeads

HIDDEN = len(toy_hidden_state(b""))


def checkpoint(seed: int, heads: int, *, name: str = "toy", backbone: str = "f") -> Checkpoint:
    """Random heads and a random start."""
    rng = np.random.default_rng(seed)
    return Checkpoint(
        name=name,
        backbone=BackboneIdentity(id="toy", fingerprint=backbone, template_id="bytes", hidden_size=HIDDEN),
        A_KD=(rng.normal(size=(heads, HIDDEN)) / 100).astype(np.float32),
        b_K=rng.normal(size=heads).astype(np.float32),
        start=GaussianStart(rng.normal(size=heads) / 2, np.eye(heads), 1.0),
    )


def linked(new: Checkpoint, old: Checkpoint, fidelity: float = 1.0) -> Checkpoint:
    """`new` with a map from `old`; `fidelity` is what its manifest says."""
    maps = linear_maps(new.A_KD, old.A_KD, np.eye(new.A_KD.shape[1]))
    told = MapFrom(
        heads_id=old.heads_id,
        checkpoint_id=old.checkpoint_id,
        name=old.name,
        maps=maps,
        start=old.start,
        fidelity=Fidelity(fidelity, fidelity),
        differences_fidelity=fidelity,
        differences=100,
        held_out=50,
        data="toy",
    )
    return dataclasses.replace(new, maps=(*new.maps, told))


OLD = checkpoint(1, 3, name="old")
NEW = linked(checkpoint(2, 4, name="new"), OLD)
PAIRS = [PreferencePair(user_says("p"), f"good {i}", f"bad {i}", None, f"{i}") for i in range(6)]
SAID = [
    *PAIRS,
    Rating(user_says("p"), "rated", 3.0, None, "r"),
    Ranking(user_says("p"), ["a", "b", "c"], [0, 1, 1], "k"),
]


class StackedEngine:
    """Base rewards, of stacked heads, of hidden states from a digest of the tokens; counts the texts."""

    healthy = True
    queued_tokens = 0
    shared = False

    def __init__(self, heads: StackedHeads) -> None:
        self.heads = heads
        self.texts = 0

    def check_room(self, tokens: int, *, scope: bytes = b"") -> None:
        pass

    def submit(
        self, texts: Sequence[Sequence[int]], *, scope: bytes = b"", deadline: float | None = None
    ) -> list[Future[np.ndarray]]:
        self.texts += len(texts)
        hidden_BD = np.array([toy_hidden_state(text) for text in texts], dtype=np.float32)
        futures: list[Future[np.ndarray]] = []
        for row in self.heads.apply(hidden_BD):
            future: Future[np.ndarray] = Future()
            future.set_result(row)
            futures.append(future)
        return futures


class Switching:
    """The use cases of one server process that has loaded `checkpoints`; the first is CHECKPOINT."""

    def __init__(
        self,
        database: Database,
        *checkpoints: Checkpoint,
        retention: Retention = "base_rewards",
        min_fidelity: float = 0.5,
        half_life: HalfLife = None,
    ) -> None:
        settings = Settings(_env_file=None, min_fidelity=min_fidelity)  # type: ignore[call-arg]
        self.metrics = Metrics()
        self.executor = ThreadPoolExecutor(4)
        self.repository = UserRepository(database, 100, 60.0)
        self.carry_over = CarryOver(database, 100)
        self.solver = Solver(half_life)
        by_backbone: dict[str, list[Checkpoint]] = {}
        for each in checkpoints:
            by_backbone.setdefault(each.backbone.fingerprint, []).append(each)
        self.engines = {
            backbone: StackedEngine(stack(group, with_biases=True, with_hidden=retention == "hidden_states"))
            for backbone, group in by_backbone.items()
        }
        self.serving = open_serving(
            settings,
            b"secret",
            checkpoints,
            [self._parts(each, by_backbone[each.backbone.fingerprint]) for each in checkpoints],
            redis=None,
            limits=TenantLimits(metrics=self.metrics),
            database=database,
            repository=self.repository,
            executor=self.executor,
            metrics=self.metrics,
            solver=self.solver,
        )
        self.shadow = Shadow(serving=self.serving, metrics=self.metrics)
        self.checkpoints = Checkpoints(
            serving=self.serving,
            repository=ServingRepository(database),
            shadow=self.shadow,
            metrics=self.metrics,
            version="test",
            interval_s=0.02,
        )
        self.checkpoints.begin()
        self.score = Score(serving=self.serving, metrics=self.metrics, shadow=self.shadow)
        changes = UserChanges(
            serving=self.serving,
            repository=self.repository,
            executor=self.executor,
            metrics=self.metrics,
            turns=Turns(),
            solver=self.solver,
        )
        telling = Telling(serving=self.serving, changes=changes, retention=retention)
        self.adapt = Adapt(telling=telling, groups=GroupKeys(b"secret"))

    def _parts(self, checkpoint: Checkpoint, group: Sequence[Checkpoint]) -> EngineParts:
        engine = self.engines[checkpoint.backbone.fingerprint]
        columns = engine.heads.columns[list(group).index(checkpoint)]

        async def check() -> list[object]:
            return []

        return EngineParts(
            engine,
            ByteRenderer(),
            {},
            check,
            lambda: None,
            columns,
            engine.heads.hidden_columns,  # type: ignore[arg-type]
        )

    def readapt(self, wanted: Checkpoint, **options: object) -> Readapt:
        """Bulk carrying to a loaded checkpoint."""
        served = self.serving.get(wanted.checkpoint_id)
        assert served is not None
        return Readapt(
            carry_over=self.carry_over,
            repository=self.repository,
            checkpoint=wanted,
            view=served.view,
            solver=self.solver,
            **options,  # type: ignore[arg-type]
        )


async def adapt(server: Switching, user: str = "ada", said: Any = PAIRS) -> int:
    return (await server.adapt("t", user, told(said), mode="append", truncate=False)).outcome.version


async def score(server: Switching, user: str | None = "ada", completions: Any = "xyz") -> tuple[str, Scored]:
    item = ScoreItem(user, user_says("q"), list(completions))
    answer = await server.score("t", [item], truncate=False, return_base_rewards=True)
    return answer.checkpoint_id, answer.results[0]
