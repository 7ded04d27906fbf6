"""The secret that keys the digests of texts and users."""

from __future__ import annotations

import os
import secrets

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
        try:
            # Made whole under another name: a second server that starts meanwhile must not read half a key.
            temporary = path.with_name(f".secret.{os.getpid()}")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"DATA_DIR: {settings.data_dir} cannot hold the secret ({error.strerror}); make it writable, or set "
            "SECRET_KEY and DATABASE_URL"
        ) from error
