"""The secret that keys the digests of texts and users."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from service.errors import ConfigurationError
from service.settings import Settings


def read_secret(settings: Settings) -> bytes:
    """SECRET_KEY, or the key kept in DATA_DIR, made on first use."""
    configured = settings.secret_key.get_secret_value()
    if configured:
        if len(configured) < 32:
            raise ConfigurationError(
                "SECRET_KEY must have at least 32 characters; make one with `openssl rand -hex 32`"
            )
        return configured.encode()
    path = settings.data_dir / "secret.key"
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _make(path)
        secret = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"DATA_DIR: {settings.data_dir} cannot hold the secret ({error.strerror}); make it writable, or set "
            "SECRET_KEY and DATABASE_URL"
        ) from error
    if len(secret) < 32:
        raise ConfigurationError(
            f"DATA_DIR: {path} holds less than a key; restore it, or remove it: then pairs that are sent again count "
            "twice"
        )
    return secret


def _make(path: Path) -> None:
    """Make the key, unless another server is quicker."""
    # Whole under another name, or a second server that starts meanwhile would read half a key; a new name each time,
    # or what a killed one left, a second name of the key, would be written over.
    descriptor, temporary = tempfile.mkstemp(prefix=".secret.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
