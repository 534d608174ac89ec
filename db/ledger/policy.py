"""What a fleet can run, and when it tries again or gives up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunPolicy:
    """How runs are planned and jobs retried; made of the settings by ``worker.runtime``."""

    #: Stage -> why it can't run here: a feature that is off, no model in the profile.
    skips: Mapping[str, str]
    #: Errors after which a job fails for good.
    max_failures: int
    #: How long a failed run's temporary objects are kept for a retry, seconds.
    tmp_ttl_s: float
    #: Maximum number of videos of one user that wait or are in progress; 0: no limit.
    max_open_videos: int = 0
    #: Deaths of its process after which a job is bisected or fails for good, and how many of them it must have died
    #: alone on its node: other jobs can't have caused these.
    max_deaths: int = 3
    max_deaths_alone: int = 2
    #: Outages after which a job fails for good.
    max_outages: int = 20
    #: First pause before a job is tried again, doubling up to ``backoff_max_s``; 0: at once.
    backoff_s: float = 0.0
    backoff_max_s: float = 0.0
    #: Longest pause of a job that waits for something else, seconds.
    defer_max_s: float = 300.0
