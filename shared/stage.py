"""The description of a stage of the pipeline, or of a kind of job outside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: How a stage is cut into jobs: one for the video, one per window of audio, one per ``batch`` scenes or keyframes.
Parts = Literal["one", "windows", "scenes", "keyframes"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage."""

    name: str
    #: The queue whose workers run it.
    queue: str
    #: Dotted module whose ``run(context)`` does the work; imported when it first runs.
    handler: str
    #: Stages that must have ended before it starts.
    after: tuple[str, ...] = ()
    #: Its failure fails the run: without it there is nothing to publish.
    essential: bool = False
    #: A part that runs longer than this is stopped, seconds.
    time_limit_s: int
    parts: Parts = "one"
    #: How many scenes or keyframes make one part.
    batch: int = 0
    #: How a part is halved after it has killed its process each time: ``module:function`` from a part's payload to two
    #: payloads, or to None where it is one item. Empty: as it is cut (db/ledger/bisection.py).
    halve: str = ""
    #: Settings that switch it off.
    flags: tuple[str, ...] = ()
    #: The stage whose temporary objects it creates again, in a run that repeats a later stage but not that one.
    stands_in_for: str = ""
    #: It begins when the run has ended, and nothing waits for it: its failure does not change the video's state.
    late: bool = False
    #: Tables with a row per scene and ``run``; rows of unpublished runs are removed.
    tables: tuple[str, ...] = ()
    #: Retrievers of a search that use its rows.
    retrievers: tuple[str, ...] = ()
    #: Whether a job that keeps failing ends as failed; otherwise it is tried for ever.
    may_be_given_up: bool = True
    #: Whether a job continues after its subject has begun another run.
    outlives_run: bool = False
    #: Whether a job continues after its subject was deleted.
    outlives_subject: bool = False
