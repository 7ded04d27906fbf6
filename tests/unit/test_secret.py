"""The secret that a server without SECRET_KEY keeps for itself."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.runtime.secret import read_secret
from service.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("SECRET_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    return Settings(data_dir=tmp_path / "data")


def test_all_who_start_together_and_later_have_one_key(settings: Settings) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(lambda _: read_secret(settings), range(32)))
    assert len(found) == 1
    assert len(found.pop()) >= 32
    assert [file.name for file in settings.data_dir.iterdir()] == ["secret.key"]
    assert (settings.data_dir / "secret.key").stat().st_mode & 0o077 == 0


def test_what_a_killed_start_left_behind_does_not_change_the_key(settings: Settings) -> None:
    secret = read_secret(settings)
    # In a container every server has the same process id.
    os.link(settings.data_dir / "secret.key", settings.data_dir / f".secret.{os.getpid()}")
    assert read_secret(settings) == secret


def test_half_a_key_is_none(settings: Settings) -> None:
    settings.data_dir.mkdir()
    (settings.data_dir / "secret.key").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="less than a key"):
        read_secret(settings)
