"""split: probe the file, then one decode pass for cuts, keyframes and 16 kHz audio."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy.orm import Session

from db.scenes import write_scenes
from db.videos import set_media
from shared.errors import BadMedia
from worker.media.limits import MediaLimits
from worker.media.split import split
from worker.runtime import Runtime
from worker.stages.context import Outcome, StageContext

#: Share of the progress bar that decoding takes; the rest is storing.
_DECODING = 0.9
#: Length of an asr part, seconds of audio.
PART_S = 120.0


def media_limits(runtime: Runtime) -> MediaLimits:
    settings = runtime.settings
    return MediaLimits(
        max_bytes=settings.max_video_bytes,
        max_duration_s=settings.max_video_duration_s,
        max_side_px=settings.max_video_side_px,
        max_fps=settings.max_video_fps,
        max_streams=settings.max_video_streams,
        max_scenes=settings.max_video_scenes,
    )


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    source = context.fetch_source()
    try:
        found = split(
            source,
            context.folder,
            limits=media_limits(context.runtime),
            mode=context.runtime.settings.split_mode,
            part_s=PART_S,
            on_progress=lambda fraction: context.report(fraction * _DECODING),
        )
    except (BadMedia, OSError):
        # A storage that went away while the file was read is to blame, not the video.
        context.check_source()
        raise
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
    audio_key = None
    if found.audio is not None:
        audio_key = f"{context.prefix('tmp')}audio.wav"
        context.storage.put_file("tmp", audio_key, found.audio, "audio/wav")

    def write(session: Session) -> None:
        write_scenes(session, claimed.video_id, claimed.user_id, claimed.run, scenes)
        set_media(session, claimed.video_id, found.info.duration_s, asdict(found.info))

    return Outcome(
        result={
            "version": found.version,
            "scenes": len(scenes),
            "audio_key": audio_key,
            "windows": [list(window) for window in found.windows],
        },
        write=write,
    )
