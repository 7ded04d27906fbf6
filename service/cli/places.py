"""Where a command may write: found out before the work, and told by the flag that names the place."""

from __future__ import annotations

import os
from pathlib import Path

from service.errors import ConfigurationError


def check_folder(flag: str, folder: Path) -> None:
    """Refuse a folder that could not be written into; nothing is made.

    Raises:
        ConfigurationError: Names the flag.
    """
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not place.is_dir():
        where = "it is" if place == folder else f"{place} is"
        raise ConfigurationError(f"{flag} {folder} must be a folder, and {where} a file: give another path")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigurationError(f"{flag} {folder} cannot be written: {place} does not allow it")


def check_file(flag: str, file: Path) -> None:
    """Refuse a file that could not be written; nothing is made.

    Raises:
        ConfigurationError: Names the flag.
    """
    if file.is_dir():
        raise ConfigurationError(f"{flag} {file} must be a file, and it is a folder: add a file's name")
    check_folder(flag, file.parent)
