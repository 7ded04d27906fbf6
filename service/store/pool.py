"""How connections are kept, whatever the database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import NullPool, QueuePool


def pool_arguments(pool_size: int | None, wait_s: float | None) -> dict[str, Any]:
    """Arguments of `create_engine`: at most `pool_size` connections, each waited for `wait_s` at most.

    Without a size nothing is kept: one connection for each use.
    """
    if pool_size is None:
        return {"poolclass": NullPool}
    return {"poolclass": QueuePool, "pool_size": pool_size, "max_overflow": 0, "pool_timeout": wait_s}
