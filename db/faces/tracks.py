"""Face tracks of videos: computed from faces, assigned to people by vote or by decisions, shown as people of scenes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any
from uuid import UUID, uuid5

import numpy as np
from pgvector import HalfVector
from sqlalchemy import delete, func, insert as bulk, or_, select, update
from sqlalchemy.orm import Session

from db.faces.vote import FaceRule, Float64, Verdict, centroid, decide
from db.tables import Face, FaceDecision, FaceTrack, Model, Person, PersonProfile, Scene, ScenePerson, Video

#: Scenes whose faces are held in memory at once.
_BATCH = 200
#: A decision applies to a face that overlaps its box by at least this much, within this many seconds.
_LEAST_OVERLAP = 0.3
_NEAR_S = 2.0


@dataclass(frozen=True)
class KnownPeople:
    """The people a face may be, for one model."""

    ids: tuple[str, ...]
    #: [P, dim]
    vectors: Float64

    def without(self, barred: Iterable[str]) -> KnownPeople:
        out = set(barred)
        keep = [place for place, name in enumerate(self.ids) if name not in out]
        if len(keep) == len(self.ids):
            return self
        return KnownPeople(tuple(self.ids[place] for place in keep), self.vectors[keep])


@dataclass(frozen=True)
class HumanDecision:
    """The decisions of humans about one track."""

    person_id: str | None
    barred: frozenset[str]


NOTHING = HumanDecision(None, frozenset())


def as_array(vectors: Sequence[Any]) -> Float64:
    """Convert halfvec values of any driver version to float64 [N, dim]."""
    plain = [vector.to_numpy() if isinstance(vector, HalfVector) else vector for vector in vectors]
    return np.array(plain, np.float64)


def write_tracks(
    session: Session, video_id: str, user_id: str, run: int, scene_ids: Sequence[UUID], metric: str
) -> None:
    """Replace the tracks of these scenes with those of the faces that this run found."""
    session.execute(delete(FaceTrack).where(FaceTrack.run == run, FaceTrack.scene_id.in_(scene_ids)))
    faces = _faces(session, [(scene, run) for scene in scene_ids])
    rows = []
    for (scene, _, number), group in faces.items():
        best = max(group, key=lambda face: (face.quality or face.det_score, -face.ordinal))
        middle = centroid(as_array([face.vec for face in group]), weights_of(group), metric)
        rows.append(
            {
                "track_id": uuid5(scene, f"track/{run}/{number}"),
                "scene_id": scene,
                "video_id": video_id,
                "user_id": user_id,
                "run": run,
                "track": number,
                "model_id": best.model_id,
                "ordinal": best.ordinal,
                "ts_s": best.ts_s,
                "box": best.box,
                "vec": HalfVector(middle),
                "faces": len(group),
            }
        )
    if rows:
        session.execute(bulk(FaceTrack), rows)


def weights_of(faces: Sequence[Face]) -> Float64:
    """The weight of each face: its quality, if the model measures it."""
    return np.array([1.0 if face.quality is None else max(face.quality, 1e-6) for face in faces], np.float64)


def _faces(session: Session, wanted: Sequence[tuple[UUID, int]]) -> dict[tuple[UUID, int, int], list[Face]]:
    """The faces of the scenes in these runs, by (scene, run, track)."""
    runs = {run for _, run in wanted}
    rows = session.scalars(
        select(Face)
        .where(Face.scene_id.in_({scene for scene, _ in wanted}), Face.run.in_(runs), Face.track.is_not(None))
        .order_by(Face.scene_id, Face.run, Face.track, Face.ordinal)
    ).all()
    return {
        key: list(group) for key, group in groupby(rows, key=lambda f: (f.scene_id, f.run, int(f.track or 0)))
    }


def load_known(session: Session, user_id: str, model_id: int, kind: str) -> KnownPeople:
    """The user's people of one kind that have a profile by this model."""
    rows = session.execute(
        select(PersonProfile.person_id, PersonProfile.vec)
        .join(Person, Person.person_id == PersonProfile.person_id)
        .where(
            PersonProfile.user_id == user_id,
            PersonProfile.model_id == model_id,
            Person.user_id == user_id,
            Person.kind == kind,
            Person.deleted_at.is_(None),
            Person.merged_into.is_(None),
        )
        .order_by(PersonProfile.person_id)
    ).all()
    return KnownPeople(tuple(row.person_id for row in rows), as_array([row.vec for row in rows]))


def match_tracks(
    session: Session, video: Video, rule: FaceRule, scene_ids: Sequence[UUID] | None = None
) -> set[str]:
    """Assign the tracks of a video, whose row is locked, to people; decisions of humans are kept.

    ``scene_ids``: only in these scenes. Returns the ids of all people whose tracks have changed.
    """
    scenes = select(FaceTrack.scene_id).where(FaceTrack.video_id == video.video_id).distinct()
    if scene_ids is not None:
        scenes = scenes.where(FaceTrack.scene_id.in_(scene_ids))
    wanted = list(session.scalars(scenes.order_by(FaceTrack.scene_id)))
    changed: set[str] = set()
    for first in range(0, len(wanted), _BATCH):
        batch = wanted[first : first + _BATCH]
        changed |= _match_scenes(session, video, batch, rule)
        refresh_scene_people(session, batch)
    return changed


def _match_scenes(session: Session, video: Video, scene_ids: Sequence[UUID], rule: FaceRule) -> set[str]:
    tracks = session.scalars(
        select(FaceTrack)
        .where(FaceTrack.scene_id.in_(scene_ids), FaceTrack.user_id == video.user_id)
        .order_by(FaceTrack.scene_id, FaceTrack.run, FaceTrack.track)
        .execution_options(populate_existing=True)
    ).all()
    faces = _faces(session, [(track.scene_id, track.run) for track in tracks])
    decided = _decisions_by_track(session, video, scene_ids, tracks, faces)
    metrics: dict[int, str] = {
        row.model_id: row.metric or "cosine"
        for row in session.scalars(select(Model).where(Model.model_id.in_({t.model_id for t in tracks})))
    }
    moving = set(
        session.scalars(
            select(Person.person_id).where(
                Person.user_id == video.user_id,
                Person.moving_event.is_not(None),
                Person.merged_into.is_not(None),
            )
        )
    )
    known = {
        (model, kind): load_known(session, video.user_id, model, kind)
        for model in metrics
        for kind in ("named", "unknown")
    }
    changes: list[dict[str, Any]] = []
    changed: set[str] = set()
    for _, group in groupby(tracks, key=lambda track: (track.scene_id, track.run)):
        own = list(group)
        verdicts = [
            # Being moved to another person (db/people/moves.py): matching must not change it.
            (Verdict(track.person_id, track.similarity, track.votes or 0), track.decided_by)
            if track.person_id in moving and decided.get(track.track_id, NOTHING).person_id is None
            else _judge(
                faces.get((track.scene_id, track.run, track.track), []),
                decided.get(track.track_id, NOTHING),
                known[track.model_id, "named"],
                known[track.model_id, "unknown"],
                metrics[track.model_id],
                rule,
            )
            for track in own
        ]
        _one_place_each(own, verdicts, faces)
        for track, (verdict, by) in zip(own, verdicts, strict=True):
            before = (track.person_id, track.similarity, track.votes, track.decided_by)
            after = (verdict.person_id, verdict.similarity, verdict.votes, by)
            if before != after:
                changes.append(
                    dict(zip(("person_id", "similarity", "votes", "decided_by"), after, strict=True))
                    | {"track_id": track.track_id}
                )
                changed.update(name for name in (track.person_id, verdict.person_id) if name)
    if changes:
        session.execute(update(FaceTrack), changes)
    return changed


def _judge(
    faces: Sequence[Face],
    decision: HumanDecision,
    named: KnownPeople,
    unknown: KnownPeople,
    metric: str,
    rule: FaceRule,
) -> tuple[Verdict, str | None]:
    """A track's verdict and who decided; None for a stranger."""
    if decision.person_id is not None:
        return Verdict(decision.person_id, 1.0, max(1, len(faces))), "human"
    if not faces:
        return Verdict(None, None, 0), None
    vectors, weights = as_array([face.vec for face in faces]), weights_of(faces)
    left = named.without(decision.barred)
    verdict = decide(vectors, weights, left.vectors, left.ids, metric, rule)
    if verdict.person_id is None and not verdict.undecided:
        left = unknown.without(decision.barred)
        # Two similar unknown people may be one person: take the nearer one.
        loose = FaceRule(cosine=rule.cosine, distance=rule.distance, margin=0.0)
        verdict = decide(vectors, weights, left.vectors, left.ids, metric, loose)
        if verdict.person_id is None:
            return Verdict(None, None, 0), None
    return verdict, "machine"


def _one_place_each(
    tracks: Sequence[FaceTrack],
    verdicts: list[tuple[Verdict, str | None]],
    faces: Mapping[tuple[UUID, int, int], list[Face]],
) -> None:
    """Resolve two tracks of one person in the same keyframe: the more similar one keeps the person."""
    order = sorted(
        range(len(tracks)),
        key=lambda place: (verdicts[place][1] != "human", -(verdicts[place][0].similarity or 0)),
    )
    taken: dict[str, set[int]] = {}
    for place in order:
        verdict, by = verdicts[place]
        if verdict.person_id is None:
            continue
        track = tracks[place]
        seen = {face.ordinal for face in faces.get((track.scene_id, track.run, track.track), [])}
        others = taken.setdefault(verdict.person_id, set())
        if by == "machine" and seen & others:
            verdicts[place] = (Verdict(None, verdict.similarity, 0, undecided=True), "machine")
        else:
            others |= seen


def _decisions_by_track(
    session: Session,
    video: Video,
    scene_ids: Sequence[UUID],
    tracks: Sequence[FaceTrack],
    faces: Mapping[tuple[UUID, int, int], list[Face]],
) -> dict[UUID, HumanDecision]:
    """The decisions about these tracks, found by time and place, whichever run or split created them."""
    decisions = session.scalars(
        select(FaceDecision)
        .join(Person, Person.person_id == FaceDecision.person_id)
        .where(
            FaceDecision.video_id == video.video_id,
            FaceDecision.user_id == video.user_id,
            # Decisions about a person that is being erased are deleted in batches.
            Person.deleted_at.is_(None),
        )
        .order_by(FaceDecision.decision_id)
    ).all()
    if not decisions:
        return {}
    merged = {
        row.person_id: row.merged_into
        for row in session.execute(
            select(Person.person_id, Person.merged_into).where(
                Person.user_id == video.user_id, Person.merged_into.is_not(None)
            )
        )
    }
    spans = {
        row.scene_id: (row.start_s, row.end_s)
        for row in session.execute(
            select(Scene.scene_id, Scene.start_s, Scene.end_s).where(Scene.scene_id.in_(scene_ids))
        )
    }
    decided: dict[UUID, HumanDecision] = {}
    by_run: dict[int, list[FaceTrack]] = {}
    for track in tracks:
        by_run.setdefault(track.run, []).append(track)
    for decision in decisions:
        who = decision.person_id
        while merged.get(who):
            who = str(merged[who])
        for candidates in by_run.values():
            near = [
                track
                for track in candidates
                if spans[track.scene_id][0] - 0.001 <= decision.ts_s <= spans[track.scene_id][1] + 0.001
            ]
            found = _nearest(decision, near, faces)
            if found is None:
                continue
            earlier = decided.get(found.track_id, HumanDecision(None, frozenset()))
            if decision.is_person:
                decided[found.track_id] = HumanDecision(who, earlier.barred - {who})
            else:
                decided[found.track_id] = HumanDecision(
                    None if earlier.person_id == who else earlier.person_id, earlier.barred | {who}
                )
    return decided


def _nearest(
    decision: FaceDecision, tracks: Sequence[FaceTrack], faces: Mapping[tuple[UUID, int, int], list[Face]]
) -> FaceTrack | None:
    """The track with a face at the place and about the time of the decision."""
    best: tuple[float, FaceTrack] | None = None
    for track in tracks:
        for face in faces.get((track.scene_id, track.run, track.track), []):
            apart_s = abs(face.ts_s - decision.ts_s)
            if apart_s > _NEAR_S:
                continue
            shared = overlap(face.box, decision.box)
            if shared < _LEAST_OVERLAP:
                continue
            score = shared - apart_s / 100.0
            if best is None or score > best[0]:
                best = (score, track)
    return best[1] if best else None


def overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes [x, y, width, height], 0..1."""
    wide = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    high = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(0.0, wide) * max(0.0, high)
    union = one[2] * one[3] + other[2] * other[3] - shared
    return shared / union if union > 0 else 0.0


@dataclass(frozen=True)
class PersonInScene:
    """A person in a scene; two are equal if a sidecar says the same of both."""

    #: The primary key; empty if read from a sidecar.
    person_id: str = field(compare=False)
    #: The external id.
    external_id: str
    name: str
    confidence: float
    frame_count: int


def people_in(session: Session, scenes: Mapping[UUID, int]) -> dict[UUID, list[PersonInScene]]:
    """Who is in some scenes by the tracks of a run: scene -> run in, scene -> people by id out."""
    rows = session.execute(
        select(
            FaceTrack.scene_id,
            FaceTrack.run,
            FaceTrack.person_id,
            Person.external_id,
            Person.name,
            func.max(FaceTrack.similarity).label("confidence"),
            func.sum(FaceTrack.votes).label("frame_count"),
        )
        .join(Person, Person.person_id == FaceTrack.person_id)
        .where(
            FaceTrack.scene_id.in_(scenes.keys()),
            FaceTrack.user_id == Person.user_id,
            Person.deleted_at.is_(None),
        )
        .group_by(FaceTrack.scene_id, FaceTrack.run, FaceTrack.person_id, Person.external_id, Person.name)
        .order_by(FaceTrack.scene_id, FaceTrack.person_id)
    )
    found: dict[UUID, list[PersonInScene]] = {}
    for row in rows:
        if scenes[row.scene_id] == row.run:
            found.setdefault(row.scene_id, []).append(
                PersonInScene(
                    str(row.person_id),
                    row.external_id,
                    row.name,
                    float(row.confidence),
                    int(row.frame_count),
                )
            )
    return found


def refresh_scene_people(
    session: Session, scene_ids: Sequence[UUID], written: Mapping[UUID, Sequence[PersonInScene]] | None = None
) -> None:
    """Update ``scene_people`` of published scenes from their tracks, and mark scenes whose sidecar differs.

    ``written``: the people in the sidecar just written; None: those in ``scene_people`` so far.
    """
    rows = session.execute(
        select(Scene.scene_id, Scene.face_run, Scene.user_id).where(
            Scene.scene_id.in_(scene_ids), Scene.live, Scene.face_run.is_not(None)
        )
    ).all()
    owner = {row.scene_id: row.user_id for row in rows}
    now = people_in(session, {row.scene_id: int(row.face_run) for row in rows})
    before: dict[UUID, list[tuple[str, float, int]]] = {}
    for old in session.execute(
        select(ScenePerson.scene_id, ScenePerson.person_id, ScenePerson.confidence, ScenePerson.frame_count)
        .where(ScenePerson.scene_id.in_(owner))
        .order_by(ScenePerson.scene_id, ScenePerson.person_id)
    ):
        before.setdefault(old.scene_id, []).append((old.person_id, old.confidence, old.frame_count))
    changed = [scene for scene in owner if _facts(now.get(scene, ())) != before.get(scene, [])]
    session.execute(delete(ScenePerson).where(ScenePerson.scene_id.in_(changed)))
    values = [
        {
            "scene_id": scene,
            "person_id": seen.person_id,
            "user_id": owner[scene],
            "confidence": seen.confidence,
            "frame_count": seen.frame_count,
        }
        for scene in changed
        for seen in now.get(scene, ())
    ]
    if values:
        session.execute(bulk(ScenePerson), values)
    if written is None:
        session.execute(update(Scene).where(Scene.scene_id.in_(changed)).values(people_changed=True))
        return
    stale = {scene for scene in owner if list(now.get(scene, ())) != list(written.get(scene, ()))}
    session.execute(
        update(Scene).where(Scene.scene_id.in_(owner)).values(people_changed=Scene.scene_id.in_(stale))
    )


def _facts(people: Sequence[PersonInScene]) -> list[tuple[str, float, int]]:
    return [(seen.person_id, seen.confidence, seen.frame_count) for seen in people]


def mark_scenes_of(session: Session, person_id: str) -> None:
    """Mark the scenes of a renamed person: their sidecars contain the old name.

    Waits for every transaction that publishes one of the person's videos at this moment: its scenes become visible
    with its commit, so that they could not be marked before. One that begins later reads the new name.
    """
    session.execute(
        select(Video.video_id)
        .where(Video.video_id.in_(select(FaceTrack.video_id).where(FaceTrack.person_id == person_id)))
        .order_by(Video.video_id)
        .with_for_update(key_share=True)
    )
    session.execute(
        update(Scene)
        .where(
            Scene.live,
            Scene.scene_id.in_(select(ScenePerson.scene_id).where(ScenePerson.person_id == person_id)),
        )
        .values(people_changed=True)
    )


def videos_with_faces(session: Session, user_id: str) -> list[str]:
    """The user's videos that have face tracks, or may get some: those in progress."""
    return list(
        session.scalars(
            select(Video.video_id)
            .where(
                Video.user_id == user_id,
                Video.deleted_at.is_(None),
                or_(
                    Video.state.in_(("uploaded", "processing")),
                    select(FaceTrack.track_id).where(FaceTrack.video_id == Video.video_id).exists(),
                ),
            )
            .order_by(Video.created_at.desc(), Video.video_id)
        )
    )
