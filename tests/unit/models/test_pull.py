"""Pulling weights from a stand-in hub: the right bytes or one sentence, and never half a file under its name."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import close_session

from shared.errors import ModelUnavailable
from tests.support.hub_server import Fault, HubServer, make_certificate
from worker.models.spec import ModelSpec
from worker.models.weights import download, lock
from worker.models.weights.pull import PARTIAL, Pulled, Unstated, Watcher, pull

REPOSITORY = "tests/tiny"
CONFIG = b'{"layers": 2}'
#: Large enough to come from the other origin, and in several chunks.
WEIGHTS = bytes(range(256)) * 5000
#: Where faults strike: more than one chunk has been written by then.
AFTER_BYTES = 600_000
assert 2 * download.CHUNK_BYTES < AFTER_BYTES < len(WEIGHTS)


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSES_S", (0.01, 0.01))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.publish(REPOSITORY, {"config.json": CONFIG, "model.bin": WEIGHTS, "evil.py": b"print('run')"})
        yield server


def tiny(**changes: Any) -> ModelSpec:
    entry = {
        "name": "tiny",
        "family": "text",
        "provider": "minilm",
        "source": f"hub:{REPOSITORY}",
        "revision": "main",
        "dim": 8,
        "metric": "cosine",
        "licence": "none",
        "memory_mb": 1,
        "files": ["config.json", "model.bin"],
    }
    return ModelSpec.model_validate(entry | changes)


def get(spec: ModelSpec, models_dir: Path, hub: HubServer, **options: Any) -> list[Pulled]:
    return pull(spec, models_dir=models_dir, endpoint=hub.url, **{"trust": lambda files: True, **options})


def refusal(spec: ModelSpec, models_dir: Path, hub: HubServer, **options: Any) -> str:
    """The sentence a pull ends with."""
    with pytest.raises(ModelUnavailable) as error:
        get(spec, models_dir, hub, **options)
    said = str(error.value)
    assert (
        said.startswith(f"Model {spec.name} can't be pulled: ")
        and not said.endswith(".")
        and "\n" not in said
    )
    return said


def names(folder: Path) -> set[str]:
    """What lies in a model's folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- what comes, and what is recorded


def test_brings_the_files_of_the_catalogue_and_nothing_else(tmp_path: Path, hub: HubServer) -> None:
    pulled = get(tiny(), tmp_path, hub)
    assert [(file.file, file.state, file.bytes) for file in pulled] == [
        ("config.json", "fetched", len(CONFIG)),
        ("model.bin", "fetched", len(WEIGHTS)),
    ]
    assert names(tmp_path / "tiny") == {"config.json", "model.bin"}
    assert not any(path.is_symlink() for path in (tmp_path / "tiny").iterdir())
    assert (tmp_path / "tiny" / "model.bin").read_bytes() == WEIGHTS
    entry = lock.read(tmp_path)["tiny"]
    assert entry.revision == hub.branches[REPOSITORY, "main"]
    assert entry.files["model.bin"] == lock.LockedFile(sha256=sum_of(WEIGHTS), bytes=len(WEIGHTS))
    assert not any("evil" in request.path for request in hub.requests)


def test_a_second_pull_asks_nobody(tmp_path: Path, hub: HubServer) -> None:
    get(tiny(), tmp_path, hub)
    asked = len(hub.requests)
    assert [file.state for file in get(tiny(), tmp_path, hub)] == ["here", "here"]
    assert len(hub.requests) == asked


def test_a_damaged_file_is_fetched_again(tmp_path: Path, hub: HubServer) -> None:
    get(tiny(), tmp_path, hub)
    (tmp_path / "tiny" / "model.bin").write_bytes(b"damaged")
    assert [file.state for file in get(tiny(), tmp_path, hub)] == ["here", "fetched"]
    assert (tmp_path / "tiny" / "model.bin").read_bytes() == WEIGHTS


def test_files_that_lay_here_before_are_recorded_not_fetched(tmp_path: Path, hub: HubServer) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_bytes(CONFIG)
    (tmp_path / "tiny" / "model.bin").write_bytes(WEIGHTS)
    assert [file.state for file in get(tiny(), tmp_path, hub)] == ["here", "here"]
    assert hub.gets("model.bin") == [] and hub.gets("config.json") == []
    assert lock.read(tmp_path)["tiny"].files["config.json"].sha256 == sum_of(CONFIG)


def test_files_come_from_folders_of_the_repository(tmp_path: Path, hub: HubServer) -> None:
    hub.publish(REPOSITORY, {"onnx/model.bin": WEIGHTS})
    get(tiny(files=["onnx/model.bin"]), tmp_path, hub)
    assert names(tmp_path / "tiny") == {"onnx/model.bin"}


def test_progress_counts_every_byte(tmp_path: Path, hub: HubServer) -> None:
    class Counter(Watcher):
        def __init__(self) -> None:
            self.seen: dict[str, list[tuple[int, int | None]]] = {}

        def progress(self, file: str, done_bytes: int, total_bytes: int | None) -> None:
            self.seen.setdefault(file, []).append((done_bytes, total_bytes))

    counter = Counter()
    get(tiny(), tmp_path, hub, watcher=counter)
    done = [done for done, _ in counter.seen["model.bin"]]
    assert done == sorted(done) and len(done) >= 3
    assert counter.seen["model.bin"][-1] == (len(WEIGHTS), len(WEIGHTS))


# --- sums


def test_the_catalogues_sum_is_enforced_before_anything_is_fetched(tmp_path: Path, hub: HubServer) -> None:
    said = refusal(tiny(sha256={"model.bin": "0" * 64}), tmp_path, hub)
    assert (
        f"model.bin is not the file models.yaml means: expected sha256 {'0' * 64}, found {sum_of(WEIGHTS)}"
        in said
    )
    assert hub.gets("model.bin") == [] and "model.bin" not in names(tmp_path / "tiny")


def test_the_catalogues_sum_is_enforced_where_the_hub_states_none(tmp_path: Path, hub: HubServer) -> None:
    said = refusal(tiny(sha256={"config.json": "0" * 64}), tmp_path, hub, update=True)
    assert f"expected sha256 {'0' * 64}, found {sum_of(CONFIG)}" in said and "models.yaml" in said
    assert names(tmp_path / "tiny") == set() and lock.read(tmp_path) == {}


def test_another_machine_with_the_same_lock_gets_the_same_commit(tmp_path: Path, hub: HubServer) -> None:
    get(tiny(), tmp_path / "first", hub)
    hub.publish(REPOSITORY, {"config.json": b"newer", "model.bin": WEIGHTS[::-1]})
    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "first" / lock.FILE, tmp_path / "second" / lock.FILE)
    get(tiny(), tmp_path / "second", hub)
    assert (tmp_path / "second" / "tiny" / "model.bin").read_bytes() == WEIGHTS
    assert lock.read(tmp_path / "second") == lock.read(tmp_path / "first")


@pytest.mark.parametrize("file", ["config.json", "model.bin"])
def test_a_file_that_changed_under_its_commit_is_refused(tmp_path: Path, hub: HubServer, file: str) -> None:
    get(tiny(), tmp_path, hub)
    before = lock.read(tmp_path)
    (tmp_path / "tiny" / file).unlink()
    commit = hub.branches[REPOSITORY, "main"]
    old = hub.commits[REPOSITORY][commit][file]
    hub.commits[REPOSITORY][commit][file] = new = old[::-1]
    said = refusal(tiny(), tmp_path, hub)
    assert (
        f"{file} is not the file models.lock means: expected sha256 {sum_of(old)}, found {sum_of(new)}"
        in said
    )
    assert "`scenefleet models pull tiny --update`" in said
    assert file not in names(tmp_path / "tiny") and lock.read(tmp_path) == before


def test_that_the_hub_has_the_same_wrong_file_makes_it_no_better(tmp_path: Path, hub: HubServer) -> None:
    get(tiny(), tmp_path, hub)
    commit = hub.branches[REPOSITORY, "main"]
    hub.commits[REPOSITORY][commit]["model.bin"] = other = WEIGHTS[::-1]
    (tmp_path / "tiny" / "model.bin").write_bytes(other)
    assert f"found {sum_of(other)}" in refusal(tiny(), tmp_path, hub)


def test_update_takes_the_newest_commit(tmp_path: Path, hub: HubServer) -> None:
    get(tiny(), tmp_path, hub)
    commit = hub.publish(REPOSITORY, {"config.json": CONFIG, "model.bin": WEIGHTS[::-1]})
    assert [file.state for file in get(tiny(), tmp_path, hub)] == ["here", "here"]
    assert [file.state for file in get(tiny(), tmp_path, hub, update=True)] == ["here", "fetched"]
    entry = lock.read(tmp_path)["tiny"]
    assert entry.revision == commit and entry.files["model.bin"].sha256 == sum_of(WEIGHTS[::-1])
    assert (tmp_path / "tiny" / "model.bin").read_bytes() == WEIGHTS[::-1]


def test_an_update_that_fails_leaves_the_old_model_whole(tmp_path: Path, hub: HubServer) -> None:
    get(tiny(), tmp_path, hub)
    before = lock.read(tmp_path)
    hub.publish(REPOSITORY, {"config.json": b"newer", "model.bin": WEIGHTS[::-1]})
    hub.fail(Fault("model.bin", "status", status=404, method="HEAD"))
    refusal(tiny(), tmp_path, hub, update=True)
    assert (tmp_path / "tiny" / "config.json").read_bytes() == CONFIG
    assert (tmp_path / "tiny" / "model.bin").read_bytes() == WEIGHTS
    assert lock.read(tmp_path) == before


def test_bytes_that_are_not_what_the_hub_announced_are_refused(tmp_path: Path, hub: HubServer) -> None:
    hub.fail(Fault("model.bin", "other"))
    wrong = bytes(byte ^ 1 for byte in WEIGHTS)
    said = refusal(tiny(), tmp_path, hub)
    assert f"expected sha256 {sum_of(WEIGHTS)}, found {sum_of(wrong)}" in said
    assert names(tmp_path / "tiny") & {"model.bin", f"{PARTIAL}/model.bin.part"} == set()
    get(tiny(), tmp_path, hub)
    assert (tmp_path / "tiny" / "model.bin").read_bytes() == WEIGHTS


# --- broken transfers


def test_a_dropped_connection_is_taken_up_where_it_ended(tmp_path: Path, hub: HubServer) -> None:
    hub.fail(Fault("model.bin", "drop", after_bytes=AFTER_BYTES))
    get(tiny(), tmp_path, hub)
    first, second = hub.gets("model.bin")
    assert (first.range, first.status) == ("", 200)
    assert second.status == 206
    start = int(re.fullmatch(r"bytes=(\d+)-", second.range)[1])  # type: ignore[index]
    assert AFTER_BYTES - download.CHUNK_BYTES <= start <= AFTER_BYTES
    assert (tmp_path / "tiny" / "model.bin").read_bytes() == WEIGHTS


def test_a_pull_that_gave_up_goes_on_at_the_next(tmp_path: Path, hub: HubServer) -> None:
    hub.fail(Fault("model.bin", "drop", after_bytes=AFTER_BYTES))
    hub.fail(Fault("model.bin", "drop", after_bytes=0, times=3))
    said = refusal(tiny(), tmp_path, hub)
    assert f"of {len(WEIGHTS):,} bytes" in said and "run the same command again" in said
    assert names(tmp_path / "tiny") & {"config.json", "model.bin"} == set(), "not all of it is here yet"
    done = (tmp_path / "tiny" / PARTIAL / "model.bin.part").stat().st_size
    assert 0 < done <= AFTER_BYTES
    before = len(hub.gets("model.bin"))
    get(tiny(), tmp_path, hub)
    assert [request.range for request in hub.gets("model.bin")[before:]] == [f"bytes={done}-"]
    assert len(hub.gets("config.json")) == 1, "the whole partial file was not asked for again"
    assert names(tmp_path / "tiny") == {"config.json", "model.bin"}


def test_a_partial_file_of_another_content_is_not_continued(tmp_path: Path, hub: HubServer) -> None:
    hub.fail(Fault("model.bin", "drop", after_bytes=AFTER_BYTES))
    hub.fail(Fault("model.bin", "drop", after_bytes=0, times=3))
    refusal(tiny(), tmp_path, hub)
    hub.publish(REPOSITORY, {"config.json": CONFIG, "model.bin": WEIGHTS[::-1]})
    before = len(hub.gets("model.bin"))
    get(tiny(), tmp_path, hub)
    assert [request.range for request in hub.gets("model.bin")[before:]] == [""]
    assert (tmp_path / "tiny" / "model.bin").read_bytes() == WEIGHTS[::-1]


def test_a_server_that_ignores_the_range_is_read_from_the_start(tmp_path: Path, hub: HubServer) -> None:
    hub.fail(Fault("model.bin", "drop", after_bytes=AFTER_BYTES))
    hub.fail(Fault("model.bin", "ignore_range"))
    get(tiny(), tmp_path, hub)
    assert [request.status for request in hub.gets("model.bin")] == [200, 200]
    assert (tmp_path / "tiny" / "model.bin").read_bytes() == WEIGHTS


def test_a_busy_server_is_asked_again(tmp_path: Path, hub: HubServer) -> None:
    hub.fail(Fault("model.bin", "status", status=503, times=2))
    get(tiny(), tmp_path, hub)
    assert (tmp_path / "tiny" / "model.bin").read_bytes() == WEIGHTS


def test_a_partial_file_that_is_too_long_is_given_up(tmp_path: Path, hub: HubServer) -> None:
    hub.fail(Fault("model.bin", "drop", after_bytes=AFTER_BYTES))
    hub.fail(Fault("model.bin", "drop", after_bytes=0, times=3))
    refusal(tiny(), tmp_path, hub)
    with (tmp_path / "tiny" / PARTIAL / "model.bin.part").open("ab") as stream:
        stream.write(WEIGHTS)
    get(tiny(), tmp_path, hub)
    assert (tmp_path / "tiny" / "model.bin").read_bytes() == WEIGHTS


# --- refusals of servers


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"source": "hub:tests/nowhere"},
            r"has no repository tests/nowhere, or keeps it private \(HTTP 401\)",
        ),
        ({"files": ["absent.bin"]}, r"tests/tiny has no file absent\.bin at revision main \(HTTP 404\)"),
        ({"revision": "v9"}, r"tests/tiny has no revision v9 \(HTTP 404\)"),
        ({"source": "hub:tests/--x"}, r"Repo id must"),
    ],
    ids=["repository", "file", "revision", "name"],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, hub: HubServer, changes: dict[str, Any], said: str
) -> None:
    assert re.search(said, refusal(tiny(**changes), tmp_path, hub))


@pytest.fixture
def secure_hub(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    """The same by https, with a certificate that this process trusts."""
    certificate = make_certificate(tmp_path_factory.mktemp("tls") / "server.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    close_session()
    with HubServer(certificate) as server:
        server.publish(REPOSITORY, {"config.json": CONFIG, "model.bin": WEIGHTS})
        yield server
    close_session()


def test_a_gated_repository_asks_for_a_token_which_the_cdn_never_sees(
    tmp_path: Path, secure_hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = secure_hub
    hub.tokens[REPOSITORY] = "hf_right"
    said = refusal(tiny(), tmp_path, hub)
    assert f"{REPOSITORY} asks for permission (HTTP 401): accept its terms on {hub.url}/{REPOSITORY}" in said
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    said = refusal(tiny(), tmp_path, hub)
    assert "(HTTP 403)" in said and "HF_TOKEN" in said and "hf_wrong" not in said
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    get(tiny(), tmp_path, hub)
    sent = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert sent and not any(request.authorization for request in sent)


def test_a_redirect_to_plain_http_never_sees_the_token(
    tmp_path: Path, hub: HubServer, secure_hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    secure_hub.tokens[REPOSITORY] = "hf_right"
    # The same port and another scheme is another origin as well; here the port differs, too.
    secure_hub.redirect_to = hub.cdn_url
    get(tiny(), tmp_path, secure_hub)
    sent = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert sent and not any(request.authorization for request in sent)


def test_a_token_is_never_sent_over_plain_http(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    get(tiny(), tmp_path, hub)
    assert hub.requests and not any(request.authorization for request in hub.requests)
    hub.tokens[REPOSITORY] = "hf_right"
    shutil.rmtree(tmp_path / "tiny")
    said = refusal(tiny(), tmp_path, hub)
    assert "over plain http no token is sent" in said and "https" in said
    assert not any(request.authorization for request in hub.requests)


# --- what is trusted


def test_a_first_pull_shows_what_it_trusts(tmp_path: Path, hub: HubServer) -> None:
    commit = hub.branches[REPOSITORY, "main"]
    shown: list[Unstated] = []
    said = refusal(tiny(), tmp_path, hub, trust=lambda files: bool(shown.extend(files)))
    assert "no sha256 is stated for config.json" in said and "--trust" in said
    assert {(file.file, file.commit, file.bytes, file.sha256) for file in shown} == {
        ("config.json", commit, len(CONFIG), sum_of(CONFIG)),
        ("model.bin", commit, len(WEIGHTS), sum_of(WEIGHTS)),
    }
    assert all(file.url.startswith(hub.url) for file in shown)
    assert lock.read(tmp_path) == {}
    assert not (tmp_path / "tiny" / "model.bin").exists()
    asked = len(hub.gets("model.bin"))
    get(tiny(), tmp_path, hub)
    assert len(hub.gets("model.bin")) == asked, "what was shown is not fetched again"
    # From now on it is held to what was trusted, and nobody is asked.
    shutil.rmtree(tmp_path / "tiny")
    get(tiny(), tmp_path, hub, trust=refuse_to_answer)


def test_nobody_trusts_by_default(tmp_path: Path, hub: HubServer) -> None:
    with pytest.raises(ModelUnavailable, match="--trust"):
        pull(tiny(), models_dir=tmp_path, endpoint=hub.url)


def test_stated_files_need_no_trust(tmp_path: Path, hub: HubServer) -> None:
    stated = tiny(sha256={"config.json": sum_of(CONFIG), "model.bin": sum_of(WEIGHTS)})
    get(stated, tmp_path, hub, trust=refuse_to_answer)
    partly = tiny(name="partly", sha256={"config.json": sum_of(CONFIG), "model.bin": "unknown"}, files=[])
    shown: list[Unstated] = []
    refusal(partly, tmp_path, hub, trust=lambda files: bool(shown.extend(files)))
    assert [file.file for file in shown] == ["model.bin"]


def test_a_stated_commit_is_the_one_that_is_asked_for(tmp_path: Path, hub: HubServer) -> None:
    commit = hub.publish("tests/detector", {"detector.onnx": b"first"})
    hub.publish("tests/detector", {"detector.onnx": b"second"})
    file = f"hub:tests/detector@{commit}/detector.onnx"
    get(tiny(files=["config.json", file]), tmp_path, hub)
    assert (tmp_path / "tiny" / "detector.onnx").read_bytes() == b"first"


def refuse_to_answer(files: list[Unstated]) -> bool:
    raise AssertionError(f"asked about {files}")


def test_nobody_there(tmp_path: Path) -> None:
    with HubServer() as gone:
        pass
    said = refusal(tiny(), tmp_path, gone)
    assert f"{gone.url} can't be reached" in said and "refused" in said


def test_a_server_that_is_no_hub(tmp_path: Path, hub: HubServer) -> None:
    hub.fail(Fault("config.json", "status", status=500, method="HEAD"))
    assert "(HTTP 500); try again later" in refusal(tiny(), tmp_path, hub)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_means_offline(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    said = refusal(tiny(), tmp_path, hub)
    assert f"config.json has to be fetched, but {variable}=1 forbids it" in said and hub.requests == []
    monkeypatch.delenv(variable)
    get(tiny(), tmp_path, hub)
    monkeypatch.setenv(variable, "1")
    assert [file.state for file in get(tiny(), tmp_path, hub)] == ["here", "here"]


# --- the disk


def test_too_little_room_is_seen_before_the_transfer(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5000, 5000))
    said = refusal(tiny(), tmp_path, hub)
    assert "no room in" in said and f"needs {len(WEIGHTS):,} bytes more, 5,000 are free" in said
    assert hub.gets("model.bin") == []


def test_a_disk_that_fills_up_says_so_and_the_next_pull_goes_on(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def full(descriptor: int) -> None:
        if os.fstat(descriptor).st_size == len(WEIGHTS):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(download.os, "fsync", full)
    assert "no room in" in refusal(tiny(), tmp_path, hub)
    assert names(tmp_path / "tiny") & {"config.json", "model.bin"} == set()
    monkeypatch.setattr(download.os, "fsync", real)
    get(tiny(), tmp_path, hub)
    assert len(hub.gets("model.bin")) == 1
    assert (tmp_path / "tiny" / "model.bin").read_bytes() == WEIGHTS


def test_a_folder_that_is_a_file_is_named(tmp_path: Path, hub: HubServer) -> None:
    (tmp_path / "tiny").write_text("in the way")
    assert str(tmp_path / "tiny") in refusal(tiny(), tmp_path, hub)


# --- other sources


def by_url(hub: HubServer, **changes: Any) -> ModelSpec:
    hub.files["models/tiny.pt"] = WEIGHTS
    return tiny(**{"source": f"url:{hub.url}/files/models", "revision": "1", "files": ["tiny.pt"]} | changes)


def test_a_url_is_pulled_and_taken_up_after_a_drop(tmp_path: Path, hub: HubServer) -> None:
    hub.fail(Fault("tiny.pt", "drop", after_bytes=AFTER_BYTES))
    get(by_url(hub, sha256={"tiny.pt": sum_of(WEIGHTS)}), tmp_path, hub)
    assert [request.status for request in hub.gets("tiny.pt")] == [200, 206]
    assert (tmp_path / "tiny" / "tiny.pt").read_bytes() == WEIGHTS
    assert lock.read(tmp_path)["tiny"].revision is None


def test_a_url_with_another_content_is_refused(tmp_path: Path, hub: HubServer) -> None:
    spec = by_url(hub, sha256={"tiny.pt": "0" * 64})
    said = refusal(spec, tmp_path, hub)
    assert (
        f"tiny.pt is not the file models.yaml means: expected sha256 {'0' * 64}, found {sum_of(WEIGHTS)}"
        in said
    )
    assert names(tmp_path / "tiny") == set()


def test_a_file_that_changes_between_two_parts_is_not_mixed(tmp_path: Path, hub: HubServer) -> None:
    spec = by_url(hub)
    hub.fail(Fault("tiny.pt", "drop", after_bytes=AFTER_BYTES))
    hub.fail(Fault("tiny.pt", "drop", after_bytes=0, times=3))
    refusal(spec, tmp_path, hub)
    hub.files["models/tiny.pt"] = WEIGHTS[::-1]
    get(spec, tmp_path, hub)
    assert (tmp_path / "tiny" / "tiny.pt").read_bytes() == WEIGHTS[::-1]


def test_a_url_that_is_not_there(tmp_path: Path, hub: HubServer) -> None:
    said = refusal(by_url(hub, files=["other.pt"]), tmp_path, hub)
    assert f"{hub.url}/files/models/other.pt does not exist (HTTP 404)" in said


def test_a_server_without_head_is_read_all_the_same(tmp_path: Path, hub: HubServer) -> None:
    hub.fail(Fault("tiny.pt", "status", status=405, method="HEAD"))
    get(by_url(hub), tmp_path, hub)
    assert (tmp_path / "tiny" / "tiny.pt").read_bytes() == WEIGHTS


def test_an_empty_file_is_refused(tmp_path: Path, hub: HubServer) -> None:
    spec = by_url(hub)
    hub.files["models/tiny.pt"] = b""
    assert "is empty" in refusal(spec, tmp_path, hub)


def supplied(**changes: Any) -> ModelSpec:
    files = ["mine.ckpt", "hub:tests/detector/onnx/detector.onnx"]
    return tiny(**{"source": "user:", "revision": "mine", "licence": "unclear", "files": files} | changes)


def test_a_file_of_another_repository_lies_beside_the_others(tmp_path: Path, hub: HubServer) -> None:
    commit = hub.publish("tests/detector", {"onnx/detector.onnx": WEIGHTS})
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "mine.ckpt").write_bytes(b"weights")
    pulled = get(supplied(), tmp_path, hub)
    assert {file.file: file.state for file in pulled} == {
        "mine.ckpt": "supplied",
        "hub:tests/detector/onnx/detector.onnx": "fetched",
    }
    assert names(tmp_path / "tiny") == {"mine.ckpt", "detector.onnx"}
    entry = lock.read(tmp_path)["tiny"]
    assert entry.revision is None, "the model's own revision stays the catalogue's"
    assert entry.files["hub:tests/detector/onnx/detector.onnx"].revision == commit
    assert entry.files["mine.ckpt"].sha256 == sum_of(b"weights")


def test_a_file_of_another_repository_stays_at_its_commit(tmp_path: Path, hub: HubServer) -> None:
    spec = supplied(files=["hub:tests/detector/detector.onnx"])
    first = hub.publish("tests/detector", {"detector.onnx": WEIGHTS})
    get(spec, tmp_path, hub)
    second = hub.publish("tests/detector", {"detector.onnx": WEIGHTS[::-1]})
    (tmp_path / "tiny" / "detector.onnx").unlink()
    for update, commit in ((False, first), (True, second)):
        get(spec, tmp_path, hub, update=update)
        assert lock.read(tmp_path)["tiny"].files[spec.files[0]].revision == commit


def test_a_file_the_user_supplies_is_asked_for_after_the_rest_was_pulled(
    tmp_path: Path, hub: HubServer
) -> None:
    hub.publish("tests/detector", {"onnx/detector.onnx": WEIGHTS})
    said = refusal(supplied(), tmp_path, hub)
    assert f"put it into {tmp_path / 'tiny'} and pull again; licence: unclear" in said and "mine.ckpt" in said
    assert names(tmp_path / "tiny") == {"detector.onnx"}
    assert set(lock.read(tmp_path)["tiny"].files) == {"hub:tests/detector/onnx/detector.onnx"}


def test_what_must_be_supplied_is_said_even_when_the_hub_is_away(tmp_path: Path, hub: HubServer) -> None:
    said = refusal(supplied(), tmp_path, hub)
    assert "no repository tests/detector" in said and "mine.ckpt" in said


def test_another_supplied_file_needs_update(tmp_path: Path, hub: HubServer) -> None:
    spec = supplied(files=["mine.ckpt"])
    (tmp_path / "tiny").mkdir()
    path = tmp_path / "tiny" / "mine.ckpt"
    path.write_bytes(b"weights")
    get(spec, tmp_path, hub)
    path.write_bytes(b"others")
    said = refusal(spec, tmp_path, hub)
    assert f"expected sha256 {sum_of(b'weights')}, found {sum_of(b'others')}" in said and "--update" in said
    get(spec, tmp_path, hub, update=True)
    assert lock.read(tmp_path)["tiny"].files["mine.ckpt"].sha256 == sum_of(b"others")


def test_a_model_inside_a_package_needs_no_pull(tmp_path: Path, hub: HubServer) -> None:
    spec = tiny(source="package:silero_vad/data", files=[], sha256={"silero_vad.jit": "0" * 64})
    assert get(spec, tmp_path / "models", hub) == [] and not (tmp_path / "models").exists()
