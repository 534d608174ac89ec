"""Measures the demo video with the models of the profile `lite`, to choose its script and to publish the numbers.

Only the models, none of the fleet: the whole sound track is transcribed as one piece, words go to the scene of truth.json
they are spoken in. Run from the repository's root, with scenefleet's extra `lite` installed:

    python -m samples.measure_demo samples /tmp/slt --record
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from worker.models.asr import Transcriber, Word
from worker.models.base import SAMPLE_RATE_HZ
from worker.models.cache import ModelCache
from worker.models.catalog import load_catalog
from worker.models.face import FaceAnalyser
from worker.models.text import TextEmbedder

HOME = Path(__file__).parent
#: Faces are looked for in this many pictures a second.
FACE_FPS = 1


def count_word_errors(reference: Sequence[str], heard: Sequence[str]) -> int:
    """The least number of words to replace, insert or drop to make one from the other (Levenshtein's distance)."""
    row = list(range(len(heard) + 1))
    for i, word in enumerate(reference, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]


def read_audio(path: Path) -> NDArray[np.float32]:
    """The sound track: float32 [N], mono, SAMPLE_RATE_HZ."""
    resampler = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE_HZ)
    with av.open(str(path)) as container:
        parts = [part for block in container.decode(audio=0) for part in resampler.resample(block)]
    return np.concatenate([part.to_ndarray()[0] for part in [*parts, *resampler.resample(None)]])


def read_pictures(path: Path, step_frames: int) -> list[tuple[float, NDArray[np.uint8]]]:
    """Every ``step_frames``-th picture, from the middle of the first step on: its time in s and uint8 [H, W, 3] RGB."""
    with av.open(str(path)) as container:
        return [
            (float(frame.time or 0.0), cast(NDArray[np.uint8], frame.to_ndarray(format="rgb24")))
            for number, frame in enumerate(container.decode(video=0))
            if number % step_frames == step_frames // 2
        ]


def hear_scenes(path: Path, truth: dict[str, Any], model: Transcriber) -> list[list[Word]]:
    """The recognised words of each scene; a word belongs to the scene its middle lies in."""
    segments = model.transcribe(read_audio(path)).segments
    words = [word for segment in segments for word in segment.words]
    return [
        [w for w in words if scene["start_s"] <= (w.start_s + w.end_s) / 2 < scene["end_s"]]
        for scene in truth["scenes"]
    ]


def measure_words(truth: dict[str, Any], heard: list[list[Word]]) -> float:
    """Print each scene's words and return the word error rate of the whole narration."""
    errors = total = 0
    for index, (scene, words) in enumerate(zip(truth["scenes"], heard, strict=True)):
        found = [word.text for word in words]
        wrong = count_word_errors(scene["words"], found)
        errors, total = errors + wrong, total + len(scene["words"])
        print(f"  scene {index}: {wrong:2d}/{len(scene['words'])} wrong | {' '.join(found)}")
    print(f"  word error rate {errors / total:.3f} ({errors} of {total})")
    return errors / total


def measure_searches(truth: dict[str, Any], heard: list[list[Word]], model: TextEmbedder) -> None:
    """Print the first hit of each search and, by meaning, how far ahead of the second it is."""
    texts = [" ".join(word.text for word in words) for words in heard]
    for search in truth["searches"]:
        if search["mode"] == "keyword":
            hits = [i for i, text in enumerate(texts) if search["query"] in text.split()]
            print(f"  keyword {search['query']!r}: scenes {hits}, wanted {search['scene']}")
            continue
        vectors = model.embed([*texts, search["query"]])
        scores = vectors[:-1] @ vectors[-1]
        first, second = np.argsort(-scores)[:2]
        print(
            f"  semantic {search['query']!r}: scene {first} ({scores[first]:.2f}), wanted {search['scene']}; "
            f"next is scene {second} ({scores[second]:.2f})"
        )


def measure_faces(path: Path, truth: dict[str, Any], model: FaceAnalyser) -> None:
    """Print in how many of each scene's pictures how many faces are found."""
    pictures = read_pictures(path, truth["fps"] // FACE_FPS)
    faces = model.analyse([picture for _, picture in pictures])
    for index, scene in enumerate(truth["scenes"]):
        counts = [
            len(found)
            for (time_s, _), found in zip(pictures, faces, strict=True)
            if scene["start_s"] <= time_s < scene["end_s"]
        ]
        expected = [face["who"] for face in truth["faces"] if face["scene"] == index]
        if any(counts) or expected:
            print(f"  faces in scene {index}: {counts} by picture, expected {expected or 'none'}")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Measure folders made by make_demo.py.")
    parser.add_argument("folders", nargs="+", type=Path, help="folders with demo.mp4 and truth.json")
    parser.add_argument("--record", action="store_true", help="write the error rates into samples/truth.json")
    options = parser.parse_args(arguments)
    catalog = load_catalog()
    models = ModelCache(catalog, catalog.for_profile("lite"), ("asr", "text", "face"), threads=1)
    rates = {}
    for folder in options.folders:
        path, truth = folder / "demo.mp4", json.loads((folder / "truth.json").read_text())
        print(f"{path}, voice {truth['voice']}")
        heard = hear_scenes(path, truth, cast(Transcriber, models.get("asr")))
        rates[truth["voice"]] = round(measure_words(truth, heard), 4)
        measure_searches(truth, heard, cast(TextEmbedder, models.get("text")))
        measure_faces(path, truth, cast(FaceAnalyser, models.get("face")))
    if options.record:
        record = HOME / "truth.json"
        recorded = json.loads(record.read_text())
        recorded["wer"] = rates
        record.write_text(json.dumps(recorded, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
