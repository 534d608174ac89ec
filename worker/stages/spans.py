"""The parts of a split in spans: a plan, then the spans and the sound side by side, then the join.

The first part of ``split`` ends with the plan (``db.ledger.video_runs`` makes the others of it). Each span leaves its pictures
where keyframes are, and what it found with temporary objects; the sweep after the run removes what no scene refers to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from db.engine import reading
from db.ledger import video_runs
from shared import graph
from shared.errors import ObjectMissing
from worker.media import sandbox
from worker.media.limits import media_limits
from worker.media.results import Keyframe, Span, SpansDiffer, SplitResult
from worker.stages.audio import SHARE_OF_LIMIT
from worker.stages.context import Outcome, StageContext
from worker.stages.cut_weights import find_weights

#: Shares of the stage's progress.
_SOUND, _JOIN = 0.04, 0.02
#: Share of a span's progress that decoding takes; the rest is storing.
_DECODING = 0.95
#: What a span leaves with temporary objects, and how much it may be.
_FOUND, _THUMBS = "found.json", "thumbs.yuv"
_MOST_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Joined:
    """A split made of spans, whose pictures are stored already."""

    found: SplitResult
    #: Where the pictures of each span are.
    prefixes: Sequence[str]
    audio_key: str | None
    windows: Sequence[Sequence[float]]

    def key_of(self, keyframe: Keyframe) -> str:
        number, name = keyframe.path.parts
        return f"{self.prefixes[int(number)]}{name}"


def plan(spans: Sequence[Span]) -> Outcome:
    """Name the parts that follow: those of the first round run side by side, the second begins when all are done."""
    share = (1 - _SOUND - _JOIN) / len(spans)
    sound = {"does": "sound", "share": _SOUND}
    parts = [{"does": "span", "share": share, "span": asdict(span)} for span in spans]
    return Outcome(result={"rounds": [[*parts, sound], [{"does": "join", "share": _JOIN}]]})


def split_one(context: StageContext) -> Outcome:
    """Decode a span; store its pictures and what it found. One that can't be decoded alone says so to the join."""
    settings = context.runtime.settings
    try:
        with context.source() as source:
            files = sandbox.split_span(
                source,
                context.folder,
                span=Span(**context.claimed.payload["span"]),
                limits=media_limits(settings),
                mode=settings.split_mode,
                weights=find_weights(context),
                min_confidence=settings.split_min_confidence,
                on_progress=lambda fraction: context.report(fraction * _DECODING),
                wall_s=SHARE_OF_LIMIT * graph.SPLIT.time_limit_s,
            )
    except SpansDiffer as error:
        return Outcome(result={"differ": str(error)})
    pictures, found = context.prefix("keyframes"), context.prefix("tmp")
    for place, path in enumerate(files.pictures):
        context.storage.put_file("sidecars", f"{pictures}{path.name}", path, "image/jpeg")
        context.report(_DECODING + (1 - _DECODING) * place / len(files.pictures))
    context.storage.put_file("tmp", f"{found}{_FOUND}", files.found, "application/json")
    context.storage.put_file("tmp", f"{found}{_THUMBS}", files.thumbs, "application/octet-stream")
    return Outcome(result={"pictures": pictures, "found": found})


def join(context: StageContext) -> Joined:
    """Join what the other parts have left.

    Raises:
        SpansDiffer: the file has to be split in one pass.
        LimitExceeded, BadMedia: the whole file exceeds a limit, or is damaged.
        StorageUnavailable.
    """
    with reading() as session:
        parts = video_runs.part_results(session, *context.video_and_run(session), graph.SPLIT.name)
    spans: list[dict[str, Any]] = [result for payload, result in parts if payload.get("does") == "span"]
    (sound,) = (result for payload, result in parts if payload.get("does") == "sound")
    for number, result in enumerate(spans):
        if "found" not in result:
            raise SpansDiffer(result.get("differ", "a node of another version has done one"))
        for name, stored in zip(sandbox.SPAN_NAMES, (_FOUND, _THUMBS), strict=True):
            try:
                context.storage.get_file(
                    "tmp",
                    f"{result['found']}{stored}",
                    context.folder / name.format(number),
                    max_bytes=_MOST_BYTES,
                    on_progress=lambda *_: context.report(0.0),
                )
            except ObjectMissing as error:
                raise SpansDiffer(f"what one of them found is gone: {error}") from error
    windows = sound["windows"]
    found = sandbox.join_spans(
        context.folder,
        count=len(spans),
        limits=media_limits(context.runtime.settings),
        sound_s=windows[-1][1] if windows else 0.0,
    )
    return Joined(
        found=found,
        prefixes=[result["pictures"] for result in spans],
        audio_key=sound["audio_key"],
        windows=windows,
    )
