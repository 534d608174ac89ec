"""Time in equal steps from the video's start: what is sampled by them depends on the clock, not on where a pass began."""

from __future__ import annotations


def step_of(ts_s: float, step_s: float) -> int:
    """Return the number of the step of ``step_s`` seconds that the time ``ts_s`` falls into; steps of twice the length nest."""
    return int(ts_s // step_s)


def is_same_step(a_s: float, b_s: float, step_s: float) -> bool:
    """Whether two times fall into the same step."""
    return step_of(a_s, step_s) == step_of(b_s, step_s)
