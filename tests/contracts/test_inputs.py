"""What every model keeps to that takes texts or pictures: order, batches, nothing, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from shared.errors import InvalidRequest
from tests.contracts.candidates import TEXTS, fixture_of
from worker.models.base import Float32, Model

OF_TEXTS: dict[str, Callable[[Any, Sequence[str]], Float32]] = {
    "text": lambda model, texts: model.embed(texts),
    "rerank": lambda model, texts: model.rerank("a hot drink in the morning", texts),
    "vision": lambda model, texts: model.embed_texts(texts),
}
OF_PICTURES: dict[str, Callable[[Any, Sequence[Any]], Any]] = {
    "vision": lambda model, pictures: model.embed_images(pictures),
    "face": lambda model, pictures: model.analyse(pictures),
    "ocr": lambda model, pictures: model.read(pictures),
}
SHAPES = [(1, 1, 3), (1, 3000, 3), (3000, 1, 3), (20, 20, 3), (360, 640, 3), (4320, 7680, 3)]

reader = fixture_of(*OF_TEXTS)
seer = fixture_of(*OF_PICTURES)
finder = fixture_of("face", "ocr")


class TestTexts:
    def test_batch_equals_single(self, reader: Model) -> None:
        compute = OF_TEXTS[reader.spec.kind]
        single = np.concatenate([compute(reader, [text]) for text in TEXTS])
        np.testing.assert_allclose(compute(reader, TEXTS), single, atol=2e-5)

    def test_keeps_the_order_and_is_deterministic(self, reader: Model) -> None:
        compute = OF_TEXTS[reader.spec.kind]
        order = np.random.default_rng(3).permutation(len(TEXTS))
        found = compute(reader, TEXTS)
        np.testing.assert_allclose(
            compute(reader, [TEXTS[index] for index in order]), found[order], atol=2e-5
        )
        assert np.array_equal(compute(reader, TEXTS), found)

    def test_no_texts_give_an_empty_array(self, reader: Model) -> None:
        compute = OF_TEXTS[reader.spec.kind]
        none, one = compute(reader, []), compute(reader, ["one"])
        assert none.shape == (0, *one.shape[1:]) and none.dtype == one.dtype == np.float32

    @pytest.mark.parametrize("texts", [["fine", 3], [None], [b"bytes"], "one text"], ids=str)
    def test_refuses_what_is_not_a_list_of_texts(self, reader: Model, texts: list[str]) -> None:
        with pytest.raises(InvalidRequest):
            OF_TEXTS[reader.spec.kind](reader, texts)


class TestPictures:
    def test_no_pictures_give_nothing(self, seer: Model) -> None:
        assert len(OF_PICTURES[seer.spec.kind](seer, [])) == 0

    @pytest.mark.parametrize(
        "picture",
        [
            np.zeros((90, 90), np.uint8),
            np.zeros((90, 90, 4), np.uint8),
            np.zeros((90, 90, 3), np.float32),
            np.zeros((0, 90, 3), np.uint8),
        ],
        ids=["grey 2-D", "RGBA", "float", "empty"],
    )
    def test_refuses_what_is_no_picture(self, seer: Model, picture: Any) -> None:
        with pytest.raises(InvalidRequest, match="Image 1 must be uint8"):
            OF_PICTURES[seer.spec.kind](seer, [np.zeros((8, 8, 3), np.uint8), picture])

    @pytest.mark.parametrize(
        ("shape", "grey"),
        # Of the largest, one will do.
        [(s, grey) for s in SHAPES for grey in (0, 128, 255) if grey == 128 or s != SHAPES[-1]],
        ids=str,
    )
    def test_nothing_is_found_in_a_picture_of_one_colour(
        self, finder: Model, shape: tuple[int, int, int], grey: int
    ) -> None:
        assert OF_PICTURES[finder.spec.kind](finder, [np.full(shape, grey, np.uint8)]) == [[]]
