"""The catalogue: what ships is complete, and a wrong file is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from shared.errors import ModelUnavailable
from worker.models.catalog import ModelSpec, load_catalog
from worker.models.shelf import PROVIDERS
from worker.models.weights import locate

ENTRY: dict[str, Any] = {
    "name": "tiny",
    "family": "text",
    "provider": "minilm",
    "source": "path:/nowhere",
    "revision": "1",
    "dim": 8,
    "metric": "cosine",
    "licence": "none",
    "memory_mb": 1,
    "sha256": {"weights.bin": "0" * 64},
    "profiles": ["lite"],
}


def write(path: Path, *entries: dict[str, Any]) -> Path:
    file = path / "models.yaml"
    file.write_text(yaml.safe_dump({"version": 1, "models": list(entries)}))
    return file


def test_the_shipped_catalogue_is_complete() -> None:
    catalog = load_catalog()
    for spec in catalog.specs:
        assert (spec.family, spec.provider) in PROVIDERS
        assert (spec.dim is None) == (spec.family == "asr")


def test_lite_has_everything_but_vision() -> None:
    active = load_catalog().for_profile("lite")
    assert {family: spec.name for family, spec in active.items()} == {
        "asr": "pocketsphinx-en-us",
        "text": "all-minilm-l6-v2",
        "face": "dlib-resnet-v1",
    }
    assert (active["text"].dim, active["text"].metric) == (384, "cosine")
    assert (active["face"].dim, active["face"].metric) == (128, "l2")


def test_every_listed_file_is_where_the_catalogue_says() -> None:
    for spec in load_catalog().for_profile("lite").values():
        for file in spec.sha256:
            assert locate(spec, file).is_file()


def test_the_non_commercial_landmark_model_is_never_named() -> None:
    assert not any("68" in file for file in load_catalog().get("dlib-resnet-v1").sha256)


def test_reads_another_file(tmp_path: Path) -> None:
    catalog = load_catalog(write(tmp_path, ENTRY))
    assert catalog.names() == ["tiny"] and catalog.for_profile("lite")["text"].dim == 8


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError):
        ModelSpec.model_validate(ENTRY).name = "other"  # type: ignore[misc]


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
        ({"sha256": {}}, "wrong sha256"),
        ({"source": "http://example.org/x"}, "wrong source"),
        ({"profiles": []}, "wrong profiles"),
        ({"batch": 0}, "wrong batch"),
        ({"colour": "red"}, "wrong colour"),
        ({"name": "../up"}, "wrong name"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_wrong_entry_is_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelUnavailable, match=said):
        load_catalog(write(tmp_path, ENTRY | change))


def test_two_models_for_one_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"two models of family text .*\(tiny, other\)"):
        load_catalog(write(tmp_path, ENTRY, ENTRY | {"name": "other"}))
    with pytest.raises(ModelUnavailable, match="tiny stands 2 times"):
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
