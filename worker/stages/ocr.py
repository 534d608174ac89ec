"""ocr: the text in a batch of scenes' keyframes, a line once per scene however many of them show it."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy.orm import Session

from db.engine import reading
from db.scenes import write_screen_texts
from worker.models.ocr import TextReader
from worker.stages import screen_lines
from worker.stages.context import Outcome, StageContext, model_row


def run(context: StageContext) -> Outcome:
    claimed = context.claimed
    with reading() as session:
        scenes = context.scenes(session)
    model = cast(TextReader, context.runtime.model("ocr"))
    total, done = sum(len(scene.keyframes) for scene in scenes), 0
    lines: dict[Any, list[dict[str, Any]]] = {}
    for scene in scenes:
        readings: list[screen_lines.Reading] = []
        for keyframe in scene.keyframes:
            # Between two pictures a lost lease is noticed; one with hundreds of lines takes seconds.
            context.report(done / total)
            (found,) = model.read([context.read_keyframe(keyframe["key"])])
            readings += [
                screen_lines.Reading(keyframe["ordinal"], keyframe["ts_s"], line.text, line.box, line.score)
                for line in found
            ]
            done += 1
        if merged := screen_lines.merge(readings):
            lines[scene.scene_id] = [_row(line) for line in merged]

    def write(session: Session) -> None:
        model_id = model_row(session, model.spec).model_id
        scene_ids = [scene.scene_id for scene in scenes]
        write_screen_texts(session, model_id, claimed.run, claimed.user_id, scene_ids, lines)

    return Outcome(result={"lines": sum(map(len, lines.values())), "keyframes": total}, write=write)


def _row(line: screen_lines.ScreenLine) -> dict[str, Any]:
    return {
        "text": line.best.text,
        "score": line.best.score,
        "sightings": [
            {"ordinal": seen.ordinal, "ts_s": seen.ts_s, "box": list(seen.box)} for seen in line.seen
        ],
    }
