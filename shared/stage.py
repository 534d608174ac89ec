"""One stage of the pipeline, or one kind of job outside it: everything the fleet has to know about it, said once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: How a stage is cut into jobs: one for the whole video, one per window of audio, one per ``batch`` scenes or keyframes.
Parts = Literal["one", "windows", "scenes", "keyframes"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What runs, where, after what, and what becomes of it."""

    name: str
    #: The queue whose workers run it.
    queue: str
    #: Dotted module whose ``run(context)`` does the work; imported when it first runs.
    handler: str
    #: Stages that must have ended before it starts.
    after: tuple[str, ...] = ()
    #: Without it there is nothing to publish: its failure fails the run.
    essential: bool = False
    #: A part that runs longer than this is stopped, seconds.
    time_limit_s: int
    parts: Parts = "one"
    #: How many scenes or keyframes make one part.
    batch: int = 0
    #: Names of settings that switch it off.
    flags: tuple[str, ...] = ()
    #: Makes again what this stage left in temporary storage, in a run that repeats a stage after both but not this one.
    stands_in_for: str = ""
    #: Tables with a row per scene and ``run``: rows of runs that are no longer published are removed.
    tables: tuple[str, ...] = ()
    #: Retrievers of a search that look through what it wrote.
    retrievers: tuple[str, ...] = ()
    #: Whether a job that keeps failing ends as failed; else it is tried for ever.
    may_be_given_up: bool = True
    #: Whether a job goes on when its subject has begun another run.
    outlives_run: bool = False
    #: Whether a job goes on when its subject has been deleted.
    outlives_subject: bool = False
