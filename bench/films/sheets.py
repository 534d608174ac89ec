"""Contact sheets to label a film by eye: frames around everything that may be a transition, and a regular strip.

``python -m bench.films.sheets FILM WEIGHTS FOLDER`` writes PNG sheets. A row of proposals is eleven frames around one
frame where TransNetV2, or the change from one frame to the next, says that something may have happened (far below any
threshold that a detector uses); the strip shows the whole film at a regular distance, so that what no method proposes
is seen as well. Numbers are frames, from 0: the truth is written as those.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from worker.media.transnet import SIZE, TransNet

Frames = NDArray[np.uint8]
#: Width of a picture on a sheet, and rows of a sheet.
_WIDE_PX, _ROWS = 150, 12
#: A frame is proposed where TransNetV2 gives this probability, or the change is so many times its neighbours' median.
_CHANCE, _RATIO, _CHANGE = 0.03, 2.5, 4.0


def read(path: Path) -> tuple[Frames, list[Frames]]:
    """Return the film's frames as the network takes them, uint8 [T, 27, 48, 3], and as pictures for the sheets."""
    small, pictures = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            image = frame.to_ndarray(format="rgb24")
            small.append(cv2.resize(image, SIZE, interpolation=cv2.INTER_AREA))
            height = round(_WIDE_PX * image.shape[0] / image.shape[1])
            pictures.append(cv2.resize(image, (_WIDE_PX, height), interpolation=cv2.INTER_AREA))
    return np.stack(small), pictures


def probabilities(network: TransNet, frames: Frames) -> NDArray[np.float32]:
    """Return TransNetV2's probabilities for all frames, [T, 2], by windows of 100 of which the middle 50 count."""
    ends = 25, 25 + -len(frames) % 50
    padded = np.concatenate([np.repeat(frames[:1], ends[0], 0), frames, np.repeat(frames[-1:], ends[1], 0)])
    found = [network.judge(padded[at : at + 100])[25:75] for at in range(0, len(padded) - 99, 50)]
    return np.concatenate(found)[: len(frames)]


def propose(frames: Frames, chances: NDArray[np.float32]) -> list[int]:
    """Return the frames to look at, in order."""
    change = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2, 3))
    change = np.concatenate([[0.0], change])
    around = np.stack([np.roll(change, shift) for shift in (-4, -3, -2, -1, 1, 2, 3, 4)])
    jumps = change > np.maximum(_CHANGE, _RATIO * np.median(around, axis=0))
    likely = (chances[:, 0] > _CHANCE) | np.roll(chances[:, 0] > _CHANCE, 1) | jumps
    found: list[int] = []
    for at in np.flatnonzero(likely):
        if not found or at - found[-1] > 4:
            found.append(int(at))
    return found


def draw(pictures: list[Frames], rows: list[list[int]], path: Path) -> None:
    """Write one sheet: each row shows the frames with these numbers."""
    height = pictures[0].shape[0]
    wide = max(map(len, rows))
    sheet = np.zeros((len(rows) * (height + 3), wide * (_WIDE_PX + 2), 3), np.uint8)
    for y, row in enumerate(rows):
        for x, number in enumerate(row):
            picture = pictures[number].copy()
            cv2.putText(picture, str(number), (2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 3)
            cv2.putText(picture, str(number), (2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 0), 1)
            top, left = y * (height + 3), x * (_WIDE_PX + 2)
            sheet[top : top + height, left : left + _WIDE_PX] = picture
    cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))


def main() -> int:
    film, weights, folder = map(Path, sys.argv[1:4])
    folder.mkdir(parents=True, exist_ok=True)
    frames, pictures = read(film)
    proposed = propose(frames, probabilities(TransNet(weights), frames))
    last = len(pictures) - 1
    rows = [[min(last, max(0, at + k)) for k in range(-5, 6)] for at in proposed]
    strip = list(range(0, len(pictures), max(1, len(pictures) // 132)))
    for kind, of_kind in (
        ("proposal", rows),
        ("strip", [strip[i : i + 11] for i in range(0, len(strip), 11)]),
    ):
        for number, at in enumerate(range(0, len(of_kind), _ROWS)):
            draw(pictures, of_kind[at : at + _ROWS], folder / f"{film.stem}-{kind}-{number}.png")
    print(f"{film.name}: {len(pictures)} frames, {len(proposed)} proposals {proposed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
