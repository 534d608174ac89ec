"""What every provider of a model family keeps to, run on the real models of the catalogue.

A new provider is tested by being in `models.yaml`: the suites below take every entry of their family that can run here.
Speech and a face come from the sample video, whose words are known (samples/truth.json); photographs and a human voice
from the folder SCENEFLEET_TEST_ASSETS, without which those tests skip.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import av
import cv2
import jiwer
import numpy as np
import numpy.typing as npt
import pytest

from shared.errors import InvalidRequest, ModelUnavailable
from worker.models.base import (
    SAMPLE_RATE_HZ,
    Face,
    FaceAnalyser,
    Float32,
    Model,
    TextEmbedder,
    Transcriber,
    Transcript,
    Uint8,
)
from worker.models.catalog import Family, ModelSpec, load_catalog
from worker.models.shelf import build
from worker.models.weights import locate

SAMPLES = Path(__file__).parents[2] / "samples"
ASSETS = os.environ.get("SCENEFLEET_TEST_ASSETS")
needs_assets = pytest.mark.skipif(not ASSETS, reason="SCENEFLEET_TEST_ASSETS is not set")

JFK = "And so, my fellow Americans, ask not what your country can do for you, ask what you can do for your country."
#: A frame of the sample in which the astronaut looks into the camera, and only she.
FACE_AT_S = 12.5


def specs(family: Family | None = None) -> list[ModelSpec]:
    """The entries that can run without a GPU or downloaded weights."""
    runnable = [spec for spec in load_catalog().specs if spec.source.startswith("package:")]
    return [spec for spec in runnable if family in (None, spec.family)]


def read_audio(path: Path, end_s: float = 1e9) -> Float32:
    """float32 [N], mono, 16 kHz."""
    resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE_HZ)
    with av.open(str(path)) as container:
        frames = [
            out.to_ndarray()[0] for frame in container.decode(audio=0) for out in resampler.resample(frame)
        ]
    return np.concatenate(frames)[: int(min(end_s, 1e6) * SAMPLE_RATE_HZ)].astype(np.float32)


def words_of(text: str) -> str:
    return " ".join("".join(c for c in text.lower() if c.isalnum() or c in " '").split())


@pytest.fixture(scope="module")
def speech() -> Float32:
    """The sample's first scene, 8.6 s: 18 words of a synthetic voice."""
    return read_audio(SAMPLES / "demo.mp4", 8.6)


@pytest.fixture(scope="module")
def more_speech() -> Float32:
    """The sample's first 26 s: three scenes."""
    return read_audio(SAMPLES / "demo.mp4", 26.2)


@pytest.fixture(scope="module")
def truth() -> list[str]:
    """The words of each scene of the sample."""
    document = json.loads((SAMPLES / "truth.json").read_text())
    return [" ".join(scene["words"]) for scene in document["scenes"]]


@pytest.fixture(scope="module")
def portrait() -> Uint8:
    """uint8 [540, 960, 3] RGB with one face, about 180 px wide."""
    with av.open(str(SAMPLES / "demo.mp4")) as container:
        for frame in container.decode(video=0):
            if frame.time is not None and frame.time >= FACE_AT_S:
                return cast(Uint8, frame.to_ndarray(format="rgb24"))
    raise AssertionError("the sample ends before its face")


def photograph(name: str) -> Uint8:
    image = cv2.imread(str(Path(cast(str, ASSETS)) / name))
    assert image is not None
    return cast(Uint8, cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def loaded(spec: ModelSpec) -> Iterator[Model]:
    model = build(spec)
    model.load()
    yield model
    model.unload()


@pytest.fixture(scope="module", params=specs("asr"), ids=lambda spec: spec.name)
def transcriber(request: pytest.FixtureRequest) -> Iterator[Transcriber]:
    yield from cast(Iterator[Transcriber], loaded(request.param))


@pytest.fixture(scope="module")
def heard(transcriber: Transcriber, speech: Float32) -> Transcript:
    """What the transcriber makes of `speech`."""
    return transcriber.transcribe(speech)


@pytest.fixture(scope="module", params=specs("text"), ids=lambda spec: spec.name)
def embedder(request: pytest.FixtureRequest) -> Iterator[TextEmbedder]:
    yield from cast(Iterator[TextEmbedder], loaded(request.param))


@pytest.fixture(scope="module", params=specs("face"), ids=lambda spec: spec.name)
def analyser(request: pytest.FixtureRequest) -> Iterator[FaceAnalyser]:
    yield from cast(Iterator[FaceAnalyser], loaded(request.param))


@pytest.mark.parametrize("spec", specs(), ids=lambda spec: spec.name)
class TestEveryModel:
    def test_loads_warms_and_says_what_it_took(self, spec: ModelSpec) -> None:
        model = build(spec)
        assert not model.loaded and model.state().load_s is None
        took_s = model.warm_up()
        state = model.state()
        assert state.loaded and state.load_s is not None and state.load_s > 0
        assert state.warm_up_s == took_s > 0
        assert state.memory_bytes is not None and state.memory_bytes < spec.memory_mb << 20
        model.unload()
        assert not model.loaded and model.state().memory_bytes is None

    def test_refuses_weights_with_another_sum(self, spec: ModelSpec) -> None:
        file = next(iter(spec.sha256))
        wrong = spec.model_copy(update={"sha256": {**spec.sha256, file: "0" * 64}})
        model = build(wrong)
        with pytest.raises(ModelUnavailable) as refusal:
            model.load()
        for part in (spec.name, str(locate(spec, file)), "0" * 64, spec.sha256[file]):
            assert part in str(refusal.value)
        assert not model.loaded

    def test_refuses_missing_weights(self, spec: ModelSpec, tmp_path: Path) -> None:
        model = build(spec.model_copy(update={"source": f"path:{tmp_path}"}))
        with pytest.raises(ModelUnavailable, match=r"expected .*found no such file"):
            model.load()

    def test_names_a_package_that_is_not_installed(self, spec: ModelSpec) -> None:
        model = build(spec.model_copy(update={"source": "package:no_such_package/model"}))
        with pytest.raises(ModelUnavailable, match="package no_such_package is not installed"):
            model.load()

    def test_needs_no_other_file_than_those_it_checks(self, spec: ModelSpec, tmp_path: Path) -> None:
        for file in spec.sha256:
            if not file.startswith("package:"):
                (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / file).symlink_to(locate(spec, file))
        model = build(spec.model_copy(update={"source": f"path:{tmp_path}"}))
        model.warm_up()
        model.unload()

    def test_loads_in_a_child_of_a_parent_without_engines(self, spec: ModelSpec) -> None:
        # A hang is what using torch before the fork would give: the time limit turns it into a failure.
        script = (
            "import os, sys\n"
            "from worker.models.catalog import load_catalog\n"
            "from worker.models.shelf import Shelf\n"
            f"shelf = Shelf(load_catalog(), {spec.profiles[0]!r}, [{spec.family!r}])\n"
            "shelf.states()\n"
            "engines = {'torch', 'transformers', 'cv2', 'dlib', 'pocketsphinx', 'silero_vad'} & set(sys.modules)\n"
            "assert not engines, engines\n"
            "child = os.fork()\n"
            "if not child:\n"
            "    try:\n"
            "        shelf.preload()\n"
            "        os._exit(0 if shelf.states()[0]['loaded'] else 3)\n"
            "    finally:\n"
            "        os._exit(4)\n"
            "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        )
        done = subprocess.run([sys.executable, "-c", script], timeout=120, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


class TestTranscriber:
    def test_hears_the_words(self, heard: Transcript, truth: list[str]) -> None:
        assert heard.language == "en"
        assert jiwer.wer(truth[0], words_of(heard.text)) < 0.15

    @needs_assets
    def test_hears_a_human_voice(self, transcriber: Transcriber) -> None:
        heard = transcriber.transcribe(read_audio(Path(cast(str, ASSETS)) / "jfk.flac"))
        rate = jiwer.wer(words_of(JFK), words_of(heard.text))
        print(f"\n{transcriber.spec.name} on jfk.flac: WER {rate:.3f}: {heard.text}")
        assert rate <= 0.25

    def test_is_the_same_whatever_came_before(
        self, transcriber: Transcriber, speech: Float32, heard: Transcript
    ) -> None:
        backwards = speech[: 4 * SAMPLE_RATE_HZ : -1][: 4 * SAMPLE_RATE_HZ].copy()
        transcriber.transcribe(
            backwards + np.random.default_rng(0).normal(0, 0.02, len(backwards)).astype(np.float32)
        )
        assert transcriber.transcribe(speech) == heard

    def test_is_the_same_in_a_new_instance(
        self, transcriber: Transcriber, speech: Float32, heard: Transcript
    ) -> None:
        other = cast(Transcriber, build(transcriber.spec))
        assert other.transcribe(speech) == heard
        other.unload()

    def test_long_speech_comes_in_pieces_with_words_in_order(
        self, transcriber: Transcriber, more_speech: Float32
    ) -> None:
        steps: list[float] = []
        heard = transcriber.transcribe(more_speech, on_step=steps.append)
        # A heartbeat has to fit in between pieces of 10 s.
        assert len(steps) >= len(more_speech) / SAMPLE_RATE_HZ / 10
        assert steps == sorted(steps) and steps[0] > 0 and steps[-1] == 1.0
        assert len(heard.segments) >= 3
        before_s = 0.0
        for segment in heard.segments:
            assert segment.words and segment.text == " ".join(word.text for word in segment.words)
            assert (segment.start_s, segment.end_s) == (segment.words[0].start_s, segment.words[-1].end_s)
            for word in segment.words:
                assert before_s <= word.start_s < word.end_s
                assert 0.0 <= word.probability <= 1.0
                assert word.text.strip() == word.text != ""
                before_s = word.end_s
        assert before_s <= len(more_speech) / SAMPLE_RATE_HZ

    def test_words_lie_where_they_are_spoken(
        self, transcriber: Transcriber, speech: Float32, heard: Transcript
    ) -> None:
        moved = np.concatenate([np.zeros(5 * SAMPLE_RATE_HZ, np.float32), speech])
        found = transcriber.transcribe(moved)
        assert found.segments[0].start_s == pytest.approx(heard.segments[0].start_s + 5, abs=0.1)

    def test_offset_moves_every_time(
        self, transcriber: Transcriber, speech: Float32, heard: Transcript
    ) -> None:
        here, there = heard, transcriber.transcribe(speech, offset_s=3600.5)
        assert here.segments
        for one, two in zip(here.segments, there.segments, strict=True):
            assert two.text == one.text
            assert two.start_s == pytest.approx(one.start_s + 3600.5, abs=1e-3)
            for a, b in zip(one.words, two.words, strict=True):
                assert (b.text, b.probability) == (a.text, a.probability)
                assert (b.start_s, b.end_s) == pytest.approx((a.start_s + 3600.5, a.end_s + 3600.5), abs=1e-3)

    @pytest.mark.parametrize("seconds", [0.0, 0.0005, 0.01, 0.032, 1.0, 30.0])
    def test_silence_has_no_segments(self, transcriber: Transcriber, seconds: float) -> None:
        steps: list[float] = []
        silence = np.zeros(int(seconds * SAMPLE_RATE_HZ), np.float32)
        heard = transcriber.transcribe(silence, on_step=steps.append)
        assert heard.segments == () and heard.text == ""
        assert steps[-1] == 1.0

    @pytest.mark.parametrize("level", [0.001, 0.03, 0.3])
    def test_noise_has_no_words(self, transcriber: Transcriber, level: float) -> None:
        noise = np.random.default_rng(7).normal(0, level, 10 * SAMPLE_RATE_HZ).astype(np.float32)
        assert transcriber.transcribe(noise).segments == ()

    def test_a_tone_has_no_words(self, transcriber: Transcriber) -> None:
        time_s = np.arange(10 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
        assert (
            transcriber.transcribe((0.5 * np.sin(2 * np.pi * 440 * time_s)).astype(np.float32)).segments == ()
        )

    def test_loud_audio_is_clipped_not_wrapped(
        self, transcriber: Transcriber, speech: Float32, truth: list[str]
    ) -> None:
        loud = speech * (1.5 / np.abs(speech).max())
        assert jiwer.wer(truth[0], words_of(transcriber.transcribe(loud).text)) < 0.3

    def test_ends_when_told_to_and_works_again(
        self, transcriber: Transcriber, speech: Float32, heard: Transcript
    ) -> None:
        class LeaseGone(Exception):
            pass

        def stop(_: float) -> None:
            raise LeaseGone

        with pytest.raises(LeaseGone):
            transcriber.transcribe(speech, on_step=stop)
        assert transcriber.transcribe(speech) == heard

    def test_result_is_plain_json(self, heard: Transcript) -> None:
        assert (
            json.loads(json.dumps(heard.to_dict()))["segments"][0]["words"][0]["text"]
            == words_of(heard.text).split()[0]
        )

    @pytest.mark.parametrize(
        "audio",
        [
            np.zeros((2, 16_000), np.float32),
            np.zeros(16_000, np.int16),
            np.zeros(16_000, np.float64),
            np.full(16_000, np.nan, np.float32),
            np.full(16_000, np.inf, np.float32),
        ],
        ids=["stereo", "int16", "float64", "nan", "inf"],
    )
    def test_refuses_other_audio(self, transcriber: Transcriber, audio: npt.NDArray[np.float32]) -> None:
        with pytest.raises(InvalidRequest):
            transcriber.transcribe(audio)


#: Of every length, script and oddity.
TEXTS = [
    "a cup of coffee",
    "",
    " ",
    "The quick brown fox jumps over the lazy dog. " * 60,
    "x",
    "Ein Fuchs springt über den Hund",
    "子犬が走る",
    "🚀🚀🚀",
    "two\nlines\tand a tab\x00",
    "half a \ud83d pair",
    "a cup of coffee",
    "word " * 31,
] + [f"text number {n} " + "and more " * (n % 17) for n in range(70)]


class TestTextEmbedder:
    def test_gives_unit_vectors_of_its_dimension(self, embedder: TextEmbedder) -> None:
        vectors = embedder.embed(TEXTS)
        assert vectors.shape == (len(TEXTS), embedder.spec.dim) and vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)

    def test_no_texts_give_no_vectors(self, embedder: TextEmbedder) -> None:
        vectors = embedder.embed([])
        assert vectors.shape == (0, embedder.dim) and vectors.dtype == np.float32

    def test_batch_equals_single(self, embedder: TextEmbedder) -> None:
        single = np.concatenate([embedder.embed([text]) for text in TEXTS])
        np.testing.assert_allclose(embedder.embed(TEXTS), single, atol=2e-5)

    def test_keeps_the_order(self, embedder: TextEmbedder) -> None:
        order = np.random.default_rng(3).permutation(len(TEXTS))
        shuffled = embedder.embed([TEXTS[index] for index in order])
        np.testing.assert_allclose(shuffled, embedder.embed(TEXTS)[order], atol=2e-5)

    def test_is_deterministic(self, embedder: TextEmbedder) -> None:
        assert np.array_equal(embedder.embed(TEXTS), embedder.embed(TEXTS))

    def test_equal_texts_get_equal_vectors_and_others_do_not(self, embedder: TextEmbedder) -> None:
        vectors = embedder.embed(TEXTS)
        assert TEXTS[0] == TEXTS[10]
        assert vectors[0] @ vectors[10] > 0.99999
        assert vectors[0] @ vectors[5] < 0.9

    def test_cuts_long_texts(self, embedder: TextEmbedder) -> None:
        story = "A ship sails to an island where nobody lives. " * 400
        vectors = embedder.embed([story, story + "The end is about something else."])
        assert vectors[0] @ vectors[1] > 0.99999

    @pytest.mark.parametrize("texts", [["fine", 3], [None], [b"bytes"], "one text"], ids=str)
    def test_refuses_what_is_not_a_list_of_texts(self, embedder: TextEmbedder, texts: list[str]) -> None:
        with pytest.raises(InvalidRequest):
            embedder.embed(texts)

    @pytest.mark.parametrize(
        ("query", "scene"), [("a hot drink", "coffee"), ("rocket", "rocket"), ("a pet with fur", "cat")]
    )
    def test_finds_by_meaning(self, embedder: TextEmbedder, truth: list[str], query: str, scene: str) -> None:
        similarity = embedder.embed(truth) @ embedder.embed([query])[0]
        assert scene in truth[int(similarity.argmax())]

    def test_equals_the_models_own_library(self, embedder: TextEmbedder) -> None:
        library = pytest.importorskip("sentence_transformers")
        reference = library.SentenceTransformer(
            str(locate(embedder.spec)), device="cpu", local_files_only=True
        )
        texts = [text for text in TEXTS if "\ud83d" not in text]
        expected = reference.encode(texts, normalize_embeddings=True)
        assert (embedder.embed(texts) * expected).sum(axis=1).min() > 0.99999


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
        assert isinstance(face.score, float) and all(isinstance(edge, float) for edge in face.box)

    def test_no_images_give_nothing(self, analyser: FaceAnalyser) -> None:
        assert analyser.analyse([]) == []

    @pytest.mark.parametrize(
        "shape", [(1, 1, 3), (1, 3000, 3), (3000, 1, 3), (20, 20, 3), (360, 640, 3), (4320, 7680, 3)], ids=str
    )
    @pytest.mark.parametrize("grey", [0, 128, 255])
    def test_nothing_in_an_empty_picture(
        self, analyser: FaceAnalyser, shape: tuple[int, int, int], grey: int
    ) -> None:
        assert analyser.analyse([np.full(shape, grey, np.uint8)]) == [[]]

    def test_nothing_in_noise(self, analyser: FaceAnalyser) -> None:
        noise = np.random.default_rng(5).integers(0, 256, (720, 1280, 3), dtype=np.uint8)
        assert analyser.analyse([noise]) == [[]]

    def test_is_deterministic_and_leaves_the_image_alone(
        self, analyser: FaceAnalyser, portrait: Uint8
    ) -> None:
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
    def test_boxes_are_in_the_images_own_pixels(
        self, analyser: FaceAnalyser, portrait: Uint8, scale: float
    ) -> None:
        image = cv2.resize(portrait, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        ((here,),) = analyser.analyse([portrait])
        ((there,),) = analyser.analyse([image])
        assert (
            overlap(here.box, cast(tuple[float, float, float, float], tuple(v / scale for v in there.box)))
            > 0.6
        )
        assert distance(here, there) < same_person(analyser)

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
        assert distance(colour, plain) < same_person(analyser)

    @needs_assets
    def test_the_surest_face_comes_first(self, analyser: FaceAnalyser, portrait: Uint8) -> None:
        other = photograph("obama.jpg")
        high = cv2.resize(other, (other.shape[1] * 540 // other.shape[0], 540), interpolation=cv2.INTER_AREA)
        (faces,) = analyser.analyse([np.concatenate([portrait, high], axis=1)])
        assert len(faces) == 2
        assert [face.score for face in faces] == sorted((face.score for face in faces), reverse=True)

    @needs_assets
    def test_people_are_told_apart(self, analyser: FaceAnalyser, portrait: Uint8) -> None:
        one, other = photograph("obama.jpg"), photograph("biden.jpg")
        ((a,), (b,), (c,)) = analyser.analyse([one, other, portrait])
        again = cv2.resize(one[:, ::-1], None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
        ((a2,),) = analyser.analyse([again])
        assert distance(a, a2) < same_person(analyser)
        assert min(distance(a, b), distance(a, c), distance(b, c)) > same_person(analyser) + 0.1

    @pytest.mark.parametrize(
        "image",
        [
            np.zeros((90, 90), np.uint8),
            np.zeros((90, 90, 4), np.uint8),
            np.zeros((90, 90, 3), np.float32),
            np.zeros((0, 90, 3), np.uint8),
        ],
        ids=["grey 2-D", "RGBA", "float", "empty"],
    )
    def test_refuses_other_images(self, analyser: FaceAnalyser, portrait: Uint8, image: Uint8) -> None:
        with pytest.raises(InvalidRequest, match="Image 1 must be"):
            analyser.analyse([portrait, image])


def same_person(analyser: FaceAnalyser) -> float:
    """The distance below which two faces are one person's, by the model's metric."""
    return {"l2": 0.55, "cosine": 0.4}[cast(str, analyser.spec.metric)]


def distance(a: Face, b: Face) -> float:
    return float(np.linalg.norm(a.vec - b.vec))


def overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def assert_same(a: list[Face], b: list[Face], *, atol: float) -> None:
    assert [(face.box, face.score, face.landmarks) for face in a] == [
        (face.box, face.score, face.landmarks) for face in b
    ]
    for one, two in zip(a, b, strict=True):
        np.testing.assert_allclose(one.vec, two.vec, rtol=0, atol=atol)
