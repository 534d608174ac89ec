"""What doctor finds on a machine with nothing running, and how it judges what runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis

from cli.doctor import machine_checks, run, service_checks
from cli.doctor.findings import Finding
from local.home import Home
from shared.settings import GiB, Settings, get_settings
from tests.support.services import PostgresServer, RedisServer
from worker.models.weights import verify

pytestmark = pytest.mark.usefixtures("bare")


def by_name(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def test_nothing_running_is_broken_and_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.run(as_json=True) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["healthy"] is False
    checks = {check["check"]: check for check in document["checks"]}
    assert set(checks["up"]) == {"check", "state", "detail", "advice"}
    for name in ("up", "postgres", "redis", "storage", "nodes"):
        assert checks[name]["state"] == "fail"
        assert "scenefleet up" in checks[name]["detail"] + checks[name]["advice"]
    assert checks["model asr"]["state"] == "ok"
    assert run.run(as_json=False) == 1
    assert re.search(r"broken: .*postgres", capsys.readouterr().out)


def test_a_killed_up_is_noticed() -> None:
    home = Home(get_settings())
    home.root.mkdir(parents=True)
    home.write_run({"pid": 1})
    (finding,) = machine_checks.check_up(get_settings())
    assert finding.state == "fail" and "killed" in finding.detail


def test_a_damaged_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = tmp_path / "models.yaml"
    shipped = Path(machine_checks.__file__).parents[2] / "models.yaml"
    sums = re.compile(r"(en-us\.lm\.bin: )[0-9a-f]{64}")
    catalogue.write_text(sums.sub(r"\g<1>" + "f" * 64, shipped.read_text()))
    findings = by_name(machine_checks.check_models(Settings(SCENEFLEET_MODELS_FILE=catalogue)))
    assert findings["model asr"].state == "fail" and "en-us.lm.bin" in findings["model asr"].detail
    assert findings["model text"].state == "ok"


def test_models_that_were_not_pulled_are_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "INSTALLED", tmp_path / "installed")
    settings = Settings(SCENEFLEET_PROFILE="full", models_dir=tmp_path)
    findings = by_name(machine_checks.check_models(settings))
    # Its weights come in a package.
    assert findings.pop("model ocr").state == "ok"
    # Videos are split without it, less well.
    cuts = findings.pop("model cuts")
    assert cuts.state == "warn" and cuts.advice == "run `scenefleet models pull transnetv2`"
    assert set(findings) == {"model asr", "model text", "model rerank", "model vision", "model face"}
    assert {found.state for found in findings.values()} == {"fail"}
    assert findings["model rerank"].advice == "run `scenefleet models pull bge-reranker-v2-m3`"
    assert str(tmp_path / "bge-reranker-v2-m3" / "config.json") in findings["model rerank"].detail
    assert "put the files you supply there" in findings["model face"].advice


@pytest.mark.parametrize(("free_bytes", "state"), [(100 * GiB, "ok"), (3 * GiB, "warn"), (GiB // 4, "fail")])
def test_room_on_disk(free_bytes: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda path: SimpleNamespace(free=free_bytes))
    assert [finding.state for finding in machine_checks.check_disks(get_settings())] == [state]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine_checks.PACKAGES, "worker", {"no_such_module": "no-such-package"})
    finding = by_name(machine_checks.check_packages(get_settings()))["packages worker"]
    assert finding.state == "fail"
    assert "no-such-package" in finding.detail and "pip install" in finding.advice


def test_a_redis_that_may_forget_is_reported(redis_server: RedisServer) -> None:
    settings = Settings(REDIS_URL=redis_server.url)
    # The version of the server that is installed here is another matter.
    found = by_name(service_checks.check_redis(settings))
    assert {found[name].state for name in ("redis eviction", "redis durability")} == {"ok"}
    with redis.Redis.from_url(redis_server.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
        found = by_name(service_checks.check_redis(settings))
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")
    assert found["redis eviction"].state == "fail" and "allkeys-lru" in found["redis eviction"].detail
    assert found["redis durability"].state == "warn"


def test_a_database_without_schema_is_told(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_URL", postgres.url("template1"))
    get_settings.cache_clear()
    found = by_name(service_checks.check_postgres(get_settings()))
    assert found["postgres"].state == "ok" and postgres.password not in found["postgres"].detail
    assert found["schema"].state == "fail" and found["schema"].advice == "scenefleet db upgrade"
