"""On a real GPU (`make test-gpu`): pinning, number format, full memory, every family against the CPU, throughput.

Weights are random or scripted, in the real formats; nothing is fetched. Skipped with the reason where there is no GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from bench.checkpoints import CHECKPOINTS
from bench.models import make_texts, read_pictures, read_speech
from shared.errors import DeviceOutOfMemory, DeviceUnavailable, ModelDoesNotFit
from tests.checkpoints import bge_m3, faster_whisper_scripted, write_catalog
from tests.support.fleet import ROOT, Fleet, eventually
from worker.models import batching
from worker.models.base import Model
from worker.models.cache import build
from worker.models.placement import devices, nvml
from worker.models.spec import ModelSpec

SURVEY = nvml.list_gpus()
NO_GPU = (
    ""
    if torch.cuda.is_available()
    else f"no GPU to test on: torch {torch.__version__} finds none, and {SURVEY.describe()}"
)
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900), pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU)]

TINY: dict[str, Callable[..., ModelSpec]] = {
    **{name: tiny for name, (_, tiny) in CHECKPOINTS.items()},
    "faster-whisper": faster_whisper_scripted.build,
}
MiB = 2**20
#: For how long each throughput is measured, seconds.
MEASURE_S = 5.0


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """float32 is float32, not TF32; and no test leaves memory or a limit behind."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def load(spec: ModelSpec, device: str, dtype: str = "auto") -> Model:
    model = build(spec.model_copy(update={"device": device, "dtype": dtype}))
    model.load()
    return model


def compute(model: Any) -> np.ndarray[Any, Any]:
    """What a model makes of the same inputs, one row per result."""
    match model.spec.kind:
        case "asr":
            words = [word for part in model.transcribe(read_speech(8.0)).segments for word in part.words]
            assert words
            return np.array(
                [[word.start_s, word.end_s, *map(float, word.text.strip().encode()[:3])] for word in words]
            )
        case "text":
            return np.asarray(model.embed(make_texts(12)))
        case "rerank":
            return np.asarray(model.rerank("a red boat on the sea", make_texts(12)))[:, None]
        case "vision":
            images, texts = model.embed_images(read_pictures(10)), model.embed_texts(make_texts(12))
            return np.concatenate([images, texts])
        case "face":
            faces = [face for found in model.analyse(read_pictures(6)) for face in found]
            assert faces
            return np.array([face.vec for face in faces])
    raise AssertionError(model.spec.kind)


# --- pinning


@pytest.mark.skipif(not SURVEY.gpus, reason=f"NVML tells of no GPU: {SURVEY.problem}")
def test_a_pinned_process_sees_that_gpu_alone() -> None:
    """By each of its names, in a process of its own."""
    code = (
        "import sys; from worker.models.placement import devices; devices.pin(tuple(sys.argv[2:]), int(sys.argv[1])); import torch;"
        "print(torch.cuda.device_count(), torch.cuda.get_device_properties(0).uuid)"
    )
    parts = [part.uuid for found in SURVEY.gpus for part in found.mig]
    whole = [found for found in SURVEY.gpus if not found.mig]
    names = [name for found in whole for name in (str(found.index), found.uuid, found.uuid[:12])]
    expected = [found.uuid for found in whole for _ in range(3)]
    for slot, (name, uuid) in enumerate(zip([*names, *parts], [*expected, *parts], strict=True)):
        said = subprocess.run(
            [sys.executable, "-c", code, str(slot), *names, *parts],
            capture_output=True, text=True, timeout=120, cwd=ROOT, check=True,
        ).stdout.split()  # fmt: skip
        assert said[0] == "1", name
        if name not in parts:
            assert said[1] == uuid.removeprefix("GPU-"), name


def test_processes_of_a_node_compute_on_their_gpus_and_so_do_their_replacements(
    fleet: Fleet, tmp_path: Path
) -> None:
    spec = bge_m3.build(tmp_path / "weights").model_copy(update={"device": "auto", "dtype": "auto"})
    catalog = write_catalog(tmp_path / "models.yaml", [spec])
    names = [found.mig[0].uuid if found.mig else found.uuid for found in SURVEY.gpus] or ["0"]
    devices = [names[slot % len(names)] for slot in range(2)]
    fleet.start(
        "text",
        concurrency=2,
        SCENEFLEET_GPUS=",".join(devices),
        SCENEFLEET_PROFILE="full",
        SCENEFLEET_MODELS_FILE=str(catalog),
    )
    # The main process leaves as soon as it finds that it has initialised CUDA.
    fleet.wait_ready("text", within_s=180)

    def slots(without: int = 0) -> list[dict[str, Any]] | None:
        said: list[dict[str, Any]] = json.loads(fleet.node_states()["text"].get("slots", "[]"))
        whole = len(said) == 2 and all(slot["state"] == "ready" and slot["pid"] != without for slot in said)
        return said if whole else None

    def check(said: list[dict[str, Any]]) -> None:
        assert [slot["gpu"] for slot in said] == devices
        for slot in said:
            (model,) = [model for model in slot["models"] if model.get("name") == spec.name]
            assert (model["loaded"], model["device"]) == (True, "cuda")
            assert model["memory_bytes"] > 0

    before = eventually(slots, within_s=30, what="both processes are ready")
    check(before)
    for slot in before:
        psutil.Process(slot["pid"]).kill()
        check(eventually(lambda dead=slot["pid"]: slots(dead), within_s=180, what="it was replaced"))  # type: ignore[misc]


# --- what a GPU is asked before a model is put there


def test_the_number_format_is_what_the_gpu_computes_best() -> None:
    best = "bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16"
    assert devices.place("auto", "auto") == devices.Placement("cuda", best)  # type: ignore[arg-type]
    assert devices.place("cuda", "float32") == devices.Placement("cuda", "float32")
    assert devices.place("cpu", "auto") == devices.Placement("cpu", "float32")


def test_a_gpu_that_others_fill_is_refused_by_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "LEAVING_S", 0.0)
    free_mb, total_mb = (size // MiB for size in torch.cuda.mem_get_info())
    taken = torch.empty(free_mb // 2 * MiB, dtype=torch.uint8, device="cuda")
    try:
        with pytest.raises(
            DeviceUnavailable, match=rf"is busy: model m needs {free_mb} MB, \d+ of {total_mb} MB are free"
        ):
            devices.place("cuda", "auto", model="m", memory_mb=free_mb)
    finally:
        del taken
    with pytest.raises(ModelDoesNotFit, match=f"has {total_mb} MB"):
        devices.place("cuda", "auto", model="m", memory_mb=total_mb + 1)


# --- full memory


def allow_mb(more_mb: float) -> None:
    """From now on this process gets no more than so much beyond what it holds."""
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more_mb * MiB) / total)


@pytest.fixture
def halvings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one each time a batch did not fit: what the process held when its memory was given back."""
    seen: list[int] = []

    def count() -> None:
        devices.free_cache()
        seen.append(torch.cuda.memory_allocated())

    monkeypatch.setattr(batching, "free_cache", count)
    return seen


def test_a_batch_that_fills_the_memory_is_halved_until_it_fits(halvings: list[int]) -> None:
    held = torch.cuda.memory_allocated()
    done: list[int] = []

    def work(group: list[int]) -> None:
        inputs = torch.zeros(len(group), 64 * MiB, dtype=torch.uint8, device="cuda")
        assert int(inputs.sum()) == 0
        done.extend(group)

    allow_mb(300)
    batching.compute(batching.in_order(40, 16), work, model="m")
    assert done == list(range(40))
    assert halvings == [held, held], "16 and 8 are too many; nothing of them is left"
    allow_mb(32)
    with pytest.raises(DeviceOutOfMemory, match="m ran out of device memory on one item"):
        batching.compute([[0, 1]], work, model="m")


def test_a_model_gives_the_same_when_its_batch_does_not_fit(tmp_path: Path, halvings: list[int]) -> None:
    wide = CHECKPOINTS["siglip"][0](tmp_path).model_copy(update={"batch": 16})
    model: Any = load(wide, "cuda", "float32")
    pictures = read_pictures(16)
    model.embed_images(pictures[:1])
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    expected = model.embed_images(pictures)
    peak = torch.cuda.max_memory_allocated()
    assert halvings == []
    allow_mb(0.6 * (peak - base) / MiB)
    np.testing.assert_allclose(model.embed_images(pictures), expected, atol=1e-4)
    assert halvings
    model.unload()


# --- each family on the GPU and on the CPU


@pytest.mark.parametrize("name", TINY)
def test_a_family_gives_on_the_gpu_what_it_gives_on_the_cpu(name: str, tmp_path: Path) -> None:
    spec = TINY[name](tmp_path)
    reference = load(spec, "cpu")
    expected = compute(reference)
    reference.unload()

    same = load(spec, "cuda", "float32")
    assert (same.placement.device, same.placement.dtype) == ("cuda", "float32")
    found = compute(same)
    same.unload()
    # Libraries keep what they need to work from now on.
    held = torch.cuda.memory_allocated()
    np.testing.assert_allclose(found, expected, atol=0.05 if spec.kind == "asr" else 1e-3)

    short = load(spec, "cuda")
    assert short.placement.device == "cuda" and short.placement.dtype in ("bfloat16", "float16")
    rounded = compute(short)
    assert rounded.shape == expected.shape and np.isfinite(rounded).all()
    if spec.kind == "asr":
        np.testing.assert_allclose(rounded, expected, atol=0.1)
    short.unload()
    assert torch.cuda.memory_allocated() <= held + MiB, "an unloaded model is gone from the GPU"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_short_numbers_change_little_at_real_width(name: str, tmp_path: Path) -> None:
    """Random weights as networks begin with, so that nothing is saturated."""
    spec = CHECKPOINTS[name][0](tmp_path)
    if spec.kind == "asr":
        pytest.skip("its words are compared above")
    exactly, short = load(spec, "cuda", "float32"), load(spec, "cuda")
    expected, rounded = compute(exactly), compute(short)
    if spec.kind == "rerank":
        np.testing.assert_allclose(rounded, expected, atol=0.05)
        return
    assert (expected * rounded).sum(1).min() > 0.99


# --- how much


def repeat(call: Callable[[], object]) -> float:
    """Seconds per call, over `MEASURE_S` after a warm-up."""
    call()
    torch.cuda.synchronize()
    started_s, count = time.monotonic(), 0
    while time.monotonic() - started_s < MEASURE_S:
        call()
        count += 1
    torch.cuda.synchronize()
    return (time.monotonic() - started_s) / count


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_throughput(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Real width, 4 layers, random weights, batches of 32: a figure to compare with itself, not with a whole model's."""
    spec = CHECKPOINTS[name][0](tmp_path).model_copy(update={"batch": 32})
    model: Any = load(spec, "cuda")
    texts, pictures = make_texts(128), read_pictures(64)
    speech = read_speech(30.0)
    measured: dict[str, tuple[Callable[[], object], float, str]] = {
        "asr": (lambda: model.transcribe(speech), len(speech) / 16_000, "s of speech"),
        "text": (lambda: model.encode(texts), len(texts), "texts"),
        "rerank": (lambda: model.rerank(texts[0], texts), len(texts), "documents"),
        "vision": (lambda: model.embed_images(pictures), len(pictures), "pictures"),
        "face": (lambda: model.analyse(pictures), len(pictures), "pictures"),
    }
    call, count, unit = measured[spec.kind]
    per_s = count / repeat(call)
    with capsys.disabled():
        print(
            f"\n{spec.family:6} {name:12} {model.placement.dtype:8} {per_s:9.1f} {unit} a second"
            f" ({torch.cuda.get_device_name()})"
        )
    model.unload()
    assert per_s > 0
