"""What `/info` tells."""

from __future__ import annotations

from typing import Any

from service import __version__
from service.checkpoints import Checkpoint
from service.operations.serving import Serving
from service.runtime.engine_parts import EngineParts
from service.settings import Settings


def personalises(checkpoint: Checkpoint) -> bool | None:
    """Whether users' weights move at all under this checkpoint, as its training found; None where it did not say."""
    found = checkpoint.training.get("personalises")
    return found if isinstance(found, bool) else None


def info_of(settings: Settings, serving: Serving, engines: dict[str, EngineParts]) -> dict[str, Any]:
    """The checkpoint that answers now, its backbone, what else is loaded, and the limits.

    Args:
        settings: All of them.
        serving: What is loaded.
        engines: The engine of each checkpoint, by checkpoint_id.
    """
    active = serving.active
    parts = engines[active.checkpoint_id]
    return {
        "version": __version__,
        "checkpoint": _checkpoint(active.checkpoint),
        "checkpoints": [
            {**_checkpoint(served.checkpoint), "active": served is active, "shadow": served is serving.shadow}
            for served in serving.loaded
        ],
        "backbone": parts.description,
        "limits": {
            "max_pairs": settings.max_pairs,
            "max_completions": settings.max_completions,
            "max_text_bytes": settings.max_text_bytes,
            "max_body_bytes": settings.max_body_bytes,
            "max_tokens": parts.renderer.max_tokens,
            "support_limit": settings.support_limit,
        },
    }


def _checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "name": checkpoint.name,
        "checkpoint_id": checkpoint.checkpoint_id,
        "heads_id": checkpoint.heads_id,
        "recipe": checkpoint.recipe,
        "heads": checkpoint.heads,
        "personalises": personalises(checkpoint),
    }
