"""What is kept: users, their pairs and answered requests in SQL; hot copies in the process. No tensors, no HTTP."""

from service.store.caches import BaseRewardCache, CachedBaseRewards, CachedUser, LruCache, UserCache
from service.store.database import Database, open_database
from service.store.records import AdaptOutcome, Idempotency, NewPair, Solution, StoredPair, StoredUser
from service.store.users import UserRepository

__all__ = [
    "AdaptOutcome",
    "BaseRewardCache",
    "CachedBaseRewards",
    "CachedUser",
    "Database",
    "Idempotency",
    "LruCache",
    "NewPair",
    "Solution",
    "StoredPair",
    "StoredUser",
    "UserCache",
    "UserRepository",
    "open_database",
]
