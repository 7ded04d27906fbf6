"""What is kept: users, what they said and answered requests in SQL; hot copies in the process. No tensors, no HTTP."""

from service.store.caches import BaseRewardCache, CachedBaseRewards, CachedUser, LruCache, UserCache
from service.store.database import Database, open_database
from service.store.records import (
    Append,
    Change,
    ChangeOutcome,
    Delete,
    EvidenceKind,
    HeadsView,
    Idempotency,
    NewEvidence,
    Replace,
    Reset,
    Rollback,
    ServingRow,
    Solution,
    StoredEvidence,
    StoredUser,
    StoredVersion,
    UserExport,
)
from service.store.serving import ServingRepository
from service.store.users import UserRepository

__all__ = [
    "Append",
    "BaseRewardCache",
    "CachedBaseRewards",
    "CachedUser",
    "Change",
    "ChangeOutcome",
    "Database",
    "Delete",
    "EvidenceKind",
    "HeadsView",
    "Idempotency",
    "LruCache",
    "NewEvidence",
    "Replace",
    "Reset",
    "Rollback",
    "ServingRepository",
    "ServingRow",
    "Solution",
    "StoredEvidence",
    "StoredUser",
    "StoredVersion",
    "UserCache",
    "UserExport",
    "UserRepository",
    "open_database",
]
