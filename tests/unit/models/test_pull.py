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
from worker.models.weights.pull import PARTIAL, Unstated, Watcher, pull

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
    named = {"name": "tiny", "family": "text", "provider": "minilm", "source": f"hub:{REPOSITORY}"}
    described = {"revision": "main", "dim": 8, "metric": "cosine", "licence": "none", "memory_mb": 1}
    return ModelSpec.model_validate(named | described | {"files": ["config.json", "model.bin"]} | changes)


class Machine:
    """Pulls from a hub into a folder of its own."""

    def __init__(self, models_dir: Path, hub: HubServer) -> None:
        self.models_dir, self.hub = models_dir, hub
        self.folder = models_dir / "tiny"

    def get(self, spec: ModelSpec | None = None, **options: Any) -> list[str]:
        """The state of each file after a pull."""
        chosen: dict[str, Any] = {"trust": lambda files: True, **options}
        pulled = pull(spec or tiny(), models_dir=self.models_dir, endpoint=self.hub.url, **chosen)
        assert all(file.bytes == file.path.stat().st_size for file in pulled)
        return [file.state for file in pulled]

    def refusal(self, spec: ModelSpec | None = None, **options: Any) -> str:
        """The sentence a pull ends with."""
        with pytest.raises(ModelUnavailable) as error:
            self.get(spec, **options)
        said = str(error.value)
        assert said.startswith("Model tiny can't be pulled: ") and not said.endswith(".") and "\n" not in said
        return said

    def put(self, file: str, content: bytes) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / file).write_bytes(content)

    def content(self, file: str = "model.bin") -> bytes:
        return (self.folder / file).read_bytes()

    def names(self) -> set[str]:
        """The files in the model's folder."""
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}

    def locked(self) -> lock.Entry:
        return lock.read(self.models_dir)["tiny"]

    def break_off(self, file: str = "model.bin") -> str:
        """A pull that ends after `AFTER_BYTES`: it gives up. Returns what it says."""
        self.hub.fail(Fault(file, "drop", after_bytes=AFTER_BYTES))
        self.hub.fail(Fault(file, "drop", after_bytes=0, times=3))
        return self.refusal(by_url(self.hub) if file == "tiny.pt" else tiny())


@pytest.fixture
def machine(tmp_path: Path, hub: HubServer) -> Machine:
    return Machine(tmp_path, hub)


# --- what comes, and what is recorded


def test_brings_the_files_of_the_catalogue_and_nothing_else(machine: Machine, hub: HubServer) -> None:
    assert machine.get() == ["fetched", "fetched"]
    assert machine.names() == {"config.json", "model.bin"}
    assert not any(path.is_symlink() for path in machine.folder.iterdir())
    assert machine.content() == WEIGHTS
    assert machine.locked().revision == hub.branches[REPOSITORY, "main"]
    assert machine.locked().files["model.bin"] == lock.LockedFile(sha256=sum_of(WEIGHTS), bytes=len(WEIGHTS))
    assert not any("evil" in request.path for request in hub.requests)


def test_a_second_pull_asks_nobody_and_fetches_only_what_is_damaged(machine: Machine, hub: HubServer) -> None:
    machine.get()
    asked = len(hub.requests)
    assert machine.get() == ["here", "here"] and len(hub.requests) == asked
    machine.put("model.bin", b"damaged")
    assert machine.get() == ["here", "fetched"] and machine.content() == WEIGHTS


def test_files_that_lay_here_before_are_recorded_not_fetched(machine: Machine, hub: HubServer) -> None:
    hub.publish(REPOSITORY, {"config.json": CONFIG, "model.bin": WEIGHTS, "onnx/more.bin": WEIGHTS})
    machine.put("config.json", CONFIG)
    machine.put("model.bin", WEIGHTS)
    files = ["config.json", "model.bin", "onnx/more.bin"]
    assert machine.get(tiny(files=files)) == ["here", "here", "fetched"] and machine.names() == set(files)
    assert hub.gets("model.bin") == [] and hub.gets("config.json") == []
    assert machine.locked().files["config.json"].sha256 == sum_of(CONFIG)


def test_progress_counts_every_byte(machine: Machine) -> None:
    seen: list[tuple[int, int | None]] = []

    class Counter(Watcher):
        def progress(self, file: str, done_bytes: int, total_bytes: int | None) -> None:
            if file == "model.bin":
                seen.append((done_bytes, total_bytes))

    machine.get(watcher=Counter())
    assert seen == sorted(seen) and len(seen) >= 3 and seen[-1] == (len(WEIGHTS), len(WEIGHTS))


# --- checksums


def test_the_catalogues_sum_is_enforced_before_anything_is_fetched(machine: Machine, hub: HubServer) -> None:
    said = machine.refusal(tiny(sha256={"model.bin": "0" * 64}))
    expected = f"expected sha256 {'0' * 64}, found {sum_of(WEIGHTS)}"
    assert f"model.bin is not the file models.yaml means: {expected}" in said
    assert hub.gets("model.bin") == [] and "model.bin" not in machine.names()


def test_the_catalogues_sum_is_enforced_where_the_hub_states_none(machine: Machine) -> None:
    said = machine.refusal(tiny(sha256={"config.json": "0" * 64}), update=True)
    assert f"expected sha256 {'0' * 64}, found {sum_of(CONFIG)}" in said and "models.yaml" in said
    assert machine.names() == set() and lock.read(machine.models_dir) == {}


def test_another_machine_with_the_same_lock_gets_the_same_commit(tmp_path: Path, hub: HubServer) -> None:
    first, second = Machine(tmp_path / "first", hub), Machine(tmp_path / "second", hub)
    first.get()
    hub.publish(REPOSITORY, {"config.json": b"newer", "model.bin": WEIGHTS[::-1]})
    second.models_dir.mkdir()
    shutil.copy(first.models_dir / lock.FILE, second.models_dir / lock.FILE)
    second.get()
    assert second.content() == WEIGHTS and second.locked() == first.locked()


@pytest.mark.parametrize("file", ["config.json", "model.bin"])
def test_a_file_that_changed_under_its_commit_is_refused(machine: Machine, hub: HubServer, file: str) -> None:
    machine.get()
    before = machine.locked()
    (machine.folder / file).unlink()
    commit = hub.commits[REPOSITORY][hub.branches[REPOSITORY, "main"]]
    old, commit[file] = commit[file], commit[file][::-1]
    said = machine.refusal()
    expected = f"expected sha256 {sum_of(old)}, found {sum_of(commit[file])}"
    assert f"{file} is not the file models.lock means: {expected}" in said
    assert "`scenefleet models pull tiny --update`" in said
    assert file not in machine.names() and machine.locked() == before
    # Nor is it better that the same wrong file is here.
    machine.put(file, commit[file])
    assert f"found {sum_of(commit[file])}" in machine.refusal()


def test_update_takes_the_newest_commit(machine: Machine, hub: HubServer) -> None:
    machine.get()
    commit = hub.publish(REPOSITORY, {"config.json": CONFIG, "model.bin": WEIGHTS[::-1]})
    assert machine.get() == ["here", "here"]
    assert machine.get(update=True) == ["here", "fetched"]
    assert machine.locked().revision == commit and machine.content() == WEIGHTS[::-1]
    assert machine.locked().files["model.bin"].sha256 == sum_of(WEIGHTS[::-1])


def test_an_update_that_fails_leaves_the_old_model_whole(machine: Machine, hub: HubServer) -> None:
    machine.get()
    before = machine.locked()
    hub.publish(REPOSITORY, {"config.json": b"newer", "model.bin": WEIGHTS[::-1]})
    hub.fail(Fault("model.bin", "status", status=404, method="HEAD"))
    machine.refusal(update=True)
    assert machine.content("config.json") == CONFIG and machine.content() == WEIGHTS
    assert machine.locked() == before


def test_bytes_that_are_not_what_the_hub_announced_are_refused(machine: Machine, hub: HubServer) -> None:
    hub.fail(Fault("model.bin", "other"))
    wrong = bytes(byte ^ 1 for byte in WEIGHTS)
    assert f"expected sha256 {sum_of(WEIGHTS)}, found {sum_of(wrong)}" in machine.refusal()
    assert machine.names() & {"model.bin", f"{PARTIAL}/model.bin.part"} == set()
    machine.get()
    assert machine.content() == WEIGHTS


# --- broken transfers


def test_a_dropped_connection_is_taken_up_where_it_ended(machine: Machine, hub: HubServer) -> None:
    hub.fail(Fault("model.bin", "drop", after_bytes=AFTER_BYTES))
    machine.get()
    first, second = hub.gets("model.bin")
    assert (first.range, first.status, second.status) == ("", 200, 206)
    start = int(re.fullmatch(r"bytes=(\d+)-", second.range)[1])  # type: ignore[index]
    assert AFTER_BYTES - download.CHUNK_BYTES <= start <= AFTER_BYTES
    assert machine.content() == WEIGHTS


def test_a_pull_that_gave_up_goes_on_at_the_next(machine: Machine, hub: HubServer) -> None:
    said = machine.break_off()
    assert f"of {len(WEIGHTS):,} bytes" in said and "run the same command again" in said
    assert machine.names() & {"config.json", "model.bin"} == set(), "not all of it is here yet"
    done = (machine.folder / PARTIAL / "model.bin.part").stat().st_size
    assert 0 < done <= AFTER_BYTES
    before = len(hub.gets("model.bin"))
    machine.get()
    assert [request.range for request in hub.gets("model.bin")[before:]] == [f"bytes={done}-"]
    assert len(hub.gets("config.json")) == 1, "the whole partial file was not asked for again"
    assert machine.names() == {"config.json", "model.bin"}


def test_a_partial_file_of_another_content_is_not_continued(machine: Machine, hub: HubServer) -> None:
    machine.break_off()
    hub.publish(REPOSITORY, {"config.json": CONFIG, "model.bin": WEIGHTS[::-1]})
    before = len(hub.gets("model.bin"))
    machine.get()
    assert [request.range for request in hub.gets("model.bin")[before:]] == [""]
    assert machine.content() == WEIGHTS[::-1]


def test_a_server_is_asked_again_if_busy_or_if_it_ignores_the_range(machine: Machine, hub: HubServer) -> None:
    hub.fail(Fault("model.bin", "status", status=503, times=2))
    machine.get()
    assert [request.status for request in hub.gets("model.bin")] == [200] and machine.content() == WEIGHTS
    shutil.rmtree(machine.folder)
    hub.fail(Fault("model.bin", "drop", after_bytes=AFTER_BYTES))
    hub.fail(Fault("model.bin", "ignore_range"))
    machine.get()
    assert [request.status for request in hub.gets("model.bin")] == [200] * 3 and machine.content() == WEIGHTS


def test_a_partial_file_that_is_too_long_is_given_up(machine: Machine) -> None:
    machine.break_off()
    with (machine.folder / PARTIAL / "model.bin.part").open("ab") as stream:
        stream.write(WEIGHTS)
    machine.get()
    assert machine.content() == WEIGHTS


# --- refusals of servers


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "hub:tests/nowhere"}, r"no repository tests/nowhere, or keeps it private \(HTTP 401\)"),
        ({"files": ["absent.bin"]}, r"tests/tiny has no file absent\.bin at revision main \(HTTP 404\)"),
        ({"revision": "v9"}, r"tests/tiny has no revision v9 \(HTTP 404\)"),
        ({"source": "hub:tests/--x"}, r"Repo id must"),
    ],
)
def test_what_is_not_there_is_named(machine: Machine, changes: dict[str, Any], said: str) -> None:
    assert re.search(said, machine.refusal(tiny(**changes)))


@pytest.fixture
def secure(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    """A hub by https, with a certificate that this process trusts."""
    certificate = make_certificate(tmp_path_factory.mktemp("tls") / "server.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    close_session()
    with HubServer(certificate) as server:
        server.publish(REPOSITORY, {"config.json": CONFIG, "model.bin": WEIGHTS})
        server.tokens[REPOSITORY] = "hf_right"
        yield Machine(tmp_path, server)
    close_session()


def test_a_gated_repository_asks_for_a_token_which_the_cdn_never_sees(
    secure: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, said = secure.hub, secure.refusal()
    assert f"{REPOSITORY} asks for permission (HTTP 401): accept its terms on {hub.url}/{REPOSITORY}" in said
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    said = secure.refusal()
    assert "(HTTP 403)" in said and "HF_TOKEN" in said and "hf_wrong" not in said
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    secure.get()
    sent = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert sent and not any(request.authorization for request in sent)


def test_a_redirect_to_plain_http_never_sees_the_token(
    hub: HubServer, secure: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    # The same port and another scheme is another origin as well; here the port differs, too.
    secure.hub.redirect_to = hub.cdn_url
    secure.get()
    sent = [request for request in hub.requests if request.path.startswith("/cdn/")]
    assert sent and not any(request.authorization for request in sent)


def test_a_token_is_never_sent_over_plain_http(
    machine: Machine, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    machine.get()
    assert hub.requests
    hub.tokens[REPOSITORY] = "hf_right"
    shutil.rmtree(machine.folder)
    said = machine.refusal()
    assert "over plain http no token is sent" in said and "https" in said
    assert not any(request.authorization for request in hub.requests)


def test_a_hub_that_fails_or_is_gone_is_named(machine: Machine, hub: HubServer) -> None:
    hub.fail(Fault("config.json", "status", status=500, method="HEAD"))
    assert "(HTTP 500); try again later" in machine.refusal()
    with HubServer() as machine.hub:
        pass
    said = machine.refusal()
    assert f"{machine.hub.url} can't be reached" in said and "refused" in said


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_stays_offline(
    machine: Machine, hub: HubServer, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    said = machine.refusal()
    assert f"config.json has to be fetched, but {variable}=1 forbids it" in said and hub.requests == []
    monkeypatch.delenv(variable)
    machine.get()
    monkeypatch.setenv(variable, "1")
    assert machine.get() == ["here", "here"]


# --- what is trusted


def test_a_first_pull_shows_what_it_trusts(machine: Machine, hub: HubServer) -> None:
    commit = hub.branches[REPOSITORY, "main"]
    shown: list[Unstated] = []
    said = machine.refusal(trust=lambda files: bool(shown.extend(files)))
    assert "no sha256 is stated for config.json" in said and "--trust" in said
    assert {(file.file, file.commit, file.bytes, file.sha256) for file in shown} == {
        ("config.json", commit, len(CONFIG), sum_of(CONFIG)),
        ("model.bin", commit, len(WEIGHTS), sum_of(WEIGHTS)),
    }
    assert all(file.url.startswith(hub.url) for file in shown)
    assert lock.read(machine.models_dir) == {} and "model.bin" not in machine.names()
    asked = len(hub.gets("model.bin"))
    machine.get()
    assert len(hub.gets("model.bin")) == asked, "what was shown is not fetched again"
    # From now on it is held to what was trusted, and nobody is asked.
    shutil.rmtree(machine.folder)
    machine.get(trust=refuse_to_answer)


def test_nobody_trusts_by_default(tmp_path: Path, hub: HubServer) -> None:
    with pytest.raises(ModelUnavailable, match="--trust"):
        pull(tiny(), models_dir=tmp_path, endpoint=hub.url)


def test_stated_files_need_no_trust(machine: Machine) -> None:
    sums = {"config.json": sum_of(CONFIG), "model.bin": sum_of(WEIGHTS)}
    machine.get(tiny(sha256=sums), trust=refuse_to_answer)
    shutil.rmtree(machine.folder)
    (machine.models_dir / lock.FILE).unlink()
    partly = tiny(sha256={**sums, "model.bin": "unknown"}, files=[])
    shown: list[Unstated] = []
    machine.refusal(partly, trust=lambda files: bool(shown.extend(files)))
    assert [file.file for file in shown] == ["model.bin"]


def refuse_to_answer(files: list[Unstated]) -> bool:
    raise AssertionError(f"asked about {files}")


# --- the disk


def test_too_little_room_is_seen_before_the_transfer(
    machine: Machine, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5000, 5000))
    said = machine.refusal()
    assert "no room in" in said and f"needs {len(WEIGHTS):,} bytes more, 5,000 are free" in said
    assert hub.gets("model.bin") == []


def test_a_disk_that_fills_up_says_so_and_the_next_pull_goes_on(
    machine: Machine, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def full(descriptor: int) -> None:
        if os.fstat(descriptor).st_size == len(WEIGHTS):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(download.os, "fsync", full)
    assert "no room in" in machine.refusal()
    assert machine.names() & {"config.json", "model.bin"} == set()
    monkeypatch.setattr(download.os, "fsync", real)
    machine.get()
    assert len(hub.gets("model.bin")) == 1 and machine.content() == WEIGHTS


def test_a_folder_that_is_a_file_is_named(machine: Machine) -> None:
    machine.folder.write_text("in the way")
    assert str(machine.folder) in machine.refusal()


# --- other sources


def by_url(hub: HubServer, **changes: Any) -> ModelSpec:
    hub.files.setdefault("models/tiny.pt", WEIGHTS)
    return tiny(**{"source": f"url:{hub.url}/files/models", "revision": "1", "files": ["tiny.pt"]} | changes)


def test_a_url_is_pulled_and_taken_up_after_a_drop(machine: Machine, hub: HubServer) -> None:
    hub.fail(Fault("tiny.pt", "drop", after_bytes=AFTER_BYTES))
    machine.get(by_url(hub, sha256={"tiny.pt": sum_of(WEIGHTS)}))
    assert [request.status for request in hub.gets("tiny.pt")] == [200, 206]
    assert machine.content("tiny.pt") == WEIGHTS and machine.locked().revision is None


def test_a_file_that_changes_between_two_parts_is_not_mixed(machine: Machine, hub: HubServer) -> None:
    machine.break_off("tiny.pt")
    hub.files["models/tiny.pt"] = WEIGHTS[::-1]
    machine.get(by_url(hub))
    assert machine.content("tiny.pt") == WEIGHTS[::-1]


def test_a_url_that_is_not_there_or_empty_or_has_no_head(machine: Machine, hub: HubServer) -> None:
    said = machine.refusal(by_url(hub, files=["other.pt"]))
    assert f"{hub.url}/files/models/other.pt does not exist (HTTP 404)" in said
    hub.files["models/tiny.pt"] = b""
    assert "is empty" in machine.refusal(by_url(hub))
    del hub.files["models/tiny.pt"]
    hub.fail(Fault("tiny.pt", "status", status=405, method="HEAD"))
    machine.get(by_url(hub))
    assert machine.content("tiny.pt") == WEIGHTS


DETECTOR = "hub:tests/detector/onnx/detector.onnx"


def supplied(**changes: Any) -> ModelSpec:
    files = ["mine.ckpt", DETECTOR]
    return tiny(**{"source": "user:", "revision": "mine", "licence": "unclear", "files": files} | changes)


def test_a_file_of_another_repository_lies_beside_the_others(machine: Machine, hub: HubServer) -> None:
    commit = hub.publish("tests/detector", {"onnx/detector.onnx": WEIGHTS})
    machine.put("mine.ckpt", b"weights")
    assert machine.get(supplied()) == ["supplied", "fetched"]
    assert machine.names() == {"mine.ckpt", "detector.onnx"}
    entry = machine.locked()
    assert entry.revision is None, "the model's own revision stays the catalogue's"
    assert entry.files[DETECTOR].revision == commit
    assert entry.files["mine.ckpt"].sha256 == sum_of(b"weights")


def test_a_file_of_another_repository_stays_at_its_commit(machine: Machine, hub: HubServer) -> None:
    spec = supplied(files=[DETECTOR])
    first = hub.publish("tests/detector", {"onnx/detector.onnx": b"first"})
    machine.get(spec)
    second = hub.publish("tests/detector", {"onnx/detector.onnx": b"second"})
    (machine.folder / "detector.onnx").unlink()
    for update, commit in ((False, first), (True, second)):
        machine.get(spec, update=update)
        assert machine.locked().files[DETECTOR].revision == commit
    stated = DETECTOR.replace("detector/", f"detector@{first}/", 1)
    machine.get(supplied(files=[stated]))
    assert machine.content("detector.onnx") == b"first"


def test_a_file_the_user_supplies_is_asked_for_after_the_pull(machine: Machine, hub: HubServer) -> None:
    assert all(part in machine.refusal(supplied()) for part in ("no repository tests/detector", "mine.ckpt"))
    hub.publish("tests/detector", {"onnx/detector.onnx": WEIGHTS})
    said = machine.refusal(supplied())
    assert f"put it into {machine.folder} and pull again; licence: unclear" in said and "mine.ckpt" in said
    assert machine.names() == {"detector.onnx"} and set(machine.locked().files) == {DETECTOR}


def test_another_supplied_file_needs_update(machine: Machine) -> None:
    spec = supplied(files=["mine.ckpt"])
    machine.put("mine.ckpt", b"weights")
    machine.get(spec)
    machine.put("mine.ckpt", b"others")
    said = machine.refusal(spec)
    assert f"expected sha256 {sum_of(b'weights')}, found {sum_of(b'others')}" in said and "--update" in said
    machine.get(spec, update=True)
    assert machine.locked().files["mine.ckpt"].sha256 == sum_of(b"others")


def test_a_model_inside_a_package_needs_no_pull(tmp_path: Path, hub: HubServer) -> None:
    spec = tiny(source="package:silero_vad/data", files=[], sha256={"silero_vad.jit": "0" * 64})
    machine = Machine(tmp_path / "models", hub)
    assert machine.get(spec) == [] and not machine.models_dir.exists()
