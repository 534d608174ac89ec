"""Publishes one scene, outside a run."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from sqlalchemy import update
from sqlalchemy.orm import Session

from db.publication import SceneTexts, prepare_scenes
from db.scenes import Words
from db.tables import Scene


def publish_scene(
    session: Session,
    scene: UUID,
    words: Words,
    sidecar_key: str,
    stage_runs: Mapping[str, int],
    screen_text: str = "",
) -> None:
    texts = SceneTexts(scene_id=scene, words=words, sidecar_key=sidecar_key, screen_text=screen_text)
    prepare_scenes(session, [texts], stage_runs, shown=False)
    session.execute(update(Scene).where(Scene.scene_id == scene).values(live=True))
