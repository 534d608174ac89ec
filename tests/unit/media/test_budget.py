"""What decoding may cost grows with the content and the bytes that have come, not with what a header claims."""

from __future__ import annotations

import pytest

from shared.errors import LimitExceeded
from worker.media.guard import FREE_PIXELS, Budget
from worker.media.limits import MediaLimits

HD = 1920 * 1080


class Clock:
    """CPU seconds, set by the test."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def reach(budget: Budget, content_s: float) -> None:
    """Often enough for the clock to be read."""
    for _ in range(16):
        budget.reach(content_s)


def run(budget: Budget, *, frames: int, pixels: int, packet_bytes: int, fps: float) -> None:
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
    run(Budget(MediaLimits(), Clock()), frames=20_000, pixels=pixels, packet_bytes=packet_bytes, fps=fps)


def test_pixels_that_cost_no_bytes() -> None:
    budget = Budget(MediaLimits(), Clock())
    with pytest.raises(LimitExceeded, match=r"for each of \d+ bytes \(MAX_VIDEO_PIXELS_PER_BYTE\)"):
        run(budget, frames=FREE_PIXELS // 8192**2 + 10, pixels=8192**2, packet_bytes=30, fps=5)


def test_pixels_that_take_no_time() -> None:
    budget = Budget(MediaLimits(), Clock())
    with pytest.raises(LimitExceeded, match=r"MAX_VIDEO_PIXELS_PER_S"):
        run(budget, frames=2_000, pixels=8192**2, packet_bytes=10**6, fps=60)


def test_pixels_of_a_whole_file() -> None:
    budget = Budget(MediaLimits(max_video_pixels=FREE_PIXELS + 10 * HD), Clock())
    with pytest.raises(LimitExceeded, match=r"MAX_VIDEO_PIXELS\)"):
        run(budget, frames=FREE_PIXELS // HD + 12, pixels=HD, packet_bytes=10**5, fps=25)


def test_cpu_time_follows_the_content() -> None:
    clock = Clock()
    budget = Budget(MediaLimits(media_cpu_base_s=10, media_cpu_per_s=2), clock)
    for second in range(100):
        clock.now_s = 10 + 2 * second
        reach(budget, float(second))
    clock.now_s += 3
    with pytest.raises(LimitExceeded, match="211 s of CPU time for 99 s of content, the limit is 10 s and 2"):
        reach(budget, 99.0)


def test_a_leap_in_time_allows_little() -> None:
    clock = Clock()
    budget = Budget(MediaLimits(media_cpu_base_s=10, media_cpu_per_s=2), clock)
    clock.now_s = 31
    with pytest.raises(LimitExceeded, match="for 10 s of content"):
        reach(budget, 40_000.0)
