"""What every face model keeps to, run on the real models of the catalogue and on tiny checkpoints."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from tests.contracts.candidates import fixture_of, needs_assets, photograph, sample_picture
from tests.support.figures import RecordFigure
from worker.models.base import Uint8
from worker.models.face import Face, FaceAnalyser

#: A frame of the sample in which the astronaut looks into the camera, and only she.
FACE_AT_S = 12.5


@pytest.fixture(scope="module")
def portrait() -> Uint8:
    """uint8 [540, 960, 3] RGB with one face, about 180 px wide."""
    return sample_picture(FACE_AT_S)


analyser = fixture_of("face")


class TestFaceAnalyser:
    def test_finds_the_face(self, analyser: FaceAnalyser, portrait: Uint8) -> None:
        ((face,),) = analyser.analyse([portrait])
        assert face.vec.shape == (analyser.spec.dim,) and face.vec.dtype == np.float32
        assert np.isfinite(face.vec).all()
        x, y, width, height = face.box
        assert width > 80 and height > 80
        assert len(face.landmarks) == len(analyser.landmark_names)
        for point_x, point_y in face.landmarks:
            assert x <= point_x <= x + width and y <= point_y <= y + height
        assert face.quality is None or face.quality > 0
        assert isinstance(face.score, float) and all(isinstance(edge, float) for edge in face.box)

    def test_nothing_in_noise(self, analyser: FaceAnalyser) -> None:
        noise = np.random.default_rng(5).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
        assert analyser.analyse([noise]) == [[]]

    def test_is_deterministic_and_leaves_images_alone(self, analyser: FaceAnalyser, portrait: Uint8) -> None:
        image = portrait.copy()
        assert_same(analyser.analyse([image])[0], analyser.analyse([image])[0], atol=0.0)
        assert np.array_equal(image, portrait)

    def test_batch_equals_single_in_order(self, analyser: FaceAnalyser, portrait: Uint8) -> None:
        images = [
            np.zeros((100, 100, 3), np.uint8),
            portrait,
            cv2.resize(portrait, (640, 360), interpolation=cv2.INTER_AREA),
            np.full((1, 1, 3), 9, np.uint8),
            portrait[:, ::-1],
            np.concatenate([portrait, portrait], axis=1),
        ]
        together = analyser.analyse(images)
        assert [len(faces) for faces in together] == [0, 1, 1, 0, 1, 2]
        for image, faces in zip(images, together, strict=True):
            assert_same(analyser.analyse([image])[0], faces, atol=1e-5)

    @pytest.mark.parametrize("scale", [0.5, 2.0, 8.0])
    def test_boxes_are_in_image_pixels(self, analyser: FaceAnalyser, portrait: Uint8, scale: float) -> None:
        image = cv2.resize(portrait, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        ((here,),) = analyser.analyse([portrait])
        ((there,),) = analyser.analyse([image])
        x, y, width, height = (edge / scale for edge in there.box)
        assert overlap(here.box, (x, y, width, height)) > 0.6
        assert distance(analyser, here, there) < analyser.same_person

    def test_boxes_end_at_the_edge(self, analyser: FaceAnalyser, portrait: Uint8) -> None:
        ((face,),) = analyser.analyse([portrait])
        x, y, width, _ = (int(value) for value in face.box)
        cut = portrait[y + 8 :, x + 8 : x + width + 200]
        for found in analyser.analyse([cut])[0]:
            left, top, w, h = found.box
            assert left >= 0 and top >= 0 and w > 0 and h > 0
            assert left + w <= cut.shape[1] and top + h <= cut.shape[0]

    def test_a_grey_picture_has_the_same_face(self, analyser: FaceAnalyser, portrait: Uint8) -> None:
        grey = np.repeat(cv2.cvtColor(portrait, cv2.COLOR_RGB2GRAY)[:, :, None], 3, axis=2)
        ((colour,),) = analyser.analyse([portrait])
        ((plain,),) = analyser.analyse([grey])
        assert overlap(colour.box, plain.box) > 0.6
        assert distance(analyser, colour, plain) < analyser.same_person

    @needs_assets
    def test_the_surest_face_comes_first(self, analyser: FaceAnalyser, portrait: Uint8) -> None:
        other = photograph("obama.jpg")
        high = cv2.resize(other, (other.shape[1] * 540 // other.shape[0], 540), interpolation=cv2.INTER_AREA)
        (faces,) = analyser.analyse([np.concatenate([portrait, high], axis=1)])
        assert len(faces) == 2
        assert [face.score for face in faces] == sorted((face.score for face in faces), reverse=True)

    @needs_assets
    def test_tells_people_apart(
        self, analyser: FaceAnalyser, portrait: Uint8, record_figure: RecordFigure
    ) -> None:
        names = ("obama.jpg", "biden.jpg")
        for name in names:
            (faces,) = analyser.analyse([photograph(name)])
            for face in faces:
                width_px, height_px = face.box[2:]
                quality = "unknown" if face.quality is None else f"{face.quality:.2f}"
                found = f"score {face.score:.3f}, {width_px:.0f} x {height_px:.0f} px, quality {quality}"
                record_figure(f"{analyser.spec.name} on {name}", found)
            # biden.jpg shows Joe Biden alone, before a curtain.
            assert len(faces) == 1 and min(faces[0].box[2:]) >= 112
        one, other = map(photograph, names)
        ((a,), (b,), (c,)) = analyser.analyse([one, other, portrait])
        again = cv2.resize(one[:, ::-1], None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
        ((a2,),) = analyser.analyse([again])
        same, limit = distance(analyser, a, a2), analyser.same_person
        others = min(distance(analyser, *pair) for pair in ((a, b), (a, c), (b, c)))
        figure = f"same person {same:.2f}, others from {others:.2f}, limit {limit:.2f}"
        record_figure(f"distances of {analyser.spec.name}", figure)
        assert same < limit and others > limit + 0.1


def distance(analyser: FaceAnalyser, a: Face, b: Face) -> float:
    """By the catalogue's metric."""
    if analyser.spec.metric == "cosine":
        return 1.0 - float(a.vec @ b.vec) / float(np.linalg.norm(a.vec) * np.linalg.norm(b.vec))
    return float(np.linalg.norm(a.vec - b.vec))


def overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def assert_same(a: list[Face], b: list[Face], *, atol: float) -> None:
    for one, two in zip(a, b, strict=True):
        assert (one.box, one.score, one.landmarks) == (two.box, two.score, two.landmarks)
        np.testing.assert_allclose(one.vec, two.vec, rtol=0, atol=atol)
