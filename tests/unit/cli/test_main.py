"""The command line itself: help, errors, start-up cost. In processes of their own, as users run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from cli.main import app
from shared import contracts
from tests.support.fleet import kept_environment

ROOT = Path(__file__).parents[3]


def run(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        env={**kept_environment(), "SCENEFLEET_HOME": str(home), "COLUMNS": "80", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def commands() -> list[str]:
    found = []
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        found.append(name)
        found += [f"{name} {inner}" for inner in getattr(command, "commands", ())]
    return found


def test_help_names_every_command_and_fits_80_columns(tmp_path: Path) -> None:
    result = run("--help", home=tmp_path)
    assert result.returncode == 0
    assert all(re.search(rf"^│ {name} ", result.stdout, re.M) for name in commands() if " " not in name)
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help(command: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, json\nfrom cli.main import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "sys.stderr.write(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    loaded = set(json.loads(result.stderr))
    heavy = {
        "torch",
        "av",
        "cv2",
        "sqlalchemy",
        "celery",
        "transformers",
        "numpy",
        "redis",
        "psycopg",
        "worker",
        "db",
    }
    assert "typer" in loaded
    assert not loaded & heavy


@pytest.mark.parametrize(
    "arguments", [["status"], ["status", "v"], ["failures"], ["search", "rocket"], ["people", "list"]]
)
def test_a_request_loads_neither_a_database_nor_an_engine(arguments: list[str], tmp_path: Path) -> None:
    """A quick command is quick: what it loads is what it takes to ask the fleet."""
    code = (
        "import sys, json\nfrom cli.main import app\n"
        "try:\n    app(json.loads(sys.argv[1]), standalone_mode=False)\n"
        "except Exception as error:\n    said = type(error).__name__\n"
        "sys.stderr.write(json.dumps([said, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "REDIS_URL": "redis://127.0.0.1:1/0",
            "SCENEFLEET_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said, loaded = json.loads(result.stderr.splitlines()[-1])
    assert said == "BrokerUnavailable", "it asked"
    assert "celery" in loaded
    heavy = {"sqlalchemy", "alembic", "psycopg", "pgvector", "numpy", "torch", "cv2", "av", "flower", "transformers",
             "minio", "urllib3", "pydantic_settings", "db", "worker", "tasks"}  # fmt: skip
    assert not set(loaded) & heavy


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("nonsense",), 2, "nonsense"),
        (("status", "--nonsense"), 2, "--nonsense"),
        (("index",), 2, "FILE"),
        (("search", "x", "--limit", "0"), 2, "--limit"),
        (("status", "v1"), 1, "REDIS_URL is not set"),
        (("status",), 1, "REDIS_URL is not set"),
        (("node", "smell"), 1, "'smell'"),
        (("node", "asr"), 1, "REDIS_URL is not set"),
        (("node-health", "asr"), 1, "REDIS_URL is not set"),
        (("index", "/nowhere/film.mp4"), 1, "/nowhere/film.mp4"),
        (("search", "x", "--mode", "psychic"), 1, "psychic"),
        (("subtitles", "v1"), 1, "REDIS_URL is not set"),
        (("subtitles", "v1", "-o", "/nowhere/v1.srt"), 1, "/nowhere"),
        (("db", "current"), 1, "POSTGRES_URL is not set"),
        (("delete", "v1", "--yes"), 1, "REDIS_URL is not set"),
    ],
)
def test_errors_are_one_sentence_on_stderr(
    arguments: tuple[str, ...], status: int, said: str, tmp_path: Path
) -> None:
    result = run(*arguments, home=tmp_path / "home")
    assert result.returncode == status
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("scenefleet: ")
    assert said in lines[0]


def test_a_wrong_setting_is_named_with_its_value(tmp_path: Path) -> None:
    result = run("up", home=tmp_path / "home", SCENEFLEET_PROFILE="heavy")
    assert result.returncode == 1
    assert "SCENEFLEET_PROFILE='heavy'" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_server_that_is_away_is_one_sentence_without_its_password(tmp_path: Path) -> None:
    result = run("status", "v1", home=tmp_path, REDIS_URL="redis://:secret@127.0.0.1:1/0")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "Redis" in result.stderr
    assert "secret" not in result.stderr
    current = run("db", "current", home=tmp_path, POSTGRES_URL="postgresql://u:secret@127.0.0.1:1/x")
    assert current.returncode == 1
    assert "Postgres at postgresql://u:***@127.0.0.1:1/x does not answer" in current.stderr
    assert current.stderr.count("\n") == 1


def test_down_with_nothing_running_is_fine(tmp_path: Path) -> None:
    result = run("down", home=tmp_path / "home")
    assert result.returncode == 0
    assert "nothing runs" in result.stderr


def test_settings_show_no_password(tmp_path: Path) -> None:
    secrets = {
        "POSTGRES_URL": "postgresql://u:hunter2@db/x",
        "REDIS_URL": "redis://:hunter2@box/0",
        "STORAGE_SECRET_KEY": "hunter2",
    }
    result = run("settings", "--json", home=tmp_path, **secrets)
    assert result.returncode == 0
    assert "hunter2" not in result.stdout
    rows = {row["variable"]: row for row in json.loads(result.stdout)["settings"]}
    assert rows["POSTGRES_URL"]["value"] == "postgresql://u:***@db/x"
    assert rows["SCENEFLEET_PROFILE"]["default"] and not rows["REDIS_URL"]["default"]


def test_the_documented_fields_are_the_contracts_fields() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    kinds = {
        "Video": contracts.VideoStatus,
        "Stage": contracts.StageStatus,
        "Scene": contracts.SceneView,
        "Hit": contracts.SearchHit,
        "Coverage": contracts.Coverage,
        "Receipt": contracts.Receipt,
        "Person": contracts.PersonView,
        "Photo": contracts.PhotoView,
        "Face": contracts.FaceView,
        "Event": contracts.EventView,
    }
    for name, contract in kinds.items():
        paragraph = re.search(rf"^\*\*{name}\*\*: (.*?)(?:\n\n|\Z)", text, re.M | re.S)
        assert paragraph is not None, name
        named = set(re.findall(r"`(\w+)`", paragraph[1]))
        assert set(contract.model_fields) - {"version"} <= named, name
