"""The catalogue: what ships is complete, and a wrong file is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from shared.errors import ModelUnavailable
from shared.settings import Settings
from worker.models.cache import PROVIDERS
from worker.models.catalog import load_catalog
from worker.models.spec import Kind
from worker.models.weights import lock
from worker.models.weights.verify import locate

ENTRY: dict[str, Any] = {"name": "tiny", "family": "text", "provider": "minilm", "source": "path:/nowhere"}
ENTRY |= {"revision": "1", "dim": 8, "metric": "cosine", "licence": "none", "memory_mb": 1}
ENTRY |= {"sha256": {"weights.bin": "0" * 64}, "profiles": ["lite"]}


def write(path: Path, *entries: dict[str, Any]) -> Path:
    file = path / "models.yaml"
    file.write_text(yaml.safe_dump({"version": 1, "models": list(entries)}))
    return file


def test_the_shipped_catalogue_is_complete() -> None:
    catalog = load_catalog()
    for spec in catalog.specs:
        # The process that decodes runs the one of kind cuts itself.
        assert ((spec.kind, spec.provider) in PROVIDERS) == (spec.kind != "cuts")
        assert (spec.dim is None) == (spec.kind in ("asr", "rerank", "ocr", "cuts"))


MODELS = {
    "lite": {
        "asr": ("pocketsphinx-en-us", None, None),
        "text": ("all-minilm-l6-v2", 384, "cosine"),
        "face": ("dlib-resnet-v1", 128, "l2"),
        "ocr": ("rapidocr-ppocrv6-small", None, None),
        "cuts": ("transnetv2", None, None),
    },
    "full": {
        "asr": ("whisper-medium", None, None),
        "text": ("bge-m3", 1024, "cosine"),
        "rerank": ("bge-reranker-v2-m3", None, None),
        "vision": ("siglip-so400m-patch14-384", 1152, "cosine"),
        "face": ("adaface-ir101-webface12m", 512, "cosine"),
        "ocr": ("rapidocr-ppocrv6-small", None, None),
        "cuts": ("transnetv2", None, None),
    },
}


@pytest.mark.parametrize("profile", MODELS)
def test_the_models_of_a_profile(profile: str) -> None:
    active = load_catalog().for_profile(profile)
    assert {kind: (spec.name, spec.dim, spec.metric) for kind, spec in active.items()} == MODELS[profile]


def test_every_listed_file_is_where_the_catalogue_says() -> None:
    for spec in load_catalog().for_profile("lite").values():
        for file in spec.sha256:
            if spec.is_pulled:
                continue  # not in a package
            assert locate(spec, file).is_file()


def test_the_non_commercial_landmark_model_is_never_named() -> None:
    assert not any("68" in file for file in load_catalog().get("dlib-resnet-v1").sha256)


def test_unknown_profile_and_model_name_those_there_are(tmp_path: Path) -> None:
    catalog = load_catalog(write(tmp_path, ENTRY))
    with pytest.raises(ModelUnavailable, match=r"no profile 'huge' .* use one of lite"):
        catalog.for_profile("huge")
    with pytest.raises(ModelUnavailable, match=r"no model 'other' .* it has tiny"):
        catalog.get("other")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"family": "smell"}, r"wrong family \('smell'\)"),
        ({"dim": 0}, r"wrong dim \(0\)"),
        ({"metric": None}, "dim and metric go together"),
        ({"sha256": {"a": "123"}}, r"wrong sha256\.a \('123'\)"),
        ({"sha256": {}}, "files is empty: name at least one file"),
        ({"source": "http://example.org/x"}, "wrong source"),
        ({"profiles": "lite"}, "wrong profiles"),
        ({"kind": "rerank", "family": "face"}, "family face has no kind rerank: use face"),
        ({"kind": "smell"}, r"wrong kind \('smell'\)"),
        ({"source": "hub:no-owner"}, "wrong source"),
        ({"source": "url:ftp://example.org"}, "wrong source"),
        ({"files": ["other.bin"]}, "a file that is not pulled needs its sha256 here"),
        ({"batch": 0}, "wrong batch"),
        ({"colour": "red"}, "wrong colour"),
        ({"name": "../up"}, "wrong name"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_entry_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelUnavailable, match=said):
        load_catalog(write(tmp_path, ENTRY | change))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("../models.lock", "leads out of the model's folder"),
        ("a/../../b", "leads out of the model's folder"),
        ("/etc/passwd", "leads out of the model's folder"),
        ("hub:owner/other/../../x", "leads out of the model's folder"),
        ("package:silero_vad/../x", "leads out of the model's folder"),
        ("hub:owner/other", "names no file"),
        ("package:silero_vad", "names no file"),
        ("modeling.py", "is code"),
        ("hub:owner/other/modeling.py", "is code"),
        ("", "leads out of the model's folder"),
    ],
)
def test_a_file_outside_the_models_folder_or_of_code_is_refused(tmp_path: Path, file: str, said: str) -> None:
    with pytest.raises(ModelUnavailable, match=said):
        load_catalog(write(tmp_path, ENTRY | {"source": "user:", "sha256": {file: "0" * 64}}))


def test_two_files_for_one_name_are_refused(tmp_path: Path) -> None:
    files = ["detector.onnx", "hub:owner/other/onnx/detector.onnx"]
    with pytest.raises(ModelUnavailable, match=r"two files have the same place 'detector\.onnx'"):
        load_catalog(write(tmp_path, ENTRY | {"source": "user:", "files": files}))


@pytest.mark.parametrize("source", ["hub:owner/repository", "url:https://example.org/x", "user:"])
def test_weights_that_are_pulled_or_supplied_need_no_sum(tmp_path: Path, source: str) -> None:
    entry = ENTRY | {"source": source, "sha256": {}, "files": ["w.bin"]}
    spec = load_catalog(write(tmp_path, entry)).get("tiny")
    assert spec.all_files == ("w.bin",) and spec.kind == "text"
    assert spec.is_pulled == (source != "user:")


def test_whispers_sums_are_those_in_their_addresses() -> None:
    """openai-whisper checks a download against the last folder of its address."""
    whispers = [spec for spec in load_catalog().specs if spec.provider == "openai-whisper"]
    assert len(whispers) == 12
    for spec in whispers:
        (weights,) = (file for file in spec.sha256 if file.endswith(".pt"))
        assert spec.source.rsplit("/", 1)[1] == spec.sha256[weights]


def test_the_lock_adds_what_the_catalogue_leaves_out(tmp_path: Path) -> None:
    path = write(tmp_path, ENTRY | {"source": "hub:o/r", "revision": "main", "files": ["more.bin"]})
    known = dict.fromkeys(("weights.bin", "more.bin", "gone.bin"), lock.LockedFile(sha256="1" * 64, bytes=1))
    with lock.changing(tmp_path / "models") as entries:
        entries["tiny"] = lock.Entry(revision="c" * 40, files=known)
    spec = load_catalog(path, tmp_path / "models").get("tiny")
    assert spec.revision == "c" * 40
    assert spec.sha256 == {"weights.bin": "0" * 64, "more.bin": "1" * 64}, "the catalogue's sum wins"
    assert load_catalog(path).get("tiny").revision == "main"


def test_two_models_for_one_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"two models of kind text .*\(tiny, other\)"):
        load_catalog(write(tmp_path, ENTRY, ENTRY | {"name": "other"}))
    with pytest.raises(ModelUnavailable, match="tiny is 2 times"):
        load_catalog(write(tmp_path, ENTRY, ENTRY))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"models: [", "not valid YAML"),
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"", "no list `models`"),
        (b"- 1", "no list `models`"),
        (b"models: []", "no list `models`"),
        (b"models: [3]", "Model number 1 in"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "models.yaml"
    file.write_bytes(content)
    with pytest.raises(ModelUnavailable, match=said) as refusal:
        load_catalog(file)
    assert str(file) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="can't be read: No such file"):
        load_catalog(tmp_path / "models.yaml")


# --- the model of a kind: the profile's, or the one a setting names


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENEFLEET_PROFILE", "full")


@pytest.mark.parametrize(
    ("variable", "value", "kind", "name"),
    [
        ("ASR_MODEL", "", "asr", "whisper-medium"),
        ("ASR_MODEL", "whisper-tiny", "asr", "whisper-tiny"),
        ("ASR_MODEL", "large-v3", "asr", "whisper-large-v3"),
        ("ASR_MODEL", "turbo", "asr", "whisper-turbo"),
        ("ASR_MODEL", "faster-whisper-medium", "asr", "faster-whisper-medium"),
        ("TEXT_MODEL", "all-minilm-l6-v2", "text", "all-minilm-l6-v2"),
        ("TEXT_MODEL", "BAAI/bge-m3", "text", "bge-m3"),
        ("VISION_MODEL_NAME", "google/siglip-so400m-patch14-384", "vision", "siglip-so400m-patch14-384"),
        ("FACE_DETECTOR", "dlib-resnet-v1", "face", "dlib-resnet-v1"),
        ("OCR_MODEL", "", "ocr", "rapidocr-ppocrv6-small"),
        ("OCR_MODEL", "rapidocr-ppocrv6-small", "ocr", "rapidocr-ppocrv6-small"),
    ],
)
def test_a_setting_chooses_the_model(
    full: None, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, kind: Kind, name: str
) -> None:
    monkeypatch.setenv(variable, value)
    active = load_catalog().active(Settings())
    assert active[kind].name == name and active["rerank"].name == "bge-reranker-v2-m3"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ASR_MODEL", "huge", "There is no model 'huge' in models.yaml"),
        ("ASR_MODEL", "bge-m3", "ASR_MODEL=bge-m3 is a model of kind text; name one of kind asr"),
        ("TEXT_MODEL", "bge-reranker-v2-m3", "is a model of kind rerank; name one of kind text"),
    ],
)
def test_a_wrong_choice_is_named(
    full: None, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ModelUnavailable, match=says):
        load_catalog().active(Settings())


def test_the_speech_models_device_has_a_setting(full: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_catalog().active(Settings())["asr"].device == "auto"
    monkeypatch.setenv("ASR_DEVICE", "cuda")
    active = load_catalog().active(Settings())
    assert (active["asr"].device, active["text"].device) == ("cuda", "auto")
