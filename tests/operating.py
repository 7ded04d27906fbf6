"""The operations over real stores and a toy engine: only the large backbone is replaced."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from service.backbone.prompt_memo import PromptMemo
from service.backbone.protocol import DoubledBos, Message, TextTooLong, TokenisedText
from service.backbone.tokenizer_files import fit_ids
from service.checkpoints import BackboneIdentity, Checkpoint
from service.mrm import GaussianStart
from service.observability.metrics import Metrics
from service.operations.adapt import Adapt
from service.operations.base_rewards import BaseRewardReader, CacheScope
from service.operations.changes import UserChanges
from service.operations.feedback import Feedback
from service.operations.feedback_events import SOURCES, FeedbackNoise
from service.operations.retention import Retention
from service.operations.said import Statement
from service.operations.score import Score
from service.operations.serving import ServedCheckpoint, Serving
from service.operations.solving import Solver
from service.operations.suggest import Suggest
from service.operations.telling import Telling
from service.operations.texts import GroupKeys, TextKeys
from service.operations.turns import Turns
from service.operations.user_states import UserStates
from service.operations.users import Users
from service.store import Database
from service.store.caches import BaseRewardCache, UserCache
from service.store.records import HeadsView
from service.store.shared import SharedBaseRewards, SharedUsers
from service.store.users import UserRepository

HEADS, HIDDEN = 3, 4
NOISE = FeedbackNoise(dict.fromkeys(SOURCES, 0.2), alone=0.1)


class ByteRenderer:
    """One token a byte."""

    template_id = "bytes"
    max_tokens = 64
    vocab_size = 256
    has_chat_template = True
    doubled_bos = DoubledBos(None)

    def tokenise(
        self, messages: Sequence[Message], completion: str, *, truncate: bool, memo: PromptMemo | None = None
    ) -> TokenisedText:
        tokens = tuple("|".join([*(m["content"] for m in messages), completion]).encode())
        if len(tokens) <= self.max_tokens:
            return TokenisedText(tokens, truncated=False)
        if not truncate:
            raise TextTooLong(len(tokens), self.max_tokens)
        return TokenisedText(tokens[-self.max_tokens :], truncated=True)

    def tokenise_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [*([0] if add_special_tokens else []), *text.encode()]

    def fit(self, ids: list[int], *, truncate: bool) -> TokenisedText:
        return fit_ids(ids, self.max_tokens, 0, truncate=truncate)


@dataclass
class ToyEngine:
    """Base rewards from a digest of the tokens, and behind them hidden states where told; counts what it was asked."""

    texts: list[tuple[int, ...]] = field(default_factory=list)
    failure: Exception | None = None
    healthy: bool = True
    queued_tokens: int = 0
    shared: bool = False
    with_hidden: bool = False

    def check_room(self, tokens: int, *, scope: bytes = b"") -> None:
        if self.failure is not None:
            raise self.failure

    def submit(
        self, texts: Sequence[Sequence[int]], *, scope: bytes = b"", deadline: float | None = None
    ) -> list[Future[np.ndarray]]:
        if self.failure is not None:
            raise self.failure
        futures: list[Future[np.ndarray]] = []
        for text in texts:
            self.texts.append(tuple(text))
            future: Future[np.ndarray] = Future()
            answer = toy_base_rewards(text)
            future.set_result(np.concatenate([answer, toy_hidden_state(text)]) if self.with_hidden else answer)
            futures.append(future)
        return futures


def toy_base_rewards(tokens: Sequence[int]) -> np.ndarray:
    digest = hashlib.sha256(bytes(tokens)).digest()
    return np.frombuffer(digest[: 4 * HEADS], dtype="<u4").astype(np.float64) / 2**31 - 1.0


def toy_hidden_state(tokens: Sequence[int]) -> np.ndarray:
    digest = hashlib.sha256(bytes(tokens)).digest()
    return np.frombuffer(digest[-HIDDEN:], dtype=np.uint8).astype(np.float64)


def toy_checkpoint(seed: int = 0) -> Checkpoint:
    rng = np.random.default_rng(seed)
    return Checkpoint(
        name="toy",
        backbone=BackboneIdentity(id="toy", fingerprint="f", template_id="bytes", hidden_size=HIDDEN),
        A_KD=np.ones((HEADS, HIDDEN), dtype=np.float32),
        b_K=np.zeros(HEADS, dtype=np.float32),
        start=GaussianStart(rng.normal(size=HEADS), np.eye(HEADS), 1.0),
    )


class Operations:
    """The use cases of one server process over `database`."""

    def __init__(
        self,
        database: Database,
        *,
        checkpoint: Checkpoint | None = None,
        cache_scope: CacheScope = "tenant",
        revalidate_s: float = 1.0,
        stale_limit_s: float = 60.0,
        shared_users: SharedUsers | None = None,
        shared_base_rewards: SharedBaseRewards | None = None,
        metrics: Metrics | None = None,
        solver: Solver | None = None,
        retention: Retention = "base_rewards",
        history_versions: int = 20,
    ) -> None:
        self.checkpoint = checkpoint or toy_checkpoint()
        with_hidden = retention == "hidden_states"
        hidden_columns = slice(HEADS, HEADS + HIDDEN) if with_hidden else None
        self.engine = ToyEngine(with_hidden=with_hidden)
        self.executor = ThreadPoolExecutor(4)
        self.metrics = metrics or Metrics()
        self.repository = UserRepository(database, 100, 60.0, history_versions=history_versions)
        self.solver = solver or Solver()
        self.keys = TextKeys(b"secret", "bytes")
        self.base_rewards = BaseRewardReader(
            engine=self.engine,
            renderer=ByteRenderer(),
            keys=self.keys,
            cache=BaseRewardCache(1000, 60.0),
            cache_scope=cache_scope,
            metrics=self.metrics,
            shared=shared_base_rewards,
            columns=slice(HEADS),
        )
        self.states = UserStates(
            repository=self.repository,
            executor=self.executor,
            cache=UserCache(100),
            checkpoint=self.checkpoint,
            view=HeadsView(self.checkpoint.checkpoint_id, self.checkpoint.heads_id, HEADS, {}),
            solver=self.solver,
            stale_limit_s=stale_limit_s,
            metrics=self.metrics,
            shared=shared_users,
            revalidate_s=revalidate_s,
        )
        self.serving = Serving(
            [ServedCheckpoint(self.checkpoint, self.base_rewards, self.states, self.engine, hidden_columns)],
            shared_users,
        )
        self.turns = Turns()
        self.score = Score(serving=self.serving, metrics=self.metrics)
        self.changes = UserChanges(
            serving=self.serving,
            repository=self.repository,
            executor=self.executor,
            metrics=self.metrics,
            turns=self.turns,
            solver=self.solver,
        )
        telling = Telling(serving=self.serving, changes=self.changes, retention=retention)
        self.adapt = Adapt(telling=telling, groups=GroupKeys(b"secret"))
        self.feedback = Feedback(telling=telling, noise=NOISE, metrics=self.metrics)
        self.suggest = Suggest(
            serving=self.serving, repository=self.repository, executor=self.executor, metrics=self.metrics
        )
        self.users = Users(
            repository=self.repository,
            executor=self.executor,
            serving=self.serving,
            turns=self.turns,
            solver=self.solver,
        )


def told(statements: Sequence[Statement]) -> list[tuple[str, Statement]]:
    """Statements, each behind its place in a request, as `Adapt` takes them."""
    kinds = {"PreferencePair": "pairs", "Rating": "ratings", "Ranking": "rankings"}
    numbers = {kind: itertools.count() for kind in kinds.values()}
    names = [kinds[type(each).__name__] for each in statements]
    return [(f"{name}[{next(numbers[name])}]", each) for name, each in zip(names, statements, strict=True)]


def user_says(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]
