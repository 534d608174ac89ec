"""Four seconds of the sample video, for tests that process a spoken video again and again."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np


def write_excerpt(sample: Path, path: Path, caption: str = "") -> None:
    """Two scenes of 2 s, the second with the astronaut's face; words about a rocket and its towers in both.

    ``caption``: what the first scene shows in writing.
    """
    with av.open(str(sample)) as source, av.open(str(path), "w") as target:
        size = source.streams.video[0].codec_context
        video: Any = target.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        video.width, video.height, video.pix_fmt = size.width, size.height, "yuv420p"
        audio = target.add_stream_from_template(source.streams.audio[0])
        shown = 0
        for packet in source.demux(source.streams.video[0], source.streams.audio[0]):
            if packet.stream.type == "audio":
                if (
                    packet.pts is not None
                    and packet.time_base is not None
                    and packet.pts * packet.time_base < 4
                ):
                    packet.stream = audio
                    target.mux(packet)
                continue
            for frame in packet.decode():
                if not isinstance(frame, av.VideoFrame) or frame.time is None:
                    continue
                if not (frame.time < 2 or 9 <= frame.time < 11):
                    continue
                pixels = np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
                if caption and frame.time < 2:
                    cv2.rectangle(pixels, (50, 340), (760, 400), (15, 15, 60), -1)
                    cv2.putText(pixels, caption, (70, 384), (255, 255, 255), cv2.FontFace("uni"), 40)
                picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                picture.pts, picture.time_base = shown, Fraction(1, 25)
                shown += 1
                target.mux(video.encode(picture))
        target.mux(video.encode(None))
