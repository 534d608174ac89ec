"""AdaFace beyond the contract: alignment and preprocessing as published, and what it says of checkpoints it refuses."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from shared.errors import ModelFailure, ModelUnavailable
from tests.checkpoints import adaface
from tests.contracts.candidates import load_candidate, photograph, refusal, sample_picture
from tests.support.figures import RecordFigure
from worker.models.cache import build
from worker.models.catalog import load_catalog
from worker.models.face import FaceAnalyser
from worker.models.providers.face_adaface import preprocess, read_network
from worker.models.providers.face_align import SIDE_PX, TEMPLATE, align, similarity
from worker.models.providers.face_ir import DIM, IrNetwork
from worker.models.providers.face_yunet import MAX_FACES, MAX_SIDE_PX, YuNetDetector
from worker.models.weights.verify import locate

pytestmark = pytest.mark.slow

coordinates = st.floats(-500, 500, allow_subnormal=False)
points = st.lists(st.tuples(coordinates, coordinates), min_size=5, max_size=5).map(np.array)


@pytest.fixture(scope="module")
def analyser(tmp_path_factory: pytest.TempPathFactory) -> FaceAnalyser:
    return cast(FaceAnalyser, load_candidate("tiny-adaface", tmp_path_factory))


@pytest.fixture(scope="module")
def checkpoint(analyser: FaceAnalyser) -> Path:
    """A folder with a good checkpoint and the detector, not to be changed."""
    return locate(analyser.spec)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return dict(adaface.make_network().state_dict())


class TestAlignment:
    """The published recipe: the similarity of least squares to the template, bilinear, black outside."""

    @given(points)
    def test_is_the_similarity_of_least_squares(self, source: np.ndarray) -> None:
        found = similarity(source, TEMPLATE)
        spread = source - source.mean(axis=0)
        if (spread**2).sum() < 1.0:
            return
        assert found is not None
        np.testing.assert_allclose(found, _least_squares(source), atol=1e-6)

    def test_landmarks_on_one_spot_are_no_face(self) -> None:
        assert align(np.zeros((50, 50, 3), np.uint8), np.full((5, 2), 20.0)) is None

    def test_pixels_go_where_the_similarity_puts_them(self) -> None:
        turn = np.array([[1.7, -0.9], [0.9, 1.7]])
        marks = TEMPLATE @ turn.T + [300, 120]
        picture = np.zeros((540, 960, 3), np.uint8)
        for x, y in marks.round().astype(int):
            cv2.circle(picture, (x, y), 6, (255, 255, 255), -1)
        found = align(picture, marks)
        assert found is not None and found.shape == (SIDE_PX, SIDE_PX, 3)
        for x, y in TEMPLATE.round().astype(int):
            assert found[y, x].min() == 255
            assert found[y - 8 : y + 9, x].min() == found[y, x - 8 : x + 9].min() == 0
        assert 0.01 < (found > 128).mean() < 0.05

    def test_landmarks_fit_the_template(self, analyser: FaceAnalyser, record_figure: RecordFigure) -> None:
        for picture in (photograph("obama.jpg"), photograph("biden.jpg"), sample_picture(12.5)):
            ((face,),) = analyser.analyse([picture])
            transform, marks = _least_squares(np.array(face.landmarks)), np.array(face.landmarks)
            off_px = np.abs(marks @ transform[:, :2].T + transform[:, 2] - TEMPLATE).max()
            record_figure("landmarks off the template", f"{off_px:.1f} px at most")
            assert off_px < 6

    def test_a_picture_wider_than_opencv_can_warp_gives_the_same_face(self) -> None:
        portrait = sample_picture(12.5)
        marks = np.array([[400.0, 180.0], [480.0, 178.0], [440.0, 230.0], [410.0, 270.0], [475.0, 268.0]])
        wide = np.zeros((portrait.shape[0], 33_000 + portrait.shape[1], 3), np.uint8)
        wide[:, 33_000:] = portrait
        here, there = align(portrait, marks), align(wide, marks + np.array([33_000, 0]))
        assert here is not None and there is not None
        assert np.abs(here.astype(int) - there.astype(int)).max() <= 2


class TestPreprocessing:
    def test_equals_the_published_recipe(self) -> None:
        chips = np.random.default_rng(1).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
        # As published: ((bgr / 255.) - 0.5) / 0.5, channels first, float32.
        expected = (((chips[..., ::-1] / 255.0) - 0.5) / 0.5).transpose(0, 3, 1, 2)
        found = preprocess(list(chips))
        assert found.dtype == np.float32 and found.flags.c_contiguous
        assert np.array_equal(found, expected.astype(np.float32))

    def test_the_network_gets_aligned_bgr_faces(self, analyser: FaceAnalyser, checkpoint: Path) -> None:
        picture = photograph("biden.jpg")
        ((face,),) = analyser.analyse([picture])
        # The reference takes another way: OpenCV's BGR, the linear system, torch's functions on the state_dict.
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        chip = cv2.warpAffine(bgr, _least_squares(np.array(face.landmarks)), (112, 112))
        tensor = torch.tensor(((chip / 255.0) - 0.5) / 0.5).permute(2, 0, 1).float().unsqueeze(0)
        state = torch.load(checkpoint / adaface.CHECKPOINT, weights_only=False)["state_dict"]
        features = _reference(state, tensor)
        length = features.norm(2, 1)
        np.testing.assert_allclose(face.vec, (features / length).numpy()[0], atol=1e-5)
        assert face.quality == pytest.approx(float(length), rel=1e-4)
        assert np.linalg.norm(face.vec) == pytest.approx(1.0, abs=1e-5)


class TestNetwork:
    def test_has_the_published_size(self) -> None:
        for architecture, millions in (("ir_18", 24.02), ("ir_50", 43.59), ("ir_101", 65.15)):
            with torch.device("meta"):
                network = IrNetwork(architecture)
                vectors, lengths = network.eval()(torch.zeros(2, 3, 112, 112))
            assert vectors.shape == (2, DIM) and lengths.shape == (2,)
            count = sum(parameter.numel() for parameter in network.parameters())
            assert count / 1e6 == pytest.approx(millions, abs=0.005)

    def test_half_precision_keeps_the_face(self) -> None:
        network = adaface.make_network()
        chips = torch.rand(4, 3, 112, 112) * 2 - 1
        with torch.inference_mode():
            exact, lengths = network(chips)
            halved, about = network.place("cpu", torch.bfloat16)(chips.bfloat16())
        assert halved.dtype == torch.float32
        assert (exact * halved).sum(1).min() > 0.999
        np.testing.assert_allclose(about, lengths, rtol=0.02)


class TestDetector:
    def test_sees_pictures_of_every_size_and_shape(self, checkpoint: Path) -> None:
        detector = YuNetDetector(adaface.describe(checkpoint), checkpoint / adaface.DETECTOR)
        portrait = sample_picture(12.5)
        for size in ((960, 540), (96, 54), (4000, 2250), (960, 300), (300, 540)):
            (face,) = detector.detect(cv2.resize(portrait, size, interpolation=cv2.INTER_AREA))
            scale = np.array(size) / (960, 540)
            middle = (np.array(face.box[:2]) + np.array(face.box[2:]) / 2) / scale
            assert np.abs(middle - [438, 205]).max() < 25, size
            assert face.landmarks.shape == (5, 2)
        assert detector.detect(np.zeros((1, 3 * MAX_SIDE_PX, 3), np.uint8)) == []

    def test_of_a_crowd_the_surest_are_kept(self, checkpoint: Path) -> None:
        detector = YuNetDetector(adaface.describe(checkpoint), checkpoint / adaface.DETECTOR)
        head = cv2.resize(photograph("obama.jpg")[20:470, 330:650], (24, 34), interpolation=cv2.INTER_AREA)
        crowd = np.tile(head, (12, 25, 1))
        faces = detector.detect(crowd)
        assert len(faces) == MAX_FACES < 12 * 25
        scores = [face.score for face in faces]
        assert scores == sorted(scores, reverse=True) and len(detector.detect(crowd[: 34 * 6])) > 100

    def test_landmarks_are_named_as_seen(self, analyser: FaceAnalyser) -> None:
        ((face,),) = analyser.analyse([photograph("obama.jpg")])
        marks = dict(zip(analyser.landmark_names, face.landmarks, strict=True))
        assert marks["left eye"][0] < marks["nose, tip"][0] < marks["right eye"][0]
        assert marks["left corner of the mouth"][0] < marks["right corner of the mouth"][0]
        assert marks["left eye"][1] < marks["nose, tip"][1] < marks["left corner of the mouth"][1]

    def test_a_close_up_is_a_face(self, analyser: FaceAnalyser) -> None:
        portrait = photograph("obama.jpg")
        close = cv2.resize(portrait[73:430, 377:604], None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
        assert len(analyser.analyse([close])[0]) == 1


class TestRefusals:
    """One sentence each: the file, what was expected, what was found."""

    @pytest.mark.parametrize(
        ("name", "tensor", "said"),
        [
            ("body.3.res_layer.1.weight", None, r"expected {} \[128, 128, 3, 3\].*found no such tensor"),
            ("body.3.res_layer.9.weight", torch.zeros(2), "{} has no place"),
            (
                "output_layer.3.weight",
                torch.zeros(512, 512),
                r"expected {} \[512, 25088\].*found .* \[512, 512\]",
            ),
        ],
        ids=["missing", "surplus", "another shape"],
    )
    def test_other_layers(
        self, tmp_path: Path, weights: dict[str, Tensor], name: str, tensor: Tensor | None, said: str
    ) -> None:
        changed = {key: value for key, value in {**weights, name: tensor}.items() if value is not None}
        adaface.write(tmp_path / adaface.CHECKPOINT, changed)
        self._refused(tmp_path, said.format(re.escape(f"model.{name}")))

    def test_another_architecture(self, checkpoint: Path) -> None:
        for architecture in ("ir_50", "ir_101"):
            said = refusal(adaface.describe(checkpoint, options={"architecture": architecture}))
            path = checkpoint / adaface.CHECKPOINT
            assert f"expected {path} to hold {architecture}, found ir_18 (8 units)" in said

    def test_cut_off_or_of_another_layout(self, checkpoint: Path, tmp_path: Path) -> None:
        whole = (checkpoint / adaface.CHECKPOINT).read_bytes()
        for kept in (0.0, 0.3, 0.9, 0.999999):
            (tmp_path / adaface.CHECKPOINT).write_bytes(whole[: int(len(whole) * kept)])
            self._refused(tmp_path, "expected a whole PyTorch checkpoint")
        for content in ({"epoch": 3}, [1, 2], {"state_dict": {"model.a": 3}}, {}):
            torch.save(content, tmp_path / adaface.CHECKPOINT)
            self._refused(tmp_path, r"state_dict")

    def test_code_is_not_run(self, tmp_path: Path) -> None:
        mark = tmp_path / "ran"

        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return os.mkdir, (str(mark),)

        torch.save({"state_dict": {}, "callbacks": Evil()}, tmp_path / adaface.CHECKPOINT)
        said = r"expected tensors and plain values .* found code \(posix\.mkdir\), which was not run"
        self._refused(tmp_path, said)
        (tmp_path / adaface.CHECKPOINT).write_bytes(pickle.dumps(Evil()))
        self._refused(tmp_path, "a zip archive")
        assert not mark.exists()
        # It would have worked.
        pickle.loads(pickle.dumps(Evil()))  # noqa: S301
        assert mark.exists()

    def test_what_lightning_leaves_beside_the_weights_does_no_harm(
        self, tmp_path: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Old releases name their callbacks by class; Lightning is not installed here."""
        module = type(os)("pytorch_lightning")
        kind = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning"})
        module.ModelCheckpoint = kind  # type: ignore[attr-defined]
        with monkeypatch.context() as patched:
            patched.setitem(__import__("sys").modules, "pytorch_lightning", module)
            state = {f"model.{name}": value for name, value in weights.items()}
            held = kind()
            held.best = 0.9
            content = {"state_dict": state, "callbacks": {kind: {"held": held}}}
            torch.save(content, tmp_path / adaface.CHECKPOINT)
        spec = load_catalog().get("adaface-ir101-webface12m")
        network = read_network(spec, tmp_path / adaface.CHECKPOINT, "ir_18")
        assert torch.equal(network.state_dict()["input_layer.0.weight"], weights["input_layer.0.weight"])

    def test_a_detector_that_is_none(self, checkpoint: Path, tmp_path: Path) -> None:
        spec, whole = adaface.describe(checkpoint), (checkpoint / adaface.DETECTOR).read_bytes()
        alone = spec.model_copy(update={"sha256": {adaface.CHECKPOINT: spec.sha256[adaface.CHECKPOINT]}})
        assert "names 0 files *.onnx in models.yaml; the provider adaface needs one" in refusal(alone)
        shutil.copyfile(checkpoint / adaface.CHECKPOINT, tmp_path / adaface.CHECKPOINT)
        for content in (b"", b"no network", whole[: len(whole) // 2]):
            (tmp_path / adaface.DETECTOR).write_bytes(content)
            said = refusal(adaface.describe(tmp_path))
            assert f"expected {tmp_path / adaface.DETECTOR} to be YuNet in ONNX" in said

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"options": {}}, "takes one, architecture: ir_18, ir_50, ir_101"),
            ({"options": {"architecture": "vit"}}, "'vit'"),
            ({"options": {"architecture": "ir_18", "sharp": True}}, "'sharp'"),
            ({"dim": 128}, "has dim 128 and metric cosine in models.yaml; AdaFace has 512 and cosine"),
            ({"metric": "l2"}, "metric l2"),
        ],
    )
    def test_a_wrong_catalogue_entry(self, checkpoint: Path, fields: dict[str, Any], said: str) -> None:
        assert said in refusal(adaface.describe(checkpoint, **fields))

    def test_weights_of_nan(self, checkpoint: Path, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        broken = {**weights, "output_layer.3.bias": torch.full((512,), float("nan"))}
        adaface.write(tmp_path / adaface.CHECKPOINT, broken)
        shutil.copyfile(checkpoint / adaface.DETECTOR, tmp_path / adaface.DETECTOR)
        model = cast(FaceAnalyser, build(adaface.describe(tmp_path)))
        with pytest.raises(ModelFailure, match="not finite"):
            model.analyse([sample_picture(12.5)])

    def _refused(self, folder: Path, said: str) -> None:
        path = folder / adaface.CHECKPOINT
        with pytest.raises(ModelUnavailable, match=said) as refused:
            read_network(load_catalog().get("adaface-ir101-webface12m"), path, "ir_18")
        message = str(refused.value)
        assert all(part in message for part in (str(path), "expected", "found")) and "\n" not in message


def test_a_full_device_halves_the_batch_and_mixes_up_no_face(
    analyser: FaceAnalyser, monkeypatch: pytest.MonkeyPatch
) -> None:
    portrait, president = sample_picture(12.5), photograph("obama.jpg")
    pictures = [portrait, president, np.concatenate([portrait, portrait], axis=1), president, president]
    expected = [face.vec for faces in analyser.analyse(pictures) for face in faces]
    infer, sizes = analyser._infer, []  # type: ignore[attr-defined]

    def crowded(faces: np.ndarray) -> Any:
        sizes.append(len(faces))
        if len(faces) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return infer(faces)

    monkeypatch.setattr(analyser, "_infer", crowded)
    found = [face.vec for faces in analyser.analyse(pictures) for face in faces]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sizes == [4, 2, 1, 1, 1, 1, 1, 1]


def _least_squares(marks: np.ndarray) -> np.ndarray:
    """Another way to `similarity`: x' = a x - b y + c, y' = b x + a y + d as one linear system in a, b, c, d."""
    rows = np.array([row for x, y in marks for row in ([x, -y, 1, 0], [y, x, 0, 1])])
    a, b, c, d = np.linalg.lstsq(rows, TEMPLATE.reshape(-1), rcond=None)[0]
    return np.array([[a, -b, c], [b, a, d]])


def _reference(state: dict[str, Tensor], faces: Tensor) -> Tensor:
    """IR-18 by torch's functions and the names in the checkpoint alone."""
    F = torch.nn.functional

    def norm(x: Tensor, name: str) -> Tensor:
        names = [f"{name}.{part}" for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *map(state.get, names))  # type: ignore[arg-type]

    x = F.conv2d(faces, state["model.input_layer.0.weight"], padding=1)
    x = F.prelu(norm(x, "model.input_layer.1"), state["model.input_layer.2.weight"])
    for place in range(8):
        name, stride = f"model.body.{place}", 1 if place % 2 else 2
        inner = F.conv2d(norm(x, f"{name}.res_layer.0"), state[f"{name}.res_layer.1.weight"], padding=1)
        inner = F.prelu(norm(inner, f"{name}.res_layer.2"), state[f"{name}.res_layer.3.weight"])
        inner = F.conv2d(inner, state[f"{name}.res_layer.4.weight"], stride=stride, padding=1)
        inner = norm(inner, f"{name}.res_layer.5")
        if f"{name}.shortcut_layer.0.weight" in state:
            x = F.conv2d(x, state[f"{name}.shortcut_layer.0.weight"], stride=stride)
            x = norm(x, f"{name}.shortcut_layer.1")
        else:
            x = x[:, :, ::stride, ::stride]
        x = x + inner
    x = norm(x, "model.output_layer.0").flatten(1)
    x = F.linear(x, state["model.output_layer.3.weight"], state["model.output_layer.3.bias"])
    return norm(x, "model.output_layer.4")
