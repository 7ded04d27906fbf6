"""The checkpoints of the settings, the one that serves by default first."""

from __future__ import annotations

from service.checkpoints import Checkpoint, load_checkpoint
from service.errors import ConfigurationError
from service.settings import Settings


def load_checkpoints(settings: Settings) -> list[Checkpoint]:
    """CHECKPOINT, then those of CHECKPOINTS.

    Raises:
        ConfigurationError: One cannot be read, or two are the same.
    """
    loaded: list[Checkpoint] = []
    for directory in (settings.checkpoint, *settings.further_checkpoints):
        checkpoint = load_checkpoint(directory)
        for other in loaded:
            if other.checkpoint_id == checkpoint.checkpoint_id:
                raise ConfigurationError(
                    f"CHECKPOINTS: {directory} is the same checkpoint as {other.name} ({other.checkpoint_id}); "
                    "name it once"
                )
        loaded.append(checkpoint)
    return loaded
