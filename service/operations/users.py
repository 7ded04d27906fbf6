"""Looking at users, and forgetting them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from service.errors import NotFound
from service.observability.context import in_context
from service.operations.commits import commit
from service.operations.serving import Serving
from service.operations.solving import Solver, Taste
from service.operations.turns import Turns
from service.store.records import KeptAnswer, StoredEvidence, StoredUser, StoredVersion, UserExport
from service.store.users import UserRepository

__all__ = ["KeptAnswer", "StoredEvidence", "StoredUser", "StoredVersion", "UserExport", "Users"]

Result = TypeVar("Result")


class Users:
    """The use cases behind `/users`. They ask the database, never memory."""

    def __init__(
        self, *, repository: UserRepository, executor: Executor, serving: Serving, turns: Turns, solver: Solver
    ) -> None:
        self._repository = repository
        self._executor = executor
        self._serving = serving
        self._turns = turns
        self._solver = solver

    async def get(self, tenant_id: str, user_id: str) -> tuple[StoredUser, Taste]:
        """One user, and whether their taste changes.

        Raises:
            NotFound: Nobody of this id has adapted.
            Unavailable: The database does not answer.
        """
        served = self._serving.active

        def look() -> tuple[StoredUser, Taste] | None:
            user = self._repository.get(tenant_id, user_id)
            if user is None:
                return None
            evidence = self._repository.support(tenant_id, user_id, served.view)
            return user, self._solver.taste(evidence, served.checkpoint)

        return await self._ask(look)

    async def page(self, tenant_id: str, after: str | None, limit: int) -> tuple[list[StoredUser], str | None]:
        """Up to `limit` users behind `after`, and the id to continue behind, or None on the last page."""
        users = await self._run(lambda: self._repository.list(tenant_id, after, limit + 1))
        more = len(users) > limit
        users = users[:limit]
        return users, users[-1].user_id if more else None

    async def versions(
        self, tenant_id: str, user_id: str, before: int | None, limit: int
    ) -> tuple[list[StoredVersion], int | None]:
        """Up to `limit` kept versions before `before`, the newest first, and where to continue, or None at the end.

        Raises:
            NotFound: There is no such user.
            Unavailable: The database does not answer.
        """
        kept = await self._ask(lambda: self._repository.versions(tenant_id, user_id, before, limit + 1))
        more = len(kept) > limit
        kept = kept[:limit]
        return kept, kept[-1].version if more else None

    async def evidence(
        self, tenant_id: str, user_id: str, after: str | None, limit: int
    ) -> tuple[list[tuple[StoredEvidence, bytes | None]], str | None]:
        """Up to `limit` statements behind `after`, each with what is retained of it, and where to continue.

        Raises:
            NotFound: There is no such user.
            Unavailable: The database does not answer.
        """
        found = await self._ask(lambda: self._repository.evidence(tenant_id, user_id, after, limit + 1))
        more = len(found) > limit
        found = found[:limit]
        return found, found[-1][0].evidence_id if more else None

    async def export(self, tenant_id: str, user_id: str) -> UserExport:
        """All that is stored of a user, as of one moment.

        Raises:
            NotFound: There is no such user.
            Unavailable: The database does not answer.
        """
        return await self._ask(lambda: self._repository.export(tenant_id, user_id))

    async def erase(self, tenant_id: str, user_id: str) -> None:
        """Delete a user, what they said and kept answers.

        Raises:
            NotFound: There is no such user.
            Unavailable: The database does not answer.
        """
        telling: list[asyncio.Task[None]] = []
        incarnation = await commit(
            self._executor,
            in_context(lambda: self._repository.erase(tenant_id, user_id)),
            lambda erased: telling.extend(self._serving.forget(tenant_id, user_id, erased)),
            turns=self._turns,
            of=(tenant_id, user_id),
        )
        for told in telling:
            await asyncio.shield(told)
        if incarnation is None:
            raise NotFound("No such user: nothing to delete.")

    async def _ask(self, read: Callable[[], Result | None]) -> Result:
        found = await self._run(read)
        if found is None:
            raise NotFound("No such user: nobody has adapted under this id. /score serves them from the start.")
        return found

    async def _run(self, read: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._executor, read)
