"""Reads on-screen text with RapidOCR: PP-OCRv6's detector and recogniser in ONNX, on the CPU.

Reads Latin (with accents), Chinese and Japanese, level or slanted by up to about 30 degrees; neither Cyrillic nor Arabic.
Source: PaddleOCR, PP-OCRv6 small models in the package rapidocr (both Apache-2.0). The package downloads missing files, so it
gets the paths of the files that were checked.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from rapidocr import RapidOCR

from shared.errors import ModelUnavailable
from worker.models.base import Uint8
from worker.models.ocr import Line, TextReader
from worker.models.providers.ocr_rule import is_text

#: Long side of the picture that lines are cut from; keyframes are no larger.
MAX_SIDE_PX = 1280
#: Long side of the picture the detector sees. It finds lines 12 px high in a 720p frame there.
DETECTOR_SIDE_PX = 640
#: Smaller and narrower pictures get a margin: the detector's input would shrink to nothing.
MIN_SIDE_PX = 64
MAX_ASPECT = 8
#: Sideways text read as nonsense reached 0.63; rows of round things, taken for zeros, lie at 0.35 to 0.86; level text 12 px
#: high began at 0.97.
MIN_SCORE = 0.75
#: Regions of one picture that are read; thousands would take minutes.
MAX_REGIONS = 300
#: Lines recognised at once: more are not faster on a CPU.
_LINES_AT_ONCE = 6

_DETECTOR = "PP-OCRv6_det_small.onnx"
_RECOGNISER = "PP-OCRv6_rec_small.onnx"


class RapidReader(TextReader):
    """RapidOCR on ONNX Runtime; pictures are read one by one."""

    _reader: RapidOCR

    def _load(self) -> None:
        cv2.setNumThreads(self.threads)
        detector, recogniser = self._file(_DETECTOR), self._file(_RECOGNISER)
        settings: dict[str, Any] = {
            # It warns of pictures without text.
            "Global.log_level": "error",
            "Global.use_cls": False,
            # `_fit` does both.
            "Global.use_preprocess_img": False,
            "Global.use_vertical_padding": False,
            # `_read` chooses.
            "Global.text_score": 0.0,
            "Det.model_path": str(detector),
            "Det.limit_type": "max",
            "Det.limit_side_len": DETECTOR_SIDE_PX,
            "Det.max_candidates": MAX_REGIONS,
            "Rec.model_path": str(recogniser),
            "Rec.rec_batch_num": _LINES_AT_ONCE,
            "EngineConfig.onnxruntime.intra_op_num_threads": self.threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        reader = RapidOCR(params=settings)
        try:
            # It loads each network when it first needs it: a detector finds these words, a recogniser reads them.
            found = reader(_sample())
        except Exception as error:
            raise ModelUnavailable(
                f"Model {self.spec.name} can't be loaded from {detector.parent}: RapidOCR says {_reason(error)}"
            ) from error
        if not found.txts:
            raise ModelUnavailable(
                f"Model {self.spec.name} can't be loaded from {detector.parent}: it does not read a picture of a word; "
                f"put the files that models.yaml names there"
            )
        self._reader = reader

    def _warm_up(self) -> None:
        self._read(_sample())

    def _read(self, image: Uint8) -> list[Line]:
        return [line for line in self.read_all(image) if line.score >= MIN_SCORE and is_text(line)]

    def read_all(self, image: Uint8) -> list[Line]:
        """Every line the engine reads with its score, also what is no text; for measuring (`bench/ocr.py`)."""
        fitted, scale = _fit(image)
        found = self._reader(cv2.cvtColor(fitted, cv2.COLOR_RGB2BGR))
        if found.txts is None:
            return []
        height_px, width_px = image.shape[:2]
        lines = []
        for text, score, quad in zip(found.txts, found.scores, found.boxes, strict=True):
            corners = np.asarray(quad, np.float64) / scale
            left, top = np.clip(corners.min(axis=0), 0, (width_px, height_px))
            right, bottom = np.clip(corners.max(axis=0), 0, (width_px, height_px))
            words = " ".join(text.split())
            if words and right > left and bottom > top:
                box = (float(left), float(top), float(right - left), float(bottom - top))
                lines.append(Line(words, box, min(1.0, float(score))))
        return lines


def _fit(image: Uint8) -> tuple[Uint8, float]:
    """The picture at a size the detector takes, and its scale to the original's pixels.

    A margin, in the picture's most common brightness, is added to the right and below only: pixels keep their place.
    """
    height_px, width_px = image.shape[:2]
    scale = min(1.0, MAX_SIDE_PX / max(height_px, width_px))
    if scale < 1:
        size = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    height_px, width_px = image.shape[:2]
    least_px = max(MIN_SIDE_PX, -(-max(height_px, width_px) // MAX_ASPECT))
    below, right = max(0, least_px - height_px), max(0, least_px - width_px)
    if below or right:
        colour = [float(value) for value in np.median(image.reshape(-1, 3), axis=0)]
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=colour)
    return np.ascontiguousarray(image), scale


def _sample() -> Uint8:
    """uint8 [360, 640, 3] that shows a word."""
    picture = np.full((360, 640, 3), 255, np.uint8)
    cv2.putText(picture, "TEXT", (200, 200), cv2.FONT_HERSHEY_SIMPLEX, 3.0, (0, 0, 0), 6)
    return picture


def _reason(error: Exception) -> str:
    """The last line of what RapidOCR wraps a whole traceback into."""
    lines = str(error).strip().splitlines()
    return (lines[-1] if lines else type(error).__name__).strip().rstrip(".")
