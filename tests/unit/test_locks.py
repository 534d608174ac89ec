"""What is fetched is recorded: packages in locks/, model files in models.yaml."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "locks").glob("*.txt"))
SHA256 = re.compile(r"[0-9a-f]{64}")
COMMIT = re.compile(r"[0-9a-f]{40}")


def name_of(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]).lower()


def locked(path: Path) -> dict[str, list[str]]:
    """Package -> its entries, each with its hashes."""
    found: dict[str, list[str]] = {}
    for entry in re.split(r"(?m)^(?=[A-Za-z0-9])", path.read_text())[1:]:
        found.setdefault(name_of(entry), []).append(entry)
    return found


def versions_of_constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name_of(name): version.strip() for name, version in pairs}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_locked_package_has_its_checksums(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text and "file:" not in text and "--index" not in text
    assert locked(path)
    versions = versions_of_constraints()
    for name, entries in locked(path).items():
        for entry in entries:
            assert re.search(r"==\S+", entry), entry
            hashes = re.findall(r"--hash=(\S+)", entry)
            assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), name
            if name in versions:
                assert f"=={versions[name]} " in entry.replace("\\", " "), f"{name}: run `make lock`"


def test_the_locks_hold_what_the_project_needs_and_no_cuda() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    for lock, wanted in {"run": ("lite", "embedded"), "dev": ("lite", "full", "embedded", "dev")}.items():
        have = locked(ROOT / "locks" / f"{lock}.txt").keys() | {"torch", "scenefleet"}
        needs = [*project["dependencies"], *(need for extra in ("worker", *wanted) for need in extras[extra])]
        missing = {name_of(need) for need in needs} - have
        assert not missing, f"locks/{lock}.txt lacks {missing}: run `make lock`"
        assert not {name for name in have if name.startswith(("nvidia-", "cuda-"))} - {"nvidia-ml-py"}
    assert list(locked(ROOT / "locks" / "torch.txt")) == ["torch"]


def test_make_installs_from_the_locks_only() -> None:
    installs = [line for line in (ROOT / "Makefile").read_text().splitlines() if "$(PIP) install" in line]
    assert installs
    for line in installs:
        # The index of other builds of torch, and our own package.
        assert "--require-hashes" in line or "TORCH_INDEX_URL" in line or "--editable ." in line, line
        assert "--no-deps" in line, line


HOLE = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}


@pytest.mark.parametrize(
    ("holes", "status", "says"),
    [
        ([], 0, "1 packages, 0 known holes"),
        ([HOLE], 1, "x 1: PYSEC-1, CVE-1; mended in 2"),
        (None, 0, "could not be asked"),
    ],
)
def test_audit_fails_for_a_hole_and_not_for_silence(
    tmp_path: Path, holes: list[dict[str, Any]] | None, status: int, says: str
) -> None:
    asker = tmp_path / "pip-audit"
    report = json.dumps({"dependencies": [{"name": "x", "version": "1", "vulns": holes}]})
    find = "path = next(a for a in sys.argv if a.startswith('--output=')).removeprefix('--output=')\n"
    answer = f"{find}open(path, 'w').write({report!r})"
    silence = "sys.exit('ConnectionError: no route')"
    asker.write_text(f"#!{sys.executable}\nimport sys\n{silence if holes is None else answer}\n")
    asker.chmod(0o755)
    command = [sys.executable, str(ROOT / ".ci" / "audit"), str(asker)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, says in done.stdout) == (status, True), done.stdout + done.stderr
    assert holes is not None or len(done.stdout.splitlines()) == 1


# --- models


def models() -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = yaml.safe_load((ROOT / "models.yaml").read_text())["models"]
    return entries


@pytest.mark.parametrize("entry", models(), ids=lambda entry: entry["name"])
def test_every_file_of_a_model_is_pinned_or_says_that_it_is_not(entry: dict[str, Any]) -> None:
    stated: dict[str, str] = entry.get("sha256", {})
    assert set(entry.get("files", ())) <= set(stated), (
        "name each under sha256, `unknown` if nobody states one"
    )
    assert all(value == "unknown" or SHA256.fullmatch(value) for value in stated.values())
    if entry["source"].startswith("hub:"):
        assert COMMIT.fullmatch(entry["revision"]), entry["revision"]
    for file in stated:
        if file.startswith("hub:"):
            assert COMMIT.fullmatch(file.split("/")[1].partition("@")[2]), file


def test_only_what_users_supply_is_unknown() -> None:
    files = [(entry["name"], *item) for entry in models() for item in entry["sha256"].items()]
    unknown = [(name, file) for name, file, value in files if value == "unknown"]
    assert unknown == [("adaface-ir101-webface12m", "adaface_ir101_webface12m.ckpt")]
