"""Who calls, and whether they may."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from service.errors import Forbidden, Unauthenticated
from service.observability import context
from service.observability.metrics import Metrics
from service.operations.authenticator import Authenticator
from service.operations.keys import ROLES, Role
from service.operations.quotas import TenantLimits

# Whoever calls a loopback server without a key.
DEFAULT_TENANT: Final = "default"


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request is done.

    Attributes:
        tenant_id: Whose users and cached texts it sees.
        role: What it may do.
        key_id: The public id of its key; empty where no key was needed.
    """

    tenant_id: str
    role: Role
    key_id: str = ""

    def may(self, role: Role) -> bool:
        """Whether what `role` may do is allowed."""
        return ROLES.index(self.role) >= ROLES.index(role)


class Access:
    """The door: every request but the public ones passes it before its body is read."""

    def __init__(
        self, *, authenticator: Authenticator, limits: TenantLimits, metrics: Metrics, keys_required: bool
    ) -> None:
        self._authenticator = authenticator
        self._limits = limits
        self._metrics = metrics
        self._keys_required = keys_required

    async def admit(self, key: str | None) -> Caller:
        """The caller behind a key, charged for one request.

        A key that is sent is verified even where none is needed, so that mistakes show.

        Raises:
            Unauthenticated: No key where one is needed, or one that is not good.
            QuotaExceeded: The tenant's requests of this minute are used up.
            Unavailable, Overloaded: The key cannot be verified now.
        """
        if key is not None:
            found = await self._authenticator.verify(key)
            self._limits.learn(found.tenant_id, found.quotas)
            caller = Caller(found.tenant_id, _role(found.role), found.key_id)
        elif self._keys_required:
            raise self.missing("Send an API key: Authorization: Bearer mr_...")
        else:
            caller = Caller(DEFAULT_TENANT, "admin")
        context.tenant.set(caller.tenant_id)
        context.key_id.set(caller.key_id)
        await self._limits.charge_request(caller.tenant_id)
        return caller

    def missing(self, message: str) -> Unauthenticated:
        """The error, counted, for a request without anything that reads as a key."""
        self._metrics.authentications.labels("missing").inc()
        return Unauthenticated(message)

    def require(self, caller: Caller, role: Role) -> None:
        """Refuse a caller whose key does not reach as far as `role`.

        Raises:
            Forbidden: It does not.
        """
        if not caller.may(role):
            self._metrics.authentications.labels("role").inc()
            raise Forbidden(f"This API key has the role {caller.role}; this needs {role}.")

    def close(self) -> None:
        """Let the authenticator's threads go."""
        self._authenticator.close()


def _role(name: str) -> Role:
    for role in ROLES:
        if role == name:
            return role
    raise Forbidden("This API key has a role of a newer version of this server.")
