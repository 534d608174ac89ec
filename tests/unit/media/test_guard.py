"""The limits hold for what is decoded, whatever the header said."""

from __future__ import annotations

import pytest

from shared.errors import BadMedia, LimitExceeded
from worker.media.audio import is_plausible
from worker.media.guard import Guard
from worker.media.limits import MediaLimits
from worker.media.results import MediaInfo, VideoStream

LIMITS = MediaLimits(max_video_duration_s=100.0, max_video_fps=60.0, max_video_side_px=1000)


def guard(duration_s: float = 10.0, container: str = "mov,mp4,m4a,3gp,3g2,mj2") -> Guard:
    video = VideoStream(
        index=0, codec="h264", width=320, height=180, rotation_deg=0, avg_fps=25.0, pix_fmt="yuv420p"
    )
    info = MediaInfo(
        container=container, duration_s=duration_s, size_bytes=1, video=video, audio=None, streams=1
    )
    return Guard(info, LIMITS)


def test_a_picture_that_grows_while_decoding() -> None:
    watching = guard()
    watching.check_frame(320, 180, 0.0)
    with pytest.raises(LimitExceeded, match="1001x180 pixels, the limit is 1000 a side"):
        watching.check_frame(1001, 180, 0.1)


def test_a_picture_that_shrinks_to_nothing() -> None:
    with pytest.raises(BadMedia, match="8x180 pixels, the smallest usable side is 16"):
        guard().check_frame(8, 180, 0.0)


def test_more_time_than_allowed() -> None:
    watching = guard()
    watching.check_frame(320, 180, 100.0)
    with pytest.raises(LimitExceeded, match="shown at 101 s, the limit is 100 s"):
        watching.check_frame(320, 180, 100.6)


def test_more_pictures_a_second_than_allowed() -> None:
    watching = guard()
    with pytest.raises(LimitExceeded, match=r"There are 121 pictures in 1.0 s, over the limit of 60 frames"):
        for index in range(200):
            watching.check_frame(320, 180, min(1.0, index / 100))


@pytest.mark.parametrize(
    ("end_s", "container", "complete"),
    [
        (10.0, "mov,mp4,m4a,3gp,3g2,mj2", True),
        (9.1, "mov,mp4,m4a,3gp,3g2,mj2", True),
        (8.9, "mov,mp4,m4a,3gp,3g2,mj2", False),
        (5.0, "matroska,webm", False),
        (5.0, "mpegts", True),  # its duration is FFmpeg's estimate, not a header's word
    ],
)
def test_content_that_ends_early(end_s: float, container: str, complete: bool) -> None:
    watching = guard(10.0, container)
    watching.check_frame(320, 180, 0.0)
    watching.content_s = end_s
    if complete:
        watching.check_complete()
    else:
        with pytest.raises(BadMedia, match=rf"header says 10\.0 s, content ends at {end_s:.1f} s"):
            watching.check_complete()


def test_mostly_damaged() -> None:
    watching = guard(0.0)
    for index in range(10):
        watching.check_frame(320, 180, index / 25)
    for _ in range(10):
        watching.count_error()
    watching.check_complete()
    watching.count_error()
    with pytest.raises(BadMedia, match="11 of 21 pictures could not be decoded"):
        watching.check_complete()


@pytest.mark.parametrize(
    ("ts_s", "last_s", "declared_s", "plausible"),
    [
        (5.0, 4.0, 10.0, True),
        (50.0, 4.0, 10.0, True),  # a header may be short
        (500.0, 4.0, 10.0, False),
        (500.0, 4.0, 600.0, True),
        (500.0, 499.0, 10.0, True),
        (500.0, 4.0, 0.0, True),
    ],
)
def test_leaps_in_time(ts_s: float, last_s: float, declared_s: float, plausible: bool) -> None:
    assert is_plausible(ts_s, last_s, declared_s) is plausible
