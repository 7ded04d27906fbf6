"""What goes into the store and comes out of it: plain values, nothing of SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from datetime import datetime
from typing import Literal

import numpy as np
import numpy.typing as npt
import orjson

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]
Report = dict[str, float | None]
EvidenceKind = Literal["pair", "rating", "ranking"]
Carried = Literal["exact", "linear", "retained", "start"]


@dataclass(frozen=True, slots=True, eq=False)
class StoredUser:
    """A user as last committed.

    Attributes:
        tenant_id: Whose user.
        user_id: The tenant's name for the user.
        incarnation: Which life of this name; grows with every re-creation in the whole database, never reused.
        version: 1 after the first adapt, one more after each.
        checkpoint_id: The checkpoint whose recipe gave these weights.
        heads_id: The base reward heads that the weights apply to.
        weights_K: Effective weights, [K], read-only.
        factor: Packed lower-triangular posterior factor of the same version, [K (K + 1) / 2], read-only;
            None where the recipe gives none.
        pairs: Live evidence that these weights could be made from.
        created_at: When this incarnation began (aware, UTC).
        updated_at: When this version was made (aware, UTC).
        carried: How the weights came to this checkpoint, where they were not solved by a change; None where they were.
    """

    tenant_id: str
    user_id: str
    incarnation: int
    version: int
    checkpoint_id: str
    heads_id: str
    weights_K: Vector
    factor: Vector | None
    pairs: int
    created_at: datetime
    updated_at: datetime
    carried: Carried | None = None


@dataclass(frozen=True, slots=True)
class Quotas:
    """What a tenant may use; None is no limit.

    Attributes:
        requests_per_minute: Requests, refused ones included.
        tokens_per_minute: Tokens that the engine computes; what is cached costs nothing.
        max_users: Users that have adapted.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_users: int | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant as stored."""

    tenant_id: str
    quotas: Quotas
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as stored, without what would let anybody use it.

    Attributes:
        key_id: Its public name, in logs and lists.
        tenant_id: Whose key.
        role: score, adapt or admin.
        name: What its owner calls it; may be empty.
        created_at: Aware, UTC, as all times here.
        expires_at: From when on it is refused; None: never.
        revoked_at: When it was revoked; None: it was not.
        quotas: Of its tenant.
    """

    key_id: str
    tenant_id: str
    role: str
    name: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    quotas: Quotas


@dataclass(frozen=True, slots=True, eq=False)
class NewEvidence:
    """One statement of a user, to be stored.

    Attributes:
        evidence_id: The caller's name for it, unique within the user.
        content_key: 32 bytes that stand for what was said; the same id with another key is a contradiction.
        kind: What was said: a choice between two texts, a rating of one, or an order of several.
        base_rewards: Of a pair chosen minus rejected, [K]; of a rating the text's, [K]; of a ranking the texts',
            [n, K].
        grade: Of a pair how strongly it was felt, of a rating the rating, on the user's own scale; None for a plain
            choice.
        ranks: Of a ranking the n places: 0 is best, equal is tied.
        group: Of a rating 32 bytes that stand for what it is compared with; None: with all ratings that have none.
        weight: What its likelihood is multiplied with.
        tilt: The constant of its choice term: 0 for a plain choice, -1/2 for a tie.
        source: The kind of implicit feedback that it was read from; None: it was said outright.
        event_time: When it was said (aware); None: when it is stored.
        retained: What else is kept of it, such as its texts: opaque here.
        field: Where in the request it stands, for errors: ``ratings[3]``. Empty: ``pairs[i]``.
    """

    evidence_id: str
    content_key: bytes
    kind: EvidenceKind
    base_rewards: Vector
    grade: float | None = None
    ranks: tuple[int, ...] | None = None
    group: bytes | None = None
    weight: float = 1.0
    tilt: float = 0.0
    source: str | None = None
    event_time: datetime | None = None
    retained: bytes | None = None
    field: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class StoredEvidence:
    """A statement as stored: `NewEvidence` with its time and the heads that its base rewards belong to.

    Attributes:
        heads_id: The heads that it was measured with.
        carried: Whether `base_rewards` went through a map, from `heads_id` to the heads of a view.
        live: Whether it counts; what was replaced or reset does not, and a rollback may bring it back.
    """

    evidence_id: str
    content_key: bytes
    kind: EvidenceKind
    base_rewards: Vector
    grade: float | None
    ranks: tuple[int, ...] | None
    group: bytes | None
    weight: float
    tilt: float
    source: str | None
    event_time: datetime
    heads_id: str
    carried: bool = False
    live: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class HeadsView:
    """From where a solve looks at stored evidence: the heads of one checkpoint, and what can be carried to them.

    Attributes:
        checkpoint_id: The checkpoint.
        heads_id: Its heads.
        heads: How many they are, K.
        maps: By the heads that something was measured with, the matrix [K, K_from] that carries it here; the best map
            first.
    """

    checkpoint_id: str
    heads_id: str
    heads: int
    maps: Mapping[str, Matrix]


@dataclass(frozen=True, slots=True)
class Append:
    """Add `items` to what the user said. `cause` is written with the version."""

    items: Sequence[NewEvidence]
    cause: str = "adapt"


@dataclass(frozen=True, slots=True)
class Replace:
    """What the user said is `items` and nothing else. A rollback undoes it, while the version before is kept."""

    items: Sequence[NewEvidence]


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete these statements for good, with all that is kept of them."""

    evidence_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Rollback:
    """Let that count again which counted in `version`, and nothing else."""

    version: int


@dataclass(frozen=True, slots=True)
class Reset:
    """Let nothing count any more; with `forget` all of it is deleted for good."""

    forget: bool


Change = Append | Replace | Delete | Rollback | Reset


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The caller's key for one request, and a hash of the request's body."""

    key: str
    body_hash: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """What a solve gives: effective weights [K], the packed factor or None, and figures for the answer."""

    weights_K: Vector
    factor: Vector | None
    report: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeOutcome:
    """The answer to one change of a user, kept beside its idempotency key.

    Attributes:
        version: The version that the change made.
        cause: What kind of change it was: adapt, replace, delete, rollback, reset, forget, or an `Append`'s own.
        weights: Effective weights; empty in a kept answer whose user has since deleted some of what they said.
        pairs_received: Statements in the request.
        pairs_stored: Those that did not count before and do now.
        stored_by_source: How many of those that were read from feedback come from each source; None where none were.
        pairs_deleted: Statements that counted before and do not any more; for a deletion, those deleted.
        pairs_total: Statements that count and that the heads in use can use.
        carried: How many of those that were solved on went through a map.
        left_out: Statements that count and that the heads in use cannot use.
        exact: Of a rollback, whether the weights are those of the earlier version, to the last bit; else None.
        report: The solve's figures (losses, accuracies); None where one has no meaning.
        replayed: True when this is the stored answer to an earlier request with the same key.
    """

    user_id: str
    incarnation: int
    version: int
    checkpoint_id: str
    weights: list[float]
    pairs_received: int
    pairs_stored: int
    pairs_total: int
    report: Report
    replayed: bool
    cause: str = "adapt"
    pairs_deleted: int = 0
    carried: int = 0
    left_out: int = 0
    exact: bool | None = None
    stored_by_source: dict[str, int] | None = None

    def to_json(self) -> bytes:
        """The outcome as JSON; every float survives the way back bit by bit.

        What is as it always was before there were other changes is left out: the version before knows no such names,
        and may still run.
        """
        usual = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return orjson.dumps({k: v for k, v in asdict(self).items() if k not in usual or v != usual[k]})

    @classmethod
    def from_json(cls, data: bytes) -> ChangeOutcome:
        """The inverse of `to_json`."""
        return cls(**orjson.loads(data))

    def as_replay(self) -> ChangeOutcome:
        """The same outcome, marked as an answer given again."""
        return replace(self, replayed=True)

    def forgotten(self) -> ChangeOutcome:
        """The same outcome without what was computed from statements: weights and figures."""
        return replace(self, weights=[], report=dict.fromkeys(self.report))


@dataclass(frozen=True, slots=True, eq=False)
class StoredVersion:
    """A version of a user that can be looked at and, within the history that is kept, gone back to.

    Attributes:
        version: Its number.
        cause: What made it.
        checkpoint_id: The checkpoint of its weights.
        heads_id: The heads of its weights.
        weights_K: Its weights, [K]; None where statements that they were made from have been deleted since.
        pairs: Statements that they were made from.
        created_at: When it was made.
        current: Whether it is the one that serves.
    """

    version: int
    cause: str
    checkpoint_id: str
    heads_id: str
    weights_K: Vector | None
    pairs: int
    created_at: datetime
    current: bool


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer kept under an idempotency key."""

    key: str
    answer: bytes
    expires_at: datetime


@dataclass(frozen=True, slots=True, eq=False)
class UserExport:
    """All that is stored of one user, as of one moment.

    Attributes:
        user: The user.
        evidence: Every statement as measured with every heads, live or not, by id and heads.
        retained: What else is kept of statements, by id.
        versions: Every version that is kept, the newest first.
        answers: Every answer kept under an idempotency key.
    """

    user: StoredUser
    evidence: list[StoredEvidence]
    retained: dict[str, bytes]
    versions: list[StoredVersion]
    answers: list[KeptAnswer]


@dataclass(frozen=True, slots=True)
class ServingRow:
    """Which checkpoints serve, the same for every replica.

    Attributes:
        active: The checkpoint that answers.
        previous: The one before it, to go back to; None where there was none.
        shadow: One that computes beside it and answers nobody; None for none.
        generation: Grows by one with every change.
        changed_at: When it last changed (aware, UTC).
    """

    active: str
    previous: str | None
    shadow: str | None
    generation: int
    changed_at: datetime
