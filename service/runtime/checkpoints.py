"""The checkpoints of the settings, the one that serves by default first."""

from __future__ import annotations

from pathlib import Path

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


def find_checkpoint(settings: Settings, wanted: str, active: str | None) -> Checkpoint:
    """One of the settings' checkpoints.

    Args:
        settings: All of them.
        wanted: Its id or directory; empty for the active one.
        active: The active one's id; None where nothing was ever activated, which means CHECKPOINT.

    Raises:
        ConfigurationError: It is none of them; the message lists them.
    """
    directories = (settings.checkpoint, *settings.further_checkpoints)
    loaded = load_checkpoints(settings)
    for directory, checkpoint in zip(directories, loaded, strict=True):
        if wanted and (checkpoint.checkpoint_id == wanted or Path(wanted).resolve() == directory.resolve()):
            return checkpoint
        if not wanted and active in (None, checkpoint.checkpoint_id):
            return checkpoint
    known = ", ".join(f"{each.checkpoint_id} ({each.name})" for each in loaded)
    raise ConfigurationError(
        f"checkpoint {wanted or active} is none of {known}: name its directory in CHECKPOINT or CHECKPOINTS"
    )
