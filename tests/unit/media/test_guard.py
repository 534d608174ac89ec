"""The limits hold for what is decoded, and its cost may grow with what has come, whatever the header claims."""

from __future__ import annotations

import pytest

from shared.errors import BadMedia, LimitExceeded
from worker.media.audio import is_plausible
from worker.media.guard import FREE_PIXELS, Budget, Guard
from worker.media.limits import MediaLimits
from worker.media.results import MediaInfo, VideoStream

LIMITS = MediaLimits(max_video_duration_s=100.0, max_video_fps=60.0, max_video_side_px=1000)
HD, LARGE = 1920 * 1080, 8192**2
MP4 = "mov,mp4,m4a,3gp,3g2,mj2"


def run(budget: Budget, frames: int, pixels: int, packet_bytes: int, fps: float) -> None:
    for index in range(frames):
        budget.charge(packet_bytes, pixels)
        budget.reach(index / fps)


@pytest.mark.parametrize(
    ("pixels", "packet_bytes", "fps"),
    [
        (HD, 40, 30),  # a still screen, hour after hour
        (3840 * 2160, 4_000, 60),
        (7680 * 4320, 60_000, 30),
        (HD, 2_000, 240),
    ],
)
def test_real_videos_stay_within(pixels: int, packet_bytes: int, fps: float) -> None:
    run(Budget(MediaLimits(), lambda: 0.0), 20_000, pixels, packet_bytes, fps)


@pytest.mark.parametrize(
    ("limits", "frames", "pixels", "packet_bytes", "fps", "says"),
    [
        ({}, FREE_PIXELS // LARGE + 10, LARGE, 30, 5, r"for each of \d+ bytes \(MAX_VIDEO_PIXELS_PER_BYTE\)"),
        ({}, 2_000, LARGE, 10**6, 60, "MAX_VIDEO_PIXELS_PER_S"),
        ({"max_video_pixels": FREE_PIXELS + 10 * HD}, FREE_PIXELS // HD + 12, HD, 10**5, 25, r"MAX_VIDEO_PIXELS\)"),
    ],
    ids=["for no bytes", "in no time", "of a whole file"],
)  # fmt: skip
def test_too_many_pixels(
    limits: dict[str, int], frames: int, pixels: int, packet_bytes: int, fps: float, says: str
) -> None:
    with pytest.raises(LimitExceeded, match=says):
        run(Budget(MediaLimits(**limits), lambda: 0.0), frames, pixels, packet_bytes, fps)


def test_cpu_time_follows_the_content_in_which_a_leap_counts_little() -> None:
    now_s = [0.0]
    limits = MediaLimits(media_cpu_base_s=10, media_cpu_per_s=2)
    budget, other = Budget(limits, lambda: now_s[0]), Budget(limits, lambda: now_s[0])
    for second in range(100):
        now_s[0] = 10 + 2 * second
        for _ in range(16):  # often enough for the clock to be read
            budget.reach(float(second))
    now_s[0] = 211
    with pytest.raises(LimitExceeded, match="211 s of CPU time for 99 s of content, the limit is 10 s and 2"):
        for _ in range(16):
            budget.reach(99.0)
    now_s[0] = 31
    with pytest.raises(LimitExceeded, match="for 10 s of content"):
        other.reach(40_000.0)


def guard(duration_s: float = 10.0, container: str = MP4) -> Guard:
    video = VideoStream(
        index=0, codec="h264", width=320, height=180, rotation_deg=0, avg_fps=25.0, pix_fmt="yuv420p"
    )
    return Guard(
        MediaInfo(
            container=container, duration_s=duration_s, size_bytes=1, video=video, audio=None, streams=1
        ),
        LIMITS,
    )


@pytest.mark.parametrize(
    ("width", "ts_s", "error", "says"),
    [
        (1001, 0.1, LimitExceeded, "1001x180 pixels, the limit is 1000 a side"),
        (8, 0.1, BadMedia, "8x180 pixels, the smallest usable side is 16"),
        (320, 100.6, LimitExceeded, "shown at 101 s, the limit is 100 s"),
    ],
)
def test_a_picture_that_breaks_a_limit(width: int, ts_s: float, error: type[Exception], says: str) -> None:
    watching = guard()
    watching.check_frame(320, 180, 0.0)
    with pytest.raises(error, match=says):
        watching.check_frame(width, 180, ts_s)


def test_more_pictures_a_second_than_allowed() -> None:
    watching = guard()
    with pytest.raises(LimitExceeded, match=r"There are 121 pictures in 1.0 s, over the limit of 60 frames"):
        for index in range(200):
            watching.check_frame(320, 180, min(1.0, index / 100))


@pytest.mark.parametrize(
    ("end_s", "container", "complete"),
    [
        (10.0, MP4, True),
        (9.1, MP4, True),
        (8.9, MP4, False),
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
