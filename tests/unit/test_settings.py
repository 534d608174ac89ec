"""Which environment variable says what."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.errors import InvalidRequest
from shared.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without settings."""
    for name, field in Settings.model_fields.items():
        for variable in (name, field.alias or name):
            monkeypatch.delenv(variable.upper(), raising=False)


def test_a_setting_with_an_alias_is_not_read_by_its_own_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """HOME is the user's folder, not the fleet's: a fleet would fill it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    before = Settings()
    assert before.home == tmp_path / ".scenefleet"
    fields = Settings.model_fields.items()
    aliased = [name for name, field in fields if field.alias and field.alias.lower() != name]
    assert {"home", "profile", "nodes"} <= set(aliased)
    for name in aliased:
        if name.upper() not in os.environ:
            monkeypatch.setenv(name.upper(), "7")
    assert Settings() == before


def test_variables_are_upper_case_names_or_aliases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCENEFLEET_HOME", str(tmp_path))
    monkeypatch.setenv("BACKOFF_S", "9")
    monkeypatch.setenv("REDIS_URL", "")
    found = Settings()
    assert (found.home, found.backoff_s, found.redis_url) == (tmp_path, 9, "")
    given = Settings(home=tmp_path / "a", backoff_s=3)
    assert (given.home, given.backoff_s) == (tmp_path / "a", 3)
    assert Settings(SCENEFLEET_HOME=tmp_path / "b").home == tmp_path / "b"


@pytest.mark.parametrize("url", ["redis://:hunter2@h:6379/0", "http://u:hunter2@h", "h:5672"])
def test_a_broker_of_another_kind_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("BROKER_URL", url)
    with pytest.raises(InvalidRequest, match="must begin with amqp://") as refused:
        load_settings()
    assert str(refused.value).startswith("BROKER_URL=") and "hunter2" not in str(refused.value)
    monkeypatch.setenv("BROKER_URL", "amqps://u:hunter2@h/v")
    assert load_settings().broker_url == "amqps://u:hunter2@h/v"
