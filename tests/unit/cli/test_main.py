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
from typer.testing import CliRunner

from cli import screen
from cli.main import app
from shared import contracts
from tests.support.fleet import kept_environment

ROOT = Path(__file__).parents[3]


def run(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=120, env={**kept_environment(), "SCENEFLEET_HOME": str(home), "COLUMNS": "80", **environment},
    )  # fmt: skip


GROUPS = get_command(app).commands  # type: ignore[attr-defined]
INNER = [f"{name} {inner}" for name in GROUPS for inner in getattr(GROUPS[name], "commands", ())]


def test_help_names_every_command_and_fits_80_columns(tmp_path: Path) -> None:
    result = run("--help", home=tmp_path)
    assert result.returncode == 0
    assert all(re.search(rf"^│ {name} ", result.stdout, re.M) for name in GROUPS)
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


@pytest.mark.parametrize("command", [*GROUPS, *INNER])
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0 and "Usage:" in result.output


LOADS = """
import sys, json
from cli.main import app
said = ""
try:
    app(json.loads(sys.argv[1]), standalone_mode=False)
except Exception as error:
    said = type(error).__name__
sys.stderr.write(json.dumps([said, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
HEAVY = {"sqlalchemy", "alembic", "psycopg", "pgvector", "numpy", "torch", "cv2", "av", "flower", "transformers", "minio",
         "urllib3", "pydantic_settings", "db", "worker", "tasks"}  # fmt: skip


@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["search", "rocket"], ["people", "list"]])
def test_a_quick_command_loads_neither_a_database_nor_an_engine(arguments: list[str], tmp_path: Path) -> None:
    """It is quick: what it loads is what it takes to ask the fleet, and help does not even load that."""
    address = {"REDIS_URL": "redis://127.0.0.1:1/0", "SCENEFLEET_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", LOADS, json.dumps(arguments)], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={"PATH": os.environ["PATH"], **address},
    )  # fmt: skip
    said, loaded = json.loads(result.stderr.splitlines()[-1])
    asked = arguments != ["--help"]
    assert said == ("BrokerUnavailable" if asked else ""), "it asked"
    assert ("celery" in loaded, "redis" in loaded) == (asked, asked)
    assert not set(loaded) & HEAVY


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("nonsense",), 2, "nonsense"),
        (("status", "--nonsense"), 2, "--nonsense"),
        (("index",), 2, "FILE"),
        (("status",), 1, "REDIS_URL is not set"),
        (("node", "smell"), 1, "'smell'"),
        (("node", "asr"), 1, "REDIS_URL is not set"),
        (("node-health", "asr"), 1, "REDIS_URL is not set"),
        (("index", "/nowhere/film.mp4"), 1, "/nowhere/film.mp4"),
        (("search", "x", "--mode", "psychic"), 1, "psychic"),
        (("subtitles", "v1", "-o", "/nowhere/v1.srt"), 1, "/nowhere"),
        (("db", "current"), 1, "POSTGRES_URL is not set"),
    ],
)
def test_errors_are_one_sentence(arguments: tuple[str, ...], status: int, said: str, tmp_path: Path) -> None:
    result = run(*arguments, home=tmp_path / "home")
    assert (result.returncode, result.stdout) == (status, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("scenefleet: ") and said in line


@pytest.mark.parametrize(
    ("command", "environment", "said"),
    [
        ("up", {"SCENEFLEET_PROFILE": "heavy"}, "SCENEFLEET_PROFILE='heavy'"),
        ("status v1", {"REDIS_URL": "redis://:secret@127.0.0.1:1/0"}, "Redis"),
        ("db current", {"POSTGRES_URL": "postgresql://u:secret@127.0.0.1:1/x"},
         "Postgres at postgresql://u:***@127.0.0.1:1/x does not answer"),
    ],
)  # fmt: skip
def test_what_is_wrong_around_it_is_one_sentence_without_a_password(
    command: str, environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    result = run(*command.split(), home=tmp_path / "home", **environment)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert said in line and "secret" not in line


def test_down_with_nothing_running_is_fine(tmp_path: Path) -> None:
    result = run("down", home=tmp_path / "home")
    assert result.returncode == 0 and "nothing runs" in result.stderr


def test_settings_show_no_password(tmp_path: Path) -> None:
    secrets = {
        "POSTGRES_URL": "postgresql://u:hunter2@db/x",
        "POSTGRES_ADMIN_URL": "postgresql://admin:hunter2@db/postgres",
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
        "Video": contracts.VideoStatus, "Stage": contracts.StageStatus, "Scene": contracts.SceneView,
        "Hit": contracts.SearchHit, "Coverage": contracts.Coverage, "Receipt": contracts.Receipt,
        "Person": contracts.PersonView, "Photo": contracts.PhotoView, "Face": contracts.FaceView,
        "Event": contracts.EventView, "Webhook": contracts.WebhookView, "Delivery": contracts.DeliveryView,
    }  # fmt: skip
    for name, contract in kinds.items():
        paragraph = re.search(rf"^\*\*{name}\*\*: (.*?)(?:\n\n|\Z)", text, re.M | re.S)
        assert paragraph is not None, name
        named = set(re.findall(r"`(\w+)`", paragraph[1]))
        assert set(contract.model_fields) - {"version"} <= named, name


# --- output


def test_clock() -> None:
    shown = {0: "0:00.0", 8.6: "0:08.6", 59.94: "0:59.9", 59.97: "1:00.0", 3599.99: "1:00:00.0"}
    shown[7265.25] = "2:01:05.2"
    assert {time_s: screen.clock(time_s) for time_s in shown} == shown


def test_json_is_one_document_with_the_contract_s_fields(capsys: pytest.CaptureFixture[str]) -> None:
    coverage = contracts.Coverage(scenes=1, with_words=1, with_vectors=None, videos_in_work=0)
    answer = contracts.SearchAnswer(query="naïve", mode="keyword", model=None, hits=(), coverage=coverage)
    screen.write_json({"answers": [answer]})
    written = capsys.readouterr().out
    assert "naïve" in written
    assert json.loads(written)["answers"][0] == answer.model_dump(mode="json")
