"""Client of the metareward server: personalised rewards for RLHF training, best-of-n and reranking.

    from metareward_client import Client

    with Client("http://127.0.0.1:8000") as client:
        client.adapt("ada", [{"prompt": "Name a tree.", "chosen": "Oak.", "rejected": "There are so many..."}])
        client.score("Name a colour.", ["Red.", "Colours! Where to begin..."], user_id="ada").rewards

`Client` blocks, `AsyncClient` is awaited; `requests` are sent, `answers` come back, `errors` are raised.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metareward_client.answers import (
        Adapted,
        Change,
        Checkpoint,
        Evidence,
        EvidencePage,
        FeedbackAdapted,
        Info,
        Limits,
        Live,
        Ranked,
        Ready,
        Reranked,
        Score,
        Suggestion,
        Suggestions,
        SupportFit,
        User,
        UserExport,
        UserListed,
        UserPage,
        Version,
        VersionPage,
    )
    from metareward_client.async_client import AsyncClient
    from metareward_client.client import Client
    from metareward_client.errors import (
        Conflict,
        ConnectionFailed,
        DeadlineExceeded,
        FieldError,
        InvalidRequest,
        MetarewardError,
        NotAllowed,
        NotAuthenticated,
        NotFound,
        Overloaded,
        QuotaExceeded,
        RequestError,
        ServerError,
        TemporaryError,
        TooLarge,
        UnexpectedAnswer,
    )
    from metareward_client.requests import (
        Candidate,
        Chosen,
        Copied,
        Dwell,
        Edited,
        Event,
        Pair,
        Prompt,
        Ranking,
        Rating,
        Read,
        Regenerated,
        ScoreItem,
        Thumbs,
    )

__all__ = [
    "Adapted",
    "AsyncClient",
    "Candidate",
    "Change",
    "Checkpoint",
    "Chosen",
    "Client",
    "Conflict",
    "ConnectionFailed",
    "Copied",
    "DeadlineExceeded",
    "Dwell",
    "Edited",
    "Event",
    "Evidence",
    "EvidencePage",
    "FeedbackAdapted",
    "FieldError",
    "Info",
    "InvalidRequest",
    "Limits",
    "Live",
    "MetarewardError",
    "NotAllowed",
    "NotAuthenticated",
    "NotFound",
    "Overloaded",
    "Pair",
    "Prompt",
    "QuotaExceeded",
    "Ranked",
    "Ranking",
    "Rating",
    "Read",
    "Ready",
    "Regenerated",
    "RequestError",
    "Reranked",
    "Score",
    "ScoreItem",
    "ServerError",
    "Suggestion",
    "Suggestions",
    "SupportFit",
    "TemporaryError",
    "Thumbs",
    "TooLarge",
    "UnexpectedAnswer",
    "User",
    "UserExport",
    "UserListed",
    "UserPage",
    "Version",
    "VersionPage",
]

# Where the names are, in an order in which none is imported in vain: each needs those before it.
_MODULES = ("errors", "requests", "answers", "client", "async_client")

if not TYPE_CHECKING:  # else every name would be one for type checkers

    def __getattr__(name: str) -> Any:
        """Import what is asked for: pydantic takes its time, and some who import this only want to know its name."""
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        for module in _MODULES if name in __all__ else ():
            found = getattr(importlib.import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                globals()[name] = found
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
