"""Settings: all documented, impossible ones refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.settings import DEMO_CHECKPOINT, Settings, read_settings

ROOT = Path(__file__).resolve().parents[2]


def test_env_example_lists_every_setting_with_its_default() -> None:
    listed = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert set(listed) == {name.upper() for name in Settings.model_fields}


def test_every_line_of_env_example_is_a_value_that_is_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (ROOT / ".env.example").read_text()
    (tmp_path / ".env").write_text(re.sub(r"^# ([A-Z_]+=.*)$", r"\1", text, flags=re.MULTILINE))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "service").symlink_to(ROOT / "service")
    from_file = read_settings()
    monkeypatch.chdir(ROOT)
    assert from_file.model_dump(exclude={"checkpoint"}) == Settings().model_dump(exclude={"checkpoint"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "70000"),
        ("PORT", "http"),
        ("MAX_BATCH_TOKENS", "0"),
        ("DTYPE", "int8"),
        ("CACHE_SCOPE", "world"),
        ("STALE_LIMIT_S", "-1"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_an_impossible_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name):
        read_settings()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_only_loopback_is_served_without_keys(host: str) -> None:
    assert read_settings(host=host).keys_required
    with pytest.raises(ConfigurationError, match="loopback"):
        read_settings(host=host, auth="off")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.9", "::1", "localhost"])
def test_loopback_is_served(host: str) -> None:
    assert read_settings(host=host).host == host
    assert not read_settings(host=host).keys_required
    assert read_settings(host=host, auth="required").keys_required


def test_host_names_follow_from_keys_and_address() -> None:
    assert read_settings().host_names == frozenset()
    assert read_settings(host="0.0.0.0").host_names is None
    assert read_settings(host="0.0.0.0", allowed_hosts=" API.example.org, b ").host_names == {"api.example.org", "b"}


@pytest.mark.parametrize(("host", "listened"), [("[::1]", "::1"), (" 127.0.0.1 ", "127.0.0.1")])
def test_an_address_may_be_written_as_in_a_url(host: str, listened: str) -> None:
    assert read_settings(host=host).host == listened


def test_a_queue_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_queue_tokens"):
        read_settings(max_queue_tokens=10, max_batch_tokens=20)


def test_a_password_is_not_printed() -> None:
    settings = read_settings(database_url="postgresql://me:hunter2@db/x")
    assert "hunter2" not in repr(settings)
    with pytest.raises(ConfigurationError) as refused:
        read_settings(database_url="postgresql://me:hunter2@db/x", port=70_000)
    assert "hunter2" not in str(refused.value)


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1234")
    assert read_settings().port == 1234
    assert read_settings(port=99).port == 99
    assert read_settings(port=None).port == 1234


def test_a_path_that_is_set_but_empty_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKPOINT", "")
    monkeypatch.setenv("DATA_DIR", "")
    settings = read_settings()
    assert settings.checkpoint == DEMO_CHECKPOINT
    assert settings.data_dir == Settings.model_fields["data_dir"].default
