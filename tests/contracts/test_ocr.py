"""What every reader of on-screen text keeps to, run on the real models of the catalogue."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
import pytest

from tests.contracts.candidates import fixture_of, sample_picture, sample_pictures
from worker.models.base import Uint8
from worker.models.cache import build
from worker.models.ocr import Line, TextReader

#: Text, and where its line begins in a picture of 1280 x 720.
CAPTIONS = (("Rocket launch delayed", 90), ("Quarter 3 revenue: 4711", 330), ("BREAKING NEWS", 600))
Caption, Rgb = tuple[str, int], tuple[int, int, int]
SIZE, BLACK, WHITE = (1280, 720), (0, 0, 0), (255, 255, 255)


def render(
    *lines: Caption, size: tuple[int, int] = SIZE, letter_px: int = 40, ink: Rgb = BLACK, paper: Rgb = WHITE
) -> Uint8:
    """uint8 [H, W, 3] RGB with each text on its baseline; the font, which comes with OpenCV, has Chinese too."""
    picture = np.full((size[1], size[0], 3), paper, np.uint8)
    for text, baseline_px in lines:
        cv2.putText(picture, text, (80, baseline_px), ink, cv2.FontFace("uni"), letter_px)
    return picture


def turned(picture: Uint8, degrees: float) -> Uint8:
    height_px, width_px = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D((width_px / 2, height_px / 2), degrees, 1.0)
    return cast(Uint8, cv2.warpAffine(picture, matrix, (width_px, height_px), borderValue=WHITE))


reader = fixture_of("ocr")


def texts(lines: list[Line]) -> list[str]:
    return [line.text for line in lines]


class TestTextReader:
    def test_reads_lines_from_the_top_with_their_places(self, reader: TextReader) -> None:
        (lines,) = reader.read([render(*reversed(CAPTIONS))])
        assert texts(lines) == [text for text, _ in CAPTIONS]
        for line, (_, baseline_px) in zip(lines, CAPTIONS, strict=True):
            x, y, width, height = line.box
            assert all(isinstance(edge, float) for edge in line.box) and isinstance(line.score, float)
            assert abs(x - 80) < 20 and width > 200
            assert y < baseline_px - 20 < y + height and height < 100
            assert 0.9 < line.score <= 1.0

    @pytest.mark.parametrize("letter_px", [16, 24, 60, 110])
    def test_reads_small_and_large_letters(self, reader: TextReader, letter_px: int) -> None:
        (lines,) = reader.read([render(("Rocket launch 4711", 400), letter_px=letter_px)])
        assert texts(lines) == ["Rocket launch 4711"]

    def test_reads_in_any_colours(self, reader: TextReader) -> None:
        for ink, paper in (
            ((255, 255, 255), (0, 0, 0)),
            ((240, 240, 240), (20, 30, 90)),
            ((255, 230, 0), (150, 20, 20)),
            ((90, 90, 90), (200, 200, 200)),
        ):
            (lines,) = reader.read([render(*CAPTIONS, ink=ink, paper=paper)])
            assert texts(lines) == [text for text, _ in CAPTIONS], (ink, paper)
        # A mean of channels can't tell these: in another order of them the contrast is the same, the text too.
        picture = render(("Launch window", 300), ink=(255, 0, 0), paper=(0, 0, 90))
        (lines,), (swapped,) = reader.read([picture]), reader.read([picture[:, :, ::-1]])
        assert texts(lines) == texts(swapped) == ["Launch window"]

    @pytest.mark.parametrize("degrees", [-15, -5, 3, 8])
    def test_reads_slanted_lines(self, reader: TextReader, degrees: float) -> None:
        (lines,) = reader.read([turned(render(("Rocket launch delayed", 360), letter_px=60), degrees)])
        assert texts(lines) == ["Rocket launch delayed"]
        level = reader.read([render(("Rocket launch delayed", 360), letter_px=60)])[0][0]
        assert lines[0].box[3] > level.box[3], "the box encloses the slanted line"

    def test_reads_over_a_picture(self, reader: TextReader) -> None:
        picture = sample_picture(12.5).copy()
        cv2.rectangle(picture, (40, 430), (700, 510), (20, 20, 120), -1)
        cv2.putText(picture, "Eileen Collins, astronaut", (60, 485), (255, 255, 255), cv2.FontFace("uni"), 36)
        (lines,) = reader.read([picture])
        assert "Eileen Collins, astronaut" in texts(lines)

    def test_says_nothing_of_letters_it_does_not_know(self, reader: TextReader) -> None:
        # Nonsense in Latin letters would be found by a search for it.
        (lines,) = reader.read([render(("Привет, как дела", 360), letter_px=56)])
        assert all(len(line.text) < 16 for line in lines)

    @pytest.mark.parametrize("block_px", [1, 8, 20])
    def test_nothing_in_noise(self, reader: TextReader, block_px: int) -> None:
        noise = np.random.default_rng(5).integers(0, 256, (720 // block_px, 1280 // block_px, 3), np.uint8)
        picture = cv2.resize(noise, (1280, 720), interpolation=cv2.INTER_NEAREST)
        assert reader.read([cast(Uint8, picture)]) == [[]]

    def test_nothing_in_a_picture_without_text(self, reader: TextReader) -> None:
        assert reader.read([sample_picture(12.5)[:, 320:640]]) == [[]]

    def test_of_the_sample_only_captions_are_read(self, reader: TextReader) -> None:
        """Every second of it, as it is and with a line written over it: a rocket's engines and cups are no zeros."""
        words = "Rocket launch 2026"
        for number, picture in enumerate(sample_pictures(1.0)):
            assert reader.read([picture]) == [[]], f"{number} s"
            if number % 5 == 0:
                written = picture.copy()
                cv2.rectangle(written, (40, 430), (500, 510), (20, 20, 120), -1)
                cv2.putText(written, words, (60, 485), (255, 255, 255), cv2.FontFace("uni"), 36)
                assert texts(reader.read([written])[0]) == [words], f"{number} s"

    @pytest.mark.parametrize(
        "text",
        [
            *("Größe café señor élève", "火箭发射时间", "ロケット打ち上げ"),
            *("2000", "10:00", "007", "GO", "CO2", "Cocoon", "0-0", "Zoo", "Page 9", "6,000"),
        ],
    )
    def test_reads_other_letters_and_short_and_round_texts(self, reader: TextReader, text: str) -> None:
        (lines,) = reader.read([render((text, 360), letter_px=56)])
        assert texts(lines) == [text]

    @pytest.mark.parametrize("scale", [0.5, 2.0, 6.0])
    def test_boxes_are_in_image_pixels(self, reader: TextReader, scale: float) -> None:
        picture = render(*CAPTIONS)
        image = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        (here,), (there,) = reader.read([picture]), reader.read([cast(Uint8, image)])
        assert texts(here) == texts(there)
        for one, other in zip(here, there, strict=True):
            assert np.allclose(one.box, np.array(other.box) / scale, atol=14)

    def test_a_strip_that_is_all_text_is_read(self, reader: TextReader) -> None:
        strip = render(("Rocket launch delayed until Friday", 44), size=(1200, 60))
        (lines,) = reader.read([strip])
        assert texts(lines) == ["Rocket launch delayed until Friday"]
        x, y, width, height = lines[0].box
        assert x >= 0 and y >= 0 and x + width <= 1200 and y + height <= 60

    def test_is_deterministic_and_leaves_images_alone(self, reader: TextReader) -> None:
        image = render(*CAPTIONS)
        before = image.copy()
        assert reader.read([image]) == reader.read([image])
        assert np.array_equal(image, before)

    def test_batch_equals_single_in_order(self, reader: TextReader) -> None:
        images = [
            np.zeros((100, 100, 3), np.uint8),
            render(*CAPTIONS),
            render(("Just one line", 200), size=(640, 360)),
            np.full((1, 1, 3), 9, np.uint8),
            render(*CAPTIONS)[:, ::2],
            render(("Tall picture", 900), size=(500, 1100)),
        ]
        together = reader.read(images)
        assert [bool(lines) for lines in together] == [False, True, True, False, True, True]
        assert [reader.read([image])[0] for image in images] == together

    def test_a_view_is_read_like_a_copy(self, reader: TextReader) -> None:
        wide = np.concatenate([render(*CAPTIONS), np.zeros((720, 300, 3), np.uint8)], axis=1)
        assert reader.read([wide[:, :1280]]) == reader.read([render(*CAPTIONS)])

    def test_threads_change_the_speed_only(self, reader: TextReader) -> None:
        other = cast(TextReader, build(reader.spec, threads=1))
        (one,), (many,) = other.read([render(*CAPTIONS)]), reader.read([render(*CAPTIONS)])
        other.unload()
        assert texts(one) == texts(many)
        for a, b in zip(one, many, strict=True):
            assert a.box == b.box and a.score == pytest.approx(b.score, abs=1e-3)
