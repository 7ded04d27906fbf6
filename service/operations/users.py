"""Looking at users, and forgetting them."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from service.errors import NotFound
from service.observability.context import in_context
from service.operations.commits import commit
from service.operations.serving import Serving
from service.operations.turns import Turns
from service.store.records import StoredUser
from service.store.users import UserRepository

__all__ = ["StoredUser", "Users"]


class Users:
    """The use cases behind `/users`. They ask the database, never memory."""

    def __init__(self, *, repository: UserRepository, executor: Executor, serving: Serving, turns: Turns) -> None:
        self._repository = repository
        self._executor = executor
        self._serving = serving
        self._turns = turns

    async def get(self, tenant_id: str, user_id: str) -> StoredUser:
        """One user.

        Raises:
            NotFound: Nobody of this id has adapted.
            Unavailable: The database does not answer.
        """
        user = await asyncio.get_running_loop().run_in_executor(
            self._executor, self._repository.get, tenant_id, user_id
        )
        if user is None:
            raise NotFound("No such user: nobody has adapted under this id. /score serves them from the start.")
        return user

    async def page(self, tenant_id: str, after: str | None, limit: int) -> tuple[list[StoredUser], str | None]:
        """Up to `limit` users behind `after`, and the id to continue behind, or None on the last page."""
        users = await asyncio.get_running_loop().run_in_executor(
            self._executor, self._repository.list, tenant_id, after, limit + 1
        )
        more = len(users) > limit
        users = users[:limit]
        return users, users[-1].user_id if more else None

    async def erase(self, tenant_id: str, user_id: str) -> None:
        """Delete a user, their pairs and kept answers.

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
