"""Seconds of the sample video, for tests that process a spoken video again and again."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

#: (start, end) in the sample, seconds.
Span = tuple[float, float]


def write_muted(sample: Path, path: Path) -> None:
    """Write the sample without its sound, pictures copied: all of its scenes, and nothing to listen to."""
    with av.open(str(sample)) as source, av.open(str(path), "w") as target:
        video = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                target.mux(packet)


def write_excerpt(
    sample: Path,
    path: Path,
    caption: str = "",
    *,
    pictures: Sequence[Span] = ((0, 2), (9, 11)),
    sound: Span = (0, 4),
    size: tuple[int, int] = (960, 540),
) -> None:
    """Write these spans of pictures, one after the other, encoded again, with a span of the sound, copied.

    By default two scenes of 2 s, the second with the astronaut's face; words about a rocket and its towers in both.
    ``caption``: what the first span shows in writing.
    """
    with av.open(str(sample)) as source, av.open(str(path), "w") as target:
        video: Any = target.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio = target.add_stream_from_template(source.streams.audio[0])
        source.seek(int(min(sound[0], pictures[0][0]) * 1_000_000))
        shown = 0
        for packet in source.demux(video=0, audio=0):
            if packet.pts is None or packet.time_base is None:
                continue
            at_s = float(packet.pts * packet.time_base)
            if packet.stream.type == "audio":
                if sound[0] <= at_s < sound[1]:
                    packet.pts = packet.dts = packet.pts - round(sound[0] / packet.time_base)
                    packet.stream = audio
                    target.mux(packet)
                continue
            # Pictures come out of the decoder later than they go in.
            if at_s > pictures[-1][1] + 2:
                if at_s > sound[1] + 2:
                    break
                continue
            for frame in packet.decode():
                if not any(start_s <= frame.time < end_s for start_s, end_s in pictures):
                    continue
                pixels = np.ascontiguousarray(frame.to_ndarray(width=size[0], height=size[1], format="rgb24"))
                if caption and frame.time < pictures[0][1]:
                    cv2.rectangle(pixels, (50, 340), (760, 400), (15, 15, 60), -1)
                    cv2.putText(pixels, caption, (70, 384), (255, 255, 255), cv2.FontFace("uni"), 40)
                picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                picture.pts, picture.time_base = shown, Fraction(1, 25)
                shown += 1
                target.mux(video.encode(picture))
        target.mux(video.encode(None))
