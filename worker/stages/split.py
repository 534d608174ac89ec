"""split: probe the file, then one decode pass for cuts, keyframes and 16 kHz audio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy.orm import Session

from db.engine import reading
from db.ledger.video_runs import keep_split, kept_stages
from db.scenes import scene_count, scenes_between, write_scenes
from db.tables import Run, Scene
from db.videos import set_media
from shared import graph
from shared.errors import BadMedia, Conflict, ObjectMissing
from worker.media.limits import media_limits
from worker.media.results import SplitResult
from worker.media.sandbox import split
from worker.stages.context import Outcome, StageContext

#: Share of the progress bar that decoding takes; the rest is storing.
_DECODING = 0.9
#: Share of the stage's time limit after which a file is refused: past the limit itself it would be tried again.
SHARE_OF_LIMIT = 0.9
#: Length of an asr part, seconds of audio.
PART_S = 120.0


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    kept = _kept_scenes(context)
    source = context.fetch_source()
    try:
        found = split(
            source,
            context.folder,
            limits=media_limits(context.runtime.settings),
            mode=context.runtime.settings.split_mode,
            part_s=PART_S,
            on_progress=lambda fraction: context.report(fraction * _DECODING),
            wall_s=SHARE_OF_LIMIT * graph.SPLIT.time_limit_s,
        )
    except (BadMedia, OSError):
        # A storage that went away while the file was read is to blame, not the video.
        context.check_source()
        raise
    scenes: list[dict[str, Any]] = []
    if kept is not None:
        _check_same(context, kept, found)
    else:
        scenes = _store(context, found)
    audio_key = None
    if found.audio is not None:
        audio_key = f"{context.prefix('tmp')}audio.wav"
        context.storage.put_file("tmp", audio_key, found.audio, "audio/wav")

    def write(session: Session) -> None:
        if kept is not None:
            keep_split(session, claimed.video_id, claimed.run, kept.split)
        else:
            write_scenes(session, claimed.video_id, claimed.user_id, claimed.run, scenes)
        set_media(session, claimed.video_id, found.info.duration_s, asdict(found.info))

    return Outcome(
        result={
            "version": found.version,
            "scenes": len(found.scenes),
            "audio_key": audio_key,
            "windows": [list(window) for window in found.windows],
        },
        write=write,
    )


@dataclass(frozen=True)
class _Kept:
    """Scenes that count on if the split finds them again, because a stage that made something of them is off."""

    stages: list[str]
    split: int
    scenes: list[Scene]


def _kept_scenes(context: StageContext) -> _Kept | None:
    with reading() as session:
        video, run = context.video_and_run(session)
        stages = kept_stages(run)
        published = session.get(Run, (video.video_id, video.published_run or 0)) if stages else None
        if published is None:
            return None
        split = int(published.stage_runs["split"])
        count = scene_count(session, video.video_id, split)
        return _Kept(stages, split, scenes_between(session, video.video_id, split, 0, count))


def _check_same(context: StageContext, kept: _Kept, found: SplitResult) -> None:
    """Make sure that the split has found the same scenes, picture by picture.

    Raises:
        Conflict: it has not: what was made of the others would be lost, or shown with the wrong pictures.
    """
    if _is_same(context, kept.scenes, found):
        return
    skips = context.runtime.policy.skips
    reasons = ", ".join(
        f"{name} ({skips.get(name, 'off when the rerun was asked for')})" for name in kept.stages
    )
    raise Conflict(
        f"the video splits into other scenes now, and what is stored of {reasons} belongs to the published ones,"
        " which are kept: switch it on and rerun, or delete the video and send it again"
    )


def _is_same(context: StageContext, old: Sequence[Scene], found: SplitResult) -> bool:
    def outline(
        idx: int, start_s: float, end_s: float, frames: list[tuple[float, int, int]]
    ) -> tuple[Any, ...]:
        return (idx, round(start_s, 3), round(end_s, 3), [(round(ts_s, 3), *size) for ts_s, *size in frames])

    before = [
        outline(s.idx, s.start_s, s.end_s, [(k["ts_s"], k["width"], k["height"]) for k in s.keyframes])
        for s in old
    ]
    now = [
        outline(s.idx, s.start_s, s.end_s, [(k.ts_s, k.width, k.height) for k in s.keyframes])
        for s in found.scenes
    ]
    if before != now:
        return False
    for place, (scene, again) in enumerate(zip(old, found.scenes, strict=True)):
        for keyframe, picture in zip(scene.keyframes, again.keyframes, strict=True):
            try:
                if context.storage.get_bytes("sidecars", keyframe["key"]) != picture.path.read_bytes():
                    return False
            except ObjectMissing:
                return False
        context.report(_DECODING + (1 - _DECODING) * place / len(old))
    return True


def _store(context: StageContext, found: SplitResult) -> list[dict[str, Any]]:
    """Store the keyframes; what is to be known of each scene."""
    keyframes = context.prefix("keyframes")
    scenes: list[dict[str, Any]] = []
    for place, scene in enumerate(found.scenes):
        stored = []
        for ordinal, keyframe in enumerate(scene.keyframes):
            key = f"{keyframes}{scene.idx:06d}_{ordinal}.jpg"
            context.storage.put_file("sidecars", key, keyframe.path, "image/jpeg")
            stored.append(
                {
                    "ordinal": ordinal,
                    "key": key,
                    "ts_s": keyframe.ts_s,
                    "width": keyframe.width,
                    "height": keyframe.height,
                }
            )
        scenes.append(
            {
                "idx": scene.idx,
                "start_s": scene.start_s,
                "end_s": scene.end_s,
                "kind": scene.kind,
                "keyframes": stored,
            }
        )
        context.report(_DECODING + (1 - _DECODING) * place / len(found.scenes))
    return scenes
