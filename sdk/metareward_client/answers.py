"""What is answered: frozen; fields that this version does not know are kept as they are (`model_extra`)."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class AnswerModel(BaseModel):
    """Base of all answers. A newer server may say more; a number that is not finite is refused."""

    # Unknown fields are kept, not dropped: an export is all that is stored of a person.
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, defer_build=True)


class Score(AnswerModel):
    """Rewards of one item's completions, in the order in which they were sent."""

    user_id: str | None
    """None: nobody in particular."""
    user_state: str
    """`adapted`; `cold_start`: nobody has adapted this user, and the start serves; `population`: no user was named;
    `stale`: the server's database is away, and its memory serves."""
    version: int
    """The user's version; 0 for an unknown user."""
    rewards: list[float]
    """Log-odds: rewards[a] - rewards[b] is the logit that the user prefers a. [completions]"""
    reward_std: list[float] | None = None
    """Posterior standard deviations, where the checkpoint has them. [completions]"""
    order: list[int]
    """Indices of the completions from best to worst."""
    best_probability: list[float] | None = None
    """Calibrated probability that the user prefers the best, `order[0]`, to each; 0.5 to itself. [completions]"""
    best_std: list[float] | None = None
    """Posterior standard deviation of rewards[order[0]] - rewards[i], in log-odds. [completions]"""
    base_rewards: list[list[float]] | None = None
    """With `return_base_rewards`: [completions, K]."""
    preference_probability: list[list[float]] | None = None
    """With `return_pairwise`: row i, column j: calibrated probability that the user prefers i to j."""
    difference_std: list[list[float]] | None = None
    """With `return_pairwise`: posterior standard deviation of rewards[i] - rewards[j], in log-odds."""
    truncated: list[int] = []
    """Indices of the completions that were shortened."""
    carried: str | None = None
    """How the weights came from another checkpoint (`exact`, `linear`, `retained`, `start`); None: they did not."""
    checkpoint_id: str | None = None
    """The checkpoint that answered."""
    timings_ms: dict[str, float] = {}
    """Where the time of the request went."""


class Scores(AnswerModel):
    """The answers of one request with many items, in their order."""

    results: list[Score]
    checkpoint_id: str
    timings_ms: dict[str, float] = {}


class Ranked(AnswerModel):
    """One document of a rerank answer."""

    index: int
    """Of the document, as sent."""
    relevance_score: float
    """Calibrated probability that the user prefers it to the average training text, 0 to 1."""
    reward: float
    """The same in log-odds, as `Score.rewards`: differences of rewards compare two documents."""
    reward_std: float | None = None
    """Posterior standard deviation of the reward, where the checkpoint has one."""


class Reranked(AnswerModel):
    """Documents from best to worst."""

    results: list[Ranked]
    user_id: str | None = None
    """None: nobody in particular."""
    user_state: str | None = None
    """As in `Score`."""
    version: int | None = None
    """The user's version; 0 for an unknown user."""
    checkpoint_id: str | None = None
    """The checkpoint that answered."""
    truncated: list[int] = []
    """Indices of the documents that were shortened."""
    id: str | None = None
    """Names the request."""
    meta: dict[str, Any] | None = None
    """What else the server says."""


class SupportFit(AnswerModel):
    """How well weights fit the user's own choices."""

    loss: float | None = None
    """Mean Bradley-Terry loss in nats; 0.693 is a coin flip."""
    accuracy: float | None = None
    """Share of choices whose better side has the higher reward."""


class Change(AnswerModel):
    """A user's new version."""

    user_id: str
    version: int
    """Pass it as `min_version` to score to be sure that this change counts."""
    cause: str
    """What made it: adapt, replace, delete, rollback, reset, forget, feedback."""
    checkpoint_id: str
    weights: list[float]
    """Effective weights, [K]; none in a kept answer of a user of whom something was deleted since."""
    pairs_stored: int
    """Pairs, ratings and rankings that count now and did not before."""
    pairs_deleted: int
    """Those that counted before and do not any more."""
    pairs_total: int
    """Those that count now."""
    carried: int = 0
    """Of those: told under another checkpoint, carried to this one."""
    left_out: int = 0
    """Those that this checkpoint cannot use."""
    exact: bool | None = None
    """Of a rollback: whether the weights are those of that version bit for bit."""
    support_before: SupportFit = Field(default_factory=SupportFit)
    """The start's fit of all that counts."""
    support_after: SupportFit = Field(default_factory=SupportFit)
    """The new weights' fit of the same."""
    replayed: bool = False
    """Whether this is the kept answer to an earlier call with the same key."""
    timings_ms: dict[str, float] = {}
    """Where the time of the request went."""


ChangeT = TypeVar("ChangeT", bound=Change)


class Adapted(Change):
    """A user's new version after new evidence."""

    pairs_received: int
    """Pairs, ratings and rankings of this request."""
    evidence_ids: list[str]
    """What each is listed and deleted by: pairs, then ratings, then rankings, each in the order sent."""


class FeedbackAdapted(Adapted):
    """A user's new version after events."""

    events_received: int
    """Events of this request; one may leave several comparisons."""
    stored_by_source: dict[str, int] = {}
    """Comparisons that are new, by what they were read from."""


class Suggestion(AnswerModel):
    """One question: which of two completions do you prefer?"""

    candidate: int
    """Index of the candidate."""
    a: int
    """Index of a completion of it."""
    b: int
    """Index of the other."""
    information_gain_nats: float
    """What the answer is expected to tell of the user's weights, after those before it; at most 0.693."""
    preference_probability: float
    """Calibrated probability that the user prefers a, as known now."""


class Suggestions(AnswerModel):
    """Questions in the order in which to ask them."""

    user_id: str
    user_state: str
    version: int
    suggestions: list[Suggestion]
    truncated: list[list[int]] = []
    """By candidate: indices of the completions that were shortened."""
    checkpoint_id: str | None = None
    timings_ms: dict[str, float] = {}


class UserListed(AnswerModel):
    """A user in a list."""

    user_id: str
    version: int
    checkpoint_id: str
    weights: list[float]
    """[K]"""
    pairs: int
    """Pairs, ratings and rankings that count."""
    carried: str | None = None
    """How the weights came to their checkpoint, where they were carried."""
    created_at: datetime
    updated_at: datetime


class User(UserListed):
    """A user's state, and whether their taste changes."""

    drift: float | None = None
    """Nats per recent choice by which forgetting predicts this user better; None: too little said to tell."""
    half_life_days: float | None = None
    """Age at which evidence of this user counts half; None: age does not matter."""


class UserPage(AnswerModel):
    """Users in the order of their ids."""

    users: list[UserListed]
    next: str | None = None
    """Pass it as `after` to get the next page; None on the last."""


class Version(AnswerModel):
    """One version of a user that is kept."""

    version: int
    cause: str
    checkpoint_id: str
    pairs: int
    """Pairs, ratings and rankings that counted."""
    created_at: datetime
    current: bool
    """Whether it is the one that serves."""


class VersionPage(AnswerModel):
    """Versions of a user, the newest first."""

    versions: list[Version]
    next: int | None = None
    """Pass it as `before` to get the next page; None on the last."""


class Evidence(AnswerModel):
    """One thing that the user said."""

    id: str
    kind: str
    """pair, rating or ranking."""
    strength: float | None = None
    """Of a pair, where it has one."""
    tie: bool = False
    rating: float | None = None
    """Of a rating."""
    ranks: list[int] | None = None
    """Of a ranking: places, 0 is the best, equal is tied; best first, not as sent."""
    weight: float
    """What it counts, before its age."""
    source: str | None = None
    """The kind of feedback that it was read from; None: said outright."""
    event_time: datetime
    heads_id: str
    """The base reward heads that it was measured with."""
    live: bool
    """Whether it counts."""
    texts: dict[str, Any] | None = None
    """What it was said of, where the server keeps texts."""


class EvidencePage(AnswerModel):
    """What a user said, in the order of ids."""

    evidence: list[Evidence]
    next: str | None = None
    """Pass it as `after` to get the next page; None on the last."""


class ExportedEvidence(Evidence):
    """One thing that the user said, with all that is stored of it."""

    content_key: str
    """Keyed digest of what was said."""
    group: str | None = None
    """Of a rating: keyed digest of what it is compared with."""
    base_rewards: list[float] | list[list[float]]
    """Of a pair chosen minus rejected, [K]; of a rating [K]; of a ranking [texts, K], best first."""


class ExportedUser(UserListed):
    """The user's state, with all that is stored of it."""

    heads_id: str
    posterior_factor: list[float] | None = None
    """Lower Cholesky factor of the posterior covariance of the weights, by rows: K (K + 1) / 2 numbers."""


class ExportedVersion(Version):
    """One version that is kept, with its weights."""

    heads_id: str
    weights: list[float] | None = None
    """None where something that they were made from is deleted."""


class UserExport(AnswerModel):
    """Everything that is stored of one user, as of one moment; `model_dump_json()` writes it whole."""

    format: str
    user: ExportedUser
    evidence: list[ExportedEvidence]
    versions: list[ExportedVersion]
    answers: list[dict[str, Any]]
    """Answers that are kept for Idempotency-Keys."""


class Limits(AnswerModel):
    """Bounds on one request."""

    max_pairs: int = 1000
    """Pairs in one adapt request."""
    max_completions: int = 4096
    """Completions in one score request."""
    max_text_bytes: int = 262_144
    """Bytes of one prompt or completion."""
    max_body_bytes: int = 33_554_432
    """Bytes of one request."""
    max_tokens: int | None = None
    """Tokens that the backbone reads of one text."""


class Checkpoint(AnswerModel):
    """A checkpoint that is loaded."""

    name: str
    checkpoint_id: str
    heads_id: str | None = None
    recipe: str | None = None
    heads: int | None = None
    """K."""
    personalises: bool | None = None
    """Whether users' weights move at all under it, as its training found."""
    active: bool = True
    """Whether it answers."""


class Info(AnswerModel):
    """What a server serves."""

    version: str
    checkpoint: Checkpoint
    """The one that answers."""
    checkpoints: list[Checkpoint] = []
    """All that are loaded."""
    backbone: dict[str, Any] = {}
    limits: Limits = Field(default_factory=Limits)


class Ready(AnswerModel):
    """Whether a server can take traffic, and what is degraded."""

    ready: bool
    degraded: list[str] = []


class Live(AnswerModel):
    """The process runs."""

    live: bool
