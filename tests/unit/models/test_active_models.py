"""Which model of each kind is used: the profile's, or the one a setting names."""

from __future__ import annotations

import pytest

from shared.errors import ModelUnavailable
from shared.settings import Settings
from worker.models.catalog import load_catalog
from worker.models.spec import Kind


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
        (
            "VISION_MODEL_NAME",
            "google/siglip-so400m-patch14-384",
            "vision",
            "siglip-so400m-patch14-384",
        ),
        ("FACE_DETECTOR", "dlib-resnet-v1", "face", "dlib-resnet-v1"),
        ("OCR_MODEL", "", "ocr", "rapidocr-ppocrv6-small"),
        ("OCR_MODEL", "rapidocr-ppocrv6-small", "ocr", "rapidocr-ppocrv6-small"),
    ],
)
def test_a_setting_chooses_the_model(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, kind: Kind, name: str
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("SCENEFLEET_PROFILE", "full")
    active = load_catalog().active(Settings())
    assert active[kind].name == name
    assert active["rerank"].name == "bge-reranker-v2-m3"


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("ASR_MODEL", "huge", "There is no model 'huge' in models.yaml"),
        ("ASR_MODEL", "bge-m3", "ASR_MODEL=bge-m3 is a model of kind text; name one of kind asr"),
        ("TEXT_MODEL", "bge-reranker-v2-m3", "is a model of kind rerank; name one of kind text"),
    ],
)
def test_a_wrong_choice_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("SCENEFLEET_PROFILE", "full")
    with pytest.raises(ModelUnavailable, match=says):
        load_catalog().active(Settings())


def test_the_speech_models_device_has_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCENEFLEET_PROFILE", "full")
    assert load_catalog().active(Settings())["asr"].device == "auto"
    monkeypatch.setenv("ASR_DEVICE", "cuda")
    active = load_catalog().active(Settings())
    assert (active["asr"].device, active["text"].device) == ("cuda", "auto")
