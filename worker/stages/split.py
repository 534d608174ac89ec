"""split: one decode pass for cuts, keyframes, sprites and 16 kHz audio; of a long file, one for each span (``spans``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy.orm import Session

from db.engine import reading
from db.ledger.video_runs import keep_split, kept_stages
from db.scenes import add_scenes, drop_scenes, scene_count, scenes_between
from db.tables import Run, Scene
from db.videos import set_media
from shared import graph
from shared.errors import Conflict, ObjectMissing
from shared.logs import get_logger
from worker.media.limits import media_limits
from worker.media.results import Keyframe, SceneCut, SpansDiffer, SplitResult, Sprites
from worker.media.sandbox import split
from worker.stages import audio, spans
from worker.stages.batch_size import BatchSize
from worker.stages.context import Outcome, StageContext
from worker.stages.cut_weights import find_weights

log = get_logger(__name__)

#: Share of the progress bar that decoding takes; the rest is storing.
_DECODING = 0.9
#: Maximum number of scenes that one transaction writes.
_MOST_SCENES = 2_000


def run(context: StageContext) -> Outcome:
    match context.claimed.payload.get("does"):
        case "span":
            return spans.split_one(context)
        case "sound":
            return audio.run(context)
        case "join":
            return _join(context)
    return _split(context, context.runtime.settings.split_span_s)


def _split(context: StageContext, span_s: float) -> Outcome:
    """Split the file in one pass; or in spans, if it is longer than ``span_s`` (0: none is) and can be."""
    kept = _kept_scenes(context)
    with context.source() as source:
        found = split(
            source,
            context.folder,
            limits=media_limits(context.runtime.settings),
            mode=context.runtime.settings.split_mode,
            part_s=audio.PART_S,
            span_s=span_s,
            weights=find_weights(context),
            min_confidence=context.runtime.settings.split_min_confidence,
            on_progress=lambda fraction: context.report(fraction * _DECODING),
            wall_s=audio.SHARE_OF_LIMIT * graph.SPLIT.time_limit_s,
        )
    if not isinstance(found, SplitResult):
        return spans.plan(found)
    if kept is not None:
        _check_same(context, kept[1], found, lambda keyframe: keyframe.path.read_bytes())
    scenes = _store(context, found) if kept is None else []
    windows = [list(window) for window in found.windows]
    return _finish(context, kept, found, scenes, context.store_audio(found.audio), windows)


def _join(context: StageContext) -> Outcome:
    """Join what was found of the spans; split the file in one pass if they don't fit together."""
    kept = _kept_scenes(context)
    try:
        joined = spans.join(context)
    except SpansDiffer as error:
        log.warning("spans don't fit together, the video is split in one pass", reason=str(error))
        return _split(context, 0.0)
    found = joined.found
    if kept is not None:
        read = context.storage.get_bytes
        _check_same(context, kept[1], found, lambda keyframe: read("sidecars", joined.key_of(keyframe)))
    scenes = [_known(scene, [joined.key_of(k) for k in scene.keyframes]) for scene in found.scenes]
    return _finish(context, kept, found, scenes, joined.audio_key, joined.windows)


def _finish(
    context: StageContext,
    kept: tuple[int, list[Scene]] | None,
    found: SplitResult,
    scenes: Sequence[Mapping[str, Any]],
    audio_key: str | None,
    windows: Sequence[Sequence[float]],
) -> Outcome:
    """Store the scenes, unless others are kept, and the sprites; the rest is written with the end of the job."""
    claimed = context.claimed
    if kept is None:
        _write_scenes(context, scenes)
    media = {**asdict(found.info), "sprites": _store_sprites(context, found.sprites)}

    def write(session: Session) -> None:
        if kept is not None:
            keep_split(session, claimed.video_id, claimed.run, kept[0])
        set_media(session, claimed.video_id, found.info.duration_s, media)

    result = {
        "version": found.version,
        "scenes": len(found.scenes),
        "audio_key": audio_key,
        "windows": windows,
    }
    return Outcome(result=result, write=write)


def _kept_scenes(context: StageContext) -> tuple[int, list[Scene]] | None:
    """Return the published split and its scenes if they are kept, because a stage that made something of them is off."""
    with reading() as session:
        video, run = context.video_and_run(session)
        published = session.get(Run, (video.video_id, video.published_run or 0)) if kept_stages(run) else None
        if published is None:
            return None
        split = int(published.stage_runs["split"])
        count = scene_count(session, video.video_id, split)
        return split, scenes_between(session, video.video_id, split, 0, count)


def _check_same(
    context: StageContext, kept: Sequence[Scene], found: SplitResult, read: Callable[[Keyframe], bytes]
) -> None:
    """Make sure that the split has found the kept scenes, picture by picture, which ``read`` gives.

    Raises:
        Conflict: it has not: what was made of the others would be lost, or shown with the wrong pictures.
    """
    if _is_same(context, kept, found, read):
        return
    with reading() as session:
        stages = kept_stages(context.video_and_run(session)[1])
    skips = context.runtime.policy.skips
    reasons = ", ".join(f"{name} ({skips.get(name, 'off when the rerun was asked for')})" for name in stages)
    raise Conflict(
        f"the video splits into other scenes now, and what is stored of {reasons} belongs to the published ones,"
        " which are kept: switch it on and rerun, or delete the video and send it again"
    )


def _is_same(
    context: StageContext, old: Sequence[Scene], found: SplitResult, read: Callable[[Keyframe], bytes]
) -> bool:
    before = [_outline(scene, scene.keyframes) for scene in old]
    if before != [_outline(scene, map(vars, scene.keyframes)) for scene in found.scenes]:
        return False
    for place, (scene, again) in enumerate(zip(old, found.scenes, strict=True)):
        for keyframe, picture in zip(scene.keyframes, again.keyframes, strict=True):
            try:
                if context.storage.get_bytes("sidecars", keyframe["key"]) != read(picture):
                    return False
            except ObjectMissing:
                return False
        context.report(_DECODING + (1 - _DECODING) * place / len(old))
    return True


def _write_scenes(context: StageContext, scenes: Sequence[Mapping[str, Any]]) -> None:
    """Write the scenes in short transactions, as the job's row is locked meanwhile; they are not live, so nothing shows them.

    An attempt that was lost may have left some: each batch replaces those in its place, the last step removes the rest.

    Raises:
        LeaseLost: as ``StageContext.write``.
    """
    claimed, size, first = context.claimed, BatchSize(_MOST_SCENES), 0
    while first < len(scenes):
        with size.timed() as count:
            some = scenes[first : first + count]
            context.write(
                lambda session, _: add_scenes(
                    session,
                    claimed.video_id,
                    claimed.user_id,
                    claimed.run,
                    some,  # noqa: B023
                )
            )
        first += count
    context.write(lambda session, _: drop_scenes(session, claimed.video_id, claimed.run, len(scenes)))


def _outline(scene: Scene | SceneCut, keyframes: Iterable[Mapping[str, Any]]) -> tuple[Any, ...]:
    """What must be equal of two scenes, but their pictures."""
    frames = [(round(k["ts_s"], 3), k["width"], k["height"]) for k in keyframes]
    return scene.idx, round(scene.start_s, 3), round(scene.end_s, 3), frames


def _store_sprites(context: StageContext, sprites: Sprites) -> dict[str, Any]:
    """Store the sprites beside the keyframes; what the probe says of them."""
    prefix = context.prefix("keyframes")
    for path, content_type in (
        (sprites.index, "text/vtt"),
        *((sheet, "image/jpeg") for sheet in sprites.sheets),
    ):
        context.storage.put_file("sidecars", f"{prefix}{path.name}", path, content_type)
    return {"prefix": prefix, "index": sprites.index.name, "sheets": [sheet.name for sheet in sprites.sheets]}


def _store(context: StageContext, found: SplitResult) -> list[dict[str, Any]]:
    """Store the keyframes; what is to be known of each scene."""
    prefix = context.prefix("keyframes")
    scenes: list[dict[str, Any]] = []
    for place, scene in enumerate(found.scenes):
        keys = [f"{prefix}{scene.idx:06d}_{ordinal}.jpg" for ordinal in range(len(scene.keyframes))]
        for key, keyframe in zip(keys, scene.keyframes, strict=True):
            context.storage.put_file("sidecars", key, keyframe.path, "image/jpeg")
        scenes.append(_known(scene, keys))
        context.report(_DECODING + (1 - _DECODING) * place / len(found.scenes))
    return scenes


def _known(scene: SceneCut, keys: Sequence[str]) -> dict[str, Any]:
    """What is to be known of a scene whose keyframes are stored under these keys."""
    keyframes = [
        {
            "ts_s": keyframe.ts_s,
            "width": keyframe.width,
            "height": keyframe.height,
            "ordinal": ordinal,
            "key": key,
        }
        for ordinal, (key, keyframe) in enumerate(zip(keys, scene.keyframes, strict=True))
    ]
    return {**vars(scene), "keyframes": keyframes}
