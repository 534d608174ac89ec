"""split: one decode pass for cuts, keyframes, sprites and 16 kHz audio."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from db.engine import reading
from db.ledger.video_runs import keep_split, kept_stages
from db.scenes import add_scenes, drop_scenes, scene_count, scenes_between
from db.tables import Run, Scene
from db.videos import set_media
from shared import graph
from shared.errors import BadMedia, Conflict, ModelUnavailable, ObjectMissing
from shared.logs import get_logger
from worker.media.limits import media_limits
from worker.media.results import SceneCut, SplitResult, Sprites
from worker.media.sandbox import split
from worker.models.weights.verify import locate, sha256_of, verify
from worker.stages.batch_size import BatchSize
from worker.stages.context import Outcome, StageContext

log = get_logger(__name__)

#: Share of the progress bar that decoding takes; the rest is storing.
_DECODING = 0.9
#: Share of the stage's time limit after which a file is refused: past the limit itself it would be tried again.
SHARE_OF_LIMIT = 0.9
#: Maximum number of scenes that one transaction writes.
_MOST_SCENES = 2_000
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
            weights=_weights(context),
            min_confidence=context.runtime.settings.split_min_confidence,
            on_progress=lambda fraction: context.report(fraction * _DECODING),
            wall_s=SHARE_OF_LIMIT * graph.SPLIT.time_limit_s,
        )
    except (BadMedia, OSError):
        # A storage that went away while the file was read is to blame, not the video.
        context.check_source()
        raise
    if kept is not None:
        _check_same(context, kept[1], found)
    if kept is None:
        _write_scenes(context, _store(context, found))
    audio_key = context.store_audio(found.audio)
    media = {**asdict(found.info), "sprites": _store_sprites(context, found.sprites)}

    def write(session: Session) -> None:
        if kept is not None:
            keep_split(session, claimed.video_id, claimed.run, kept[0])
        set_media(session, claimed.video_id, found.info.duration_s, media)

    windows = [list(window) for window in found.windows]
    result = {
        "version": found.version,
        "scenes": len(found.scenes),
        "audio_key": audio_key,
        "windows": windows,
    }
    return Outcome(result=result, write=write)


def _weights(context: StageContext) -> Path | None:
    """The file of the network that judges doubtful cuts; None, and a warning, where it is not here."""
    settings = context.runtime.settings
    spec = context.runtime.catalog.active(settings).get("cuts")
    if spec is None or settings.split_mode == "fast":
        return None
    try:
        (file,) = spec.sha256
        path = locate(spec, file, models_dir=settings.models_dir)
        if _sha256(path, path.stat().st_mtime_ns) != spec.sha256[file]:
            verify(spec, models_dir=settings.models_dir)
    except (ModelUnavailable, OSError) as error:
        log.warning("cuts are judged by cheap features alone", error=str(error))
        return None
    return path


@lru_cache(maxsize=2)
def _sha256(path: Path, changed_ns: int) -> str:
    """The checksum of a file, computed once per state of it."""
    return sha256_of(path)


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


def _check_same(context: StageContext, kept: Sequence[Scene], found: SplitResult) -> None:
    """Make sure that the split has found the kept scenes, picture by picture.

    Raises:
        Conflict: it has not: what was made of the others would be lost, or shown with the wrong pictures.
    """
    if _is_same(context, kept, found):
        return
    with reading() as session:
        stages = kept_stages(context.video_and_run(session)[1])
    skips = context.runtime.policy.skips
    reasons = ", ".join(f"{name} ({skips.get(name, 'off when the rerun was asked for')})" for name in stages)
    raise Conflict(
        f"the video splits into other scenes now, and what is stored of {reasons} belongs to the published ones,"
        " which are kept: switch it on and rerun, or delete the video and send it again"
    )


def _is_same(context: StageContext, old: Sequence[Scene], found: SplitResult) -> bool:
    before = [_outline(scene, scene.keyframes) for scene in old]
    if before != [_outline(scene, map(vars, scene.keyframes)) for scene in found.scenes]:
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
        keyframes = []
        for ordinal, keyframe in enumerate(scene.keyframes):
            known = {**vars(keyframe), "ordinal": ordinal, "key": f"{prefix}{scene.idx:06d}_{ordinal}.jpg"}
            context.storage.put_file("sidecars", known["key"], known.pop("path"), "image/jpeg")
            keyframes.append(known)
        scenes.append({**vars(scene), "keyframes": keyframes})
        context.report(_DECODING + (1 - _DECODING) * place / len(found.scenes))
    return scenes
