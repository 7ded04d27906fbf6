"""What the composition root holds of an engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from service.backbone.protocol import Renderer
from service.operations.engine import Engine
from service.worker.selfcheck import Verdict


@dataclass(frozen=True)
class EngineParts:
    """An engine that runs, as one checkpoint sees it. Checkpoints on one backbone have the same `engine`.

    Attributes:
        engine: Token ids to base rewards.
        renderer: Texts to token ids.
        description: The backbone, for `/info`.
        check: Lets the engine score the golden texts: one verdict for each worker.
        close: Finishes accepted work and lets the device go; may be called again.
        columns: Where the checkpoint's base rewards stand in the engine's answers.
        hidden_columns: Where hidden states stand in them; None where they do not.
    """

    engine: Engine
    renderer: Renderer
    description: dict[str, Any]
    check: Callable[[], Awaitable[Sequence[Verdict]]]
    close: Callable[[], None]
    columns: slice
    hidden_columns: slice | None = None
