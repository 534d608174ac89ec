"""Face tracks of videos: computed from faces, assigned to people by vote or by decisions, shown as people of scenes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any
from uuid import UUID, uuid5

import numpy as np
from pgvector import HalfVector
from sqlalchemy import any_, delete, func, insert, select, text, update
from sqlalchemy.orm import Session

from db.expressions import array, uuids
from db.faces.vote import NO_MATCH, FaceRule, Float64, Verdict, centroid, decide
from db.tables import Face, FaceDecision, FaceTrack, Model, Person, PersonProfile, Scene, ScenePerson, Video
from db.webhooks import deliveries

#: Scenes whose faces are held in memory at once.
_BATCH = 200
#: Scenes whose people are compared by one statement.
_COMPARED_AT_ONCE = 2_000
#: A decision applies to a face that overlaps its box by at least this much, within this many seconds.
_LEAST_OVERLAP = 0.3
_NEAR_S = 2.0


@dataclass(frozen=True)
class KnownPeople:
    """The people a face may be, for one model."""

    ids: tuple[str, ...]
    #: [P, dim]
    vectors: Float64

    def without(self, barred: Collection[str]) -> KnownPeople:
        if not barred:
            return self
        keep = [place for place, name in enumerate(self.ids) if name not in barred]
        return KnownPeople(tuple(self.ids[place] for place in keep), self.vectors[keep])


@dataclass(frozen=True)
class HumanDecision:
    """The decisions of humans about one track."""

    person_id: str | None = None
    barred: frozenset[str] = frozenset()


#: The faces of each (scene, run, track).
FacesByTrack = defaultdict[tuple[UUID, int, int], list[Face]]


def as_array(vectors: Sequence[Any]) -> Float64:
    """Convert halfvec values of any driver version to float64 [N, dim]."""
    plain = [vector.to_numpy() if isinstance(vector, HalfVector) else vector for vector in vectors]
    return np.array(plain, np.float64)


def track_id(scene_id: UUID, run: int, number: int) -> UUID:
    """The id of a track: the same when a run is repeated."""
    return uuid5(scene_id, f"track/{run}/{number}")


def write_tracks(
    session: Session, video_id: str, user_id: str, run: int, scene_ids: Sequence[UUID], metric: str
) -> None:
    """Replace the tracks of these scenes with those of the faces that this run found."""
    session.execute(delete(FaceTrack).where(FaceTrack.run == run, FaceTrack.scene_id.in_(scene_ids)))
    rows = []
    for (scene, _, number), group in _faces(session, scene_ids, {run}).items():
        best = max(group, key=lambda face: (face.quality or face.det_score, -face.ordinal))
        middle = centroid(as_array([face.vec for face in group]), weights_of(group), metric)
        rows.append(
            {
                "track_id": track_id(scene, run, number),
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
        session.execute(insert(FaceTrack), rows)


def weights_of(found: Sequence[Any]) -> Float64:
    """The weight of each face or photo: its quality, if the model measures it."""
    return weights([one.quality for one in found])


def weights(qualities: Sequence[float | None]) -> Float64:
    """The weight of each quality; None: it is not measured."""
    return np.array([1.0 if quality is None else max(quality, 1e-6) for quality in qualities], np.float64)


def face_metrics(session: Session) -> dict[int, str]:
    """The metric of each face model, by id."""
    models = session.scalars(select(Model).where(Model.family == "face"))
    return {model.model_id: model.metric or "cosine" for model in models}


def _faces(session: Session, scene_ids: Collection[UUID], runs: Collection[int]) -> FacesByTrack:
    found: FacesByTrack = defaultdict(list)
    for face in session.scalars(
        select(Face)
        .where(Face.scene_id.in_(scene_ids), Face.run.in_(runs), Face.track.is_not(None))
        .order_by(Face.scene_id, Face.run, Face.track, Face.ordinal)
    ):
        found[face.scene_id, face.run, int(face.track or 0)].append(face)
    return found


def _load_known(session: Session, user_id: str, model_id: int, kind: str) -> KnownPeople:
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
    faces = _faces(session, scene_ids, {track.run for track in tracks})
    decided = _decisions_by_track(session, video, scene_ids, tracks, faces)
    metrics = face_metrics(session)
    sources = select(Person.person_id).where(
        Person.user_id == video.user_id, Person.moving_event.is_not(None), Person.merged_into.is_not(None)
    )
    moving = set(session.scalars(sources))
    known = {
        (model, kind): _load_known(session, video.user_id, model, kind)
        for model in {track.model_id for track in tracks}
        for kind in ("named", "unknown")
    }
    changes: list[dict[str, Any]] = []
    changed: set[str] = set()
    for _, group in groupby(tracks, key=lambda track: (track.scene_id, track.run)):
        own = list(group)
        verdicts = [
            # Being moved to another person (db/people/moves.py): matching must not change it.
            (Verdict(track.person_id, track.similarity, track.votes or 0), track.decided_by)
            if track.person_id in moving and decided[track.track_id].person_id is None
            else _judge(
                faces[track.scene_id, track.run, track.track],
                decided[track.track_id],
                known[track.model_id, "named"],
                known[track.model_id, "unknown"],
                metrics[track.model_id],
                rule,
            )
            for track in own
        ]
        _one_place_each(own, verdicts, faces)
        for track, (verdict, by) in zip(own, verdicts, strict=True):
            after = {
                "person_id": verdict.person_id,
                "similarity": verdict.similarity,
                "votes": verdict.votes,
                "decided_by": by,
            }
            if any(getattr(track, column) != value for column, value in after.items()):
                changes.append({"track_id": track.track_id, **after})
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
        return NO_MATCH, None
    vectors, weights = as_array([face.vec for face in faces]), weights_of(faces)
    left = named.without(decision.barred)
    verdict = decide(vectors, weights, left.vectors, left.ids, metric, rule)
    if verdict.person_id is None and not verdict.undecided:
        left = unknown.without(decision.barred)
        # Two similar unknown people may be one person: take the nearer one.
        verdict = decide(vectors, weights, left.vectors, left.ids, metric, replace(rule, margin=0.0))
        if verdict.person_id is None:
            return NO_MATCH, None
    return verdict, "machine"


def _one_place_each(
    tracks: Sequence[FaceTrack],
    verdicts: list[tuple[Verdict, str | None]],
    faces: FacesByTrack,
) -> None:
    """Resolve two tracks of one person in the same keyframe: the more similar one keeps the person."""
    order = sorted(
        range(len(tracks)),
        key=lambda place: (verdicts[place][1] != "human", -(verdicts[place][0].similarity or 0)),
    )
    taken: dict[str, set[int]] = defaultdict(set)
    for place in order:
        verdict, by = verdicts[place]
        if verdict.person_id is None:
            continue
        track = tracks[place]
        seen = {face.ordinal for face in faces[track.scene_id, track.run, track.track]}
        if by == "machine" and seen & taken[verdict.person_id]:
            verdicts[place] = (Verdict(None, verdict.similarity, 0, undecided=True), "machine")
        else:
            taken[verdict.person_id] |= seen


def _decisions_by_track(
    session: Session,
    video: Video,
    scene_ids: Sequence[UUID],
    tracks: Sequence[FaceTrack],
    faces: FacesByTrack,
) -> defaultdict[UUID, HumanDecision]:
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
    decided: defaultdict[UUID, HumanDecision] = defaultdict(HumanDecision)
    if not decisions:
        return decided
    merges = select(Person.person_id, Person.merged_into).where(
        Person.user_id == video.user_id, Person.merged_into.is_not(None)
    )
    merged = {row.person_id: str(row.merged_into) for row in session.execute(merges)}
    scenes = select(Scene.scene_id, Scene.start_s, Scene.end_s).where(Scene.scene_id.in_(scene_ids))
    spans = {row.scene_id: (row.start_s - 0.001, row.end_s + 0.001) for row in session.execute(scenes)}
    by_run: dict[int, list[FaceTrack]] = defaultdict(list)
    for track in tracks:
        by_run[track.run].append(track)
    for decision in decisions:
        who = decision.person_id
        while who in merged:
            who = merged[who]
        for candidates in by_run.values():
            near = [
                track
                for track in candidates
                if spans[track.scene_id][0] <= decision.ts_s <= spans[track.scene_id][1]
            ]
            found = _nearest(decision, near, faces)
            if found is None:
                continue
            earlier = decided[found]
            if decision.is_person:
                decided[found] = HumanDecision(who, earlier.barred - {who})
            else:
                person_id = None if earlier.person_id == who else earlier.person_id
                decided[found] = HumanDecision(person_id, earlier.barred | {who})
    return decided


def _nearest(decision: FaceDecision, tracks: Sequence[FaceTrack], faces: FacesByTrack) -> UUID | None:
    """The track with a face at the place and about the time of the decision."""
    best: tuple[float, UUID | None] = (-np.inf, None)
    for track in tracks:
        for face in faces[track.scene_id, track.run, track.track]:
            apart_s, shared = abs(face.ts_s - decision.ts_s), overlap(face.box, decision.box)
            score = shared - apart_s / 100.0
            if apart_s <= _NEAR_S and shared >= _LEAST_OVERLAP and score > best[0]:
                best = (score, track.track_id)
    return best[1]


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
            FaceTrack.scene_id == any_(uuids(scenes.keys())),
            FaceTrack.user_id == Person.user_id,
            Person.deleted_at.is_(None),
        )
        .group_by(FaceTrack.scene_id, FaceTrack.run, FaceTrack.person_id, Person.external_id, Person.name)
        .order_by(FaceTrack.scene_id, FaceTrack.person_id)
    )
    found: dict[UUID, list[PersonInScene]] = defaultdict(list)
    for row in rows:
        if scenes[row.scene_id] == row.run:
            found[row.scene_id].append(
                PersonInScene(row.person_id, row.external_id, row.name, row.confidence, row.frame_count)
            )
    return found


_ADD_SCENE_PEOPLE = text(
    "INSERT INTO scene_people (scene_id, person_id, user_id, confidence, frame_count) SELECT * FROM unnest(CAST(:scenes AS uuid[]),"
    " CAST(:people AS text[]), CAST(:users AS text[]), CAST(:confidences AS float8[]), CAST(:counts AS integer[]))"
)


def _version_of(rows: str) -> str:
    """SQL: the sum of hashes of each row's place and writing transaction, which every change of a row changes."""
    return f"(SELECT sum(hashtextextended(r.ctid::text || r.xmin::text, 0)) FROM {rows})"


_VERSIONS = text(
    "SELECT "
    + ", ".join(
        _version_of(rows)
        for rows in (
            "face_tracks r WHERE r.video_id = :video_id AND r.run = :run",
            "people r WHERE r.person_id IN (SELECT t.person_id FROM face_tracks t WHERE t.video_id = :video_id AND t.run = :run)",
            "scene_people r JOIN scenes s USING (scene_id) WHERE s.video_id = :video_id",
        )
    )
)


@dataclass(frozen=True)
class ShownFaces:
    """The published faces of a scene: whose, in which video, by which run."""

    user_id: str
    video_id: str
    run: int


def scenes_with_people(session: Session, video_id: str, run: int) -> set[UUID]:
    """The scenes of a video in which a run has found somebody, or somebody is shown so far."""
    tracks = (FaceTrack.video_id == video_id, FaceTrack.run == run, FaceTrack.person_id.is_not(None))
    found = set(session.scalars(select(FaceTrack.scene_id).where(*tracks).distinct()))
    so_far = select(ScenePerson.scene_id).join(Scene, Scene.scene_id == ScenePerson.scene_id)
    return found | set(session.scalars(so_far.where(Scene.video_id == video_id).distinct()))


@dataclass(frozen=True)
class PeopleChanges:
    """Where ``scene_people`` differs from the tracks, of the scenes that were compared."""

    #: Scenes where it differs, and what it should have of them, as its columns are.
    scenes: set[UUID]
    rows: list[tuple[UUID, str, str, float, int]]
    #: User -> people who are new in a video.
    appeared: dict[str, set[deliveries.Shown]]
    #: Who is in each scene by the tracks.
    now: dict[UUID, list[PersonInScene]]


def refresh_scene_people(session: Session, scene_ids: Sequence[UUID]) -> None:
    """Update ``scene_people`` of published scenes from their tracks, and mark scenes where it differs: so does their sidecar."""
    rows = session.execute(
        select(Scene.scene_id, Scene.user_id, Scene.video_id, Scene.face_run).where(
            Scene.scene_id == any_(uuids(scene_ids)), Scene.live, Scene.face_run.is_not(None)
        )
    )
    faces = {row.scene_id: ShownFaces(row.user_id, row.video_id, int(row.face_run)) for row in rows}
    changes = compare_people(session, faces)
    show_people(session, changes)
    session.execute(
        update(Scene).where(Scene.scene_id == any_(uuids(changes.scenes))).values(people_changed=True)
    )


def compare_people(session: Session, faces: Mapping[UUID, ShownFaces]) -> PeopleChanges:
    """Compare ``scene_people`` of some scenes with their tracks."""
    columns = (
        ScenePerson.scene_id,
        ScenePerson.person_id,
        ScenePerson.user_id,
        ScenePerson.confidence,
        ScenePerson.frame_count,
    )
    found = PeopleChanges(set(), [], defaultdict(set), {})
    scenes = sorted(faces)
    for first in range(0, len(scenes), _COMPARED_AT_ONCE):
        some = scenes[first : first + _COMPARED_AT_ONCE]
        now = people_in(session, {scene: faces[scene].run for scene in some})
        present = select(*columns).where(ScenePerson.scene_id == any_(uuids(some)))
        before: set[tuple[Any, ...]] = {tuple(row) for row in session.execute(present)}
        after = {
            (scene, seen.person_id, faces[scene].user_id, seen.confidence, seen.frame_count)
            for scene, people in now.items()
            for seen in people
        }
        changed = {row[0] for row in before ^ after}
        found.scenes.update(changed)
        found.rows.extend(sorted(row for row in after if row[0] in changed))
        found.now.update(now)
        had = {row[:2] for row in before}
        for scene, person, user_id, *_ in after:
            if (scene, person) not in had:
                place = faces[scene]
                found.appeared[user_id].add(
                    deliveries.Shown(video_id=place.video_id, face_run=place.run, person_id=person)
                )
    return found


def show_people(session: Session, changes: PeopleChanges) -> None:
    """Make ``scene_people`` say what the tracks do."""
    session.execute(delete(ScenePerson).where(ScenePerson.scene_id == any_(uuids(changes.scenes))))
    if changes.rows:
        # By one statement: a trigger runs for each.
        names = ("scenes", "people", "users", "confidences", "counts")
        lists = {name: [row[place] for row in changes.rows] for place, name in enumerate(names)}
        session.execute(_ADD_SCENE_PEOPLE, lists)
    for user_id, shown in changes.appeared.items():
        deliveries.people_shown(session, user_id, shown)


def versions_of_people(session: Session, video_id: str, run: int) -> tuple[Any, ...]:
    """What changes with any row that says who is in a video's scenes: of the tracks of a run, their people, and ``scene_people``."""
    return tuple(session.execute(_VERSIONS, {"video_id": video_id, "run": run}).one())


def mark_scenes_of(session: Session, person_id: str) -> None:
    """Mark the scenes of a renamed person: their sidecars contain the old name.

    Waits for every transaction that publishes one of the person's videos at this moment: its scenes become visible
    with its commit, so that they could not be marked before. One that begins later reads the new name.
    """
    videos = select(FaceTrack.video_id).where(FaceTrack.person_id == person_id)
    session.execute(
        select(Video.video_id)
        .where(Video.video_id.in_(videos))
        .order_by(Video.video_id)
        .with_for_update(key_share=True)
    )
    scenes = select(ScenePerson.scene_id).where(ScenePerson.person_id == person_id)
    session.execute(update(Scene).where(Scene.live, Scene.scene_id.in_(scenes)).values(people_changed=True))


def count_tracks(session: Session, person_ids: Collection[str]) -> int:
    """The number of tracks of some people."""
    tracks = select(func.count()).select_from(FaceTrack)
    return session.scalars(tracks.where(FaceTrack.person_id == any_(array(person_ids)))).one()


def videos_with_faces(session: Session, user_id: str) -> list[str]:
    """The user's videos that have face tracks, or may get some: those in progress."""
    has_tracks = select(FaceTrack.track_id).where(FaceTrack.video_id == Video.video_id).exists()
    videos = (
        select(Video.video_id)
        .where(Video.user_id == user_id, Video.deleted_at.is_(None))
        .where(Video.state.in_(("uploaded", "processing")) | has_tracks)
        .order_by(Video.created_at.desc(), Video.video_id)
    )
    return list(session.scalars(videos))
