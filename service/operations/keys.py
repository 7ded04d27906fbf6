"""API keys: what they look like, and making, listing and revoking them."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, get_args

from service.errors import FieldIssue, InvalidInput
from service.store.keys import KeyRepository
from service.store.records import ApiKey

__all__ = ["ROLES", "ApiKey", "Keys", "NewKey", "Role", "check_tenant_id", "digest_of", "is_well_formed"]

Role = Literal["score", "adapt", "admin"]
# Each may do what those before it may.
ROLES: Final[tuple[Role, ...]] = get_args(Role)

# mr_<key id>_<256 random bits>: the prefix lets scanners for leaked secrets find it, the id tells which one it is.
_KEY: Final = re.compile(r"mr_[a-z2-7]{10}_[A-Za-z0-9_-]{43}")
_ID_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"

# Stricter than user ids: no colon, so that "tenant:user" reads in one way only.
_TENANT_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MAX_NAME: Final = 200


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made; `secret` is all that opens the door, and is not to be had again."""

    key_id: str
    secret: str
    expires_at: datetime | None

    def __repr__(self) -> str:
        return f"NewKey({self.key_id})"


class Keys:
    """The use cases behind `metareward keys`."""

    def __init__(self, repository: KeyRepository) -> None:
        self._repository = repository

    def create(self, tenant_id: str, role: Role, name: str = "", lasts: timedelta | None = None) -> NewKey:
        """A new key; its tenant is made if unknown.

        Raises:
            InvalidInput: The tenant's id, the name or the time is impossible.
        """
        check_tenant_id(tenant_id)
        issues = []
        if len(name) > _MAX_NAME or not name.isprintable():
            issues.append(FieldIssue("name", f"must be at most {_MAX_NAME} printable characters"))
        if lasts is not None and lasts <= timedelta(0):
            issues.append(FieldIssue("expires-in", "must be longer than nothing"))
        if issues:
            raise InvalidInput(issues)
        key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(10))
        secret = f"mr_{key_id}_{secrets.token_urlsafe(32)}"
        expires_at = None if lasts is None else datetime.now(UTC) + lasts
        self._repository.create(
            tenant_id=tenant_id,
            key_id=key_id,
            digest=digest_of(secret),
            role=role,
            name=name,
            expires_at=expires_at,
        )
        return NewKey(key_id, secret, expires_at)

    def list(self, tenant_id: str | None = None) -> list[ApiKey]:
        """Every key, or a tenant's: revoked and expired ones too."""
        return self._repository.list(tenant_id)

    def revoke(self, key_id: str) -> None:
        """Make a key useless, for good; servers notice when they look again.

        Raises:
            NotFound: There is no such key.
            InvalidInput: A whole key was given, and now stands in the history of a shell.
        """
        if is_well_formed(key_id):
            raise InvalidInput.single(
                "key_id", "is a whole key, not its id: the id is the part between the underscores"
            )
        self._repository.revoke(key_id)


def digest_of(key: str) -> bytes:
    """What is stored of a key (32 bytes). 256 random bits need no salt and no slow hash."""
    return hashlib.sha256(key.encode()).digest()


def is_well_formed(key: str) -> bool:
    """Whether this could be a key of ours at all."""
    return _KEY.fullmatch(key) is not None


def check_tenant_id(tenant_id: str) -> None:
    """Refuse an id that no tenant can have.

    Raises:
        InvalidInput: The rule, on the field `tenant`.
    """
    if not _TENANT_ID.fullmatch(tenant_id):
        raise InvalidInput.single(
            "tenant", "must be 1 to 64 characters: letters, digits and . _ -, beginning with a letter or digit"
        )
