"""The tables. Times are Postgres's; ids of callers are text, ids of the fleet are uuids or numbers.

Videos and people have both (``db.ids``): the primary key is the fleet's, ``external_id`` the user's.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from pgvector.sqlalchemy import HALFVEC, SPARSEVEC
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Computed,
    DateTime,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    MetaData,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class JobState(StrEnum):
    """States of a job. The statements in SQL, here and in migrations, have the same words."""

    #: Waits until ``not_before``, then for a claim.
    QUEUED = "queued"
    #: An attempt holds it under a lease.
    RUNNING = "running"
    #: Its outputs are written.
    DONE = "done"
    #: Not run: an earlier run's outputs of this stage count.
    REUSED = "reused"
    #: Failed for good; ``retry`` queues it again.
    FAILED = "failed"
    #: Stopped by a cancel, a rerun or a delete.
    CANCELLED = "cancelled"
    #: Not run: its feature is off, its model is missing, or a stage before it failed.
    SKIPPED = "skipped"


LIVE = (JobState.QUEUED, JobState.RUNNING)
#: States a job never leaves by itself.
TERMINAL = tuple(state for state in JobState if state not in LIVE)

Now = Annotated[datetime, mapped_column(server_default=func.clock_timestamp())]
#: Columns that refer to a row, and that go with it (a model's row stays).
OfVideo = Annotated[str, mapped_column(ForeignKey("videos.video_id", ondelete="CASCADE"))]
OfScene = Annotated[UUID, mapped_column(ForeignKey("scenes.scene_id", ondelete="CASCADE"))]
OfPerson = Annotated[str, mapped_column(ForeignKey("people.person_id", ondelete="CASCADE"))]
OfModel = Annotated[int, mapped_column(ForeignKey("models.model_id"))]


def _same_as(column: str) -> Callable[[DefaultExecutionContext], Any]:
    """A default that copies another column of the same row."""

    def value(context: DefaultExecutionContext) -> Any:
        return context.get_current_parameters()[column]  # type: ignore[no-untyped-call]

    return value


def _one_of(column: str, *values: str) -> CheckConstraint:
    allowed = ", ".join(repr(str(value)) for value in values)
    return CheckConstraint(f"{column} IN ({allowed})", name=column)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        str: Text,
        float: Double,
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
        UUID: Uuid,
    }


class Requested:
    """What is known of the newest request that changed a row (db/precedence.py)."""

    #: When it was sent, by this database's clock; and its id.
    requested_at: Mapped[datetime | None]
    requested_by: Mapped[str | None]


class Video(Requested, Base):
    """A video, and the pointer to the run callers see."""

    __tablename__ = "videos"
    __table_args__ = (
        _one_of("state", "uploaded", "processing", "indexed", "partial", "failed", "cancelled", "deleted"),
        UniqueConstraint("user_id", "external_id"),
        Index(None, "user_id", "created_at"),
        Index(None, "indexed_at", "video_id"),
        # For watchers (db/video_changes.py).
        Index(None, "user_id", "changed"),
        Index("ix_videos_open", "user_id", postgresql_where=text("state IN ('uploaded', 'processing')")),
    )

    video_id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    #: The user's id of the video.
    external_id: Mapped[str] = mapped_column(default=_same_as("video_id"))
    storage_key: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="uploaded")
    priority: Mapped[int] = mapped_column(server_default="0")
    #: The newest run.
    run: Mapped[int] = mapped_column(server_default="0")
    #: The run whose outputs callers see.
    published_run: Mapped[int | None]
    #: Last sidecar revision used: every attempt gets a new one.
    revision: Mapped[int] = mapped_column(server_default="0")
    duration_s: Mapped[float | None]
    #: The result of the probe.
    media: Mapped[dict[str, Any] | None]
    #: What a browser plays: {how, reason, key, width, height, version}; key in the bucket sidecars, null: the file itself.
    rendition: Mapped[dict[str, Any] | None]
    error_class: Mapped[str | None]
    error: Mapped[str | None]
    created_at: Mapped[Now]
    indexed_at: Mapped[datetime | None]
    #: Set: the id is a tombstone and is not used again.
    deleted_at: Mapped[datetime | None]
    #: The transaction that last changed the row; a trigger writes it (migration 0014).
    changed: Mapped[int] = mapped_column(BigInteger, server_default="0")


class Run(Base):
    """One pass of a video through the pipeline, or part of it."""

    __tablename__ = "runs"
    __table_args__ = (
        Index("ix_runs_open", "video_id", postgresql_where=text("ended_at IS NULL")),
        Index("ix_runs_superseded", "superseded_at", postgresql_where=text("superseded_at IS NOT NULL")),
    )

    video_id: Mapped[OfVideo] = mapped_column(primary_key=True)
    run: Mapped[int] = mapped_column(primary_key=True)
    #: Stages that this run executes; it reuses the others.
    stages: Mapped[list[Any]]
    #: stage -> the run whose outputs count for this run.
    stage_runs: Mapped[dict[str, Any]]
    created_at: Mapped[Now]
    ended_at: Mapped[datetime | None]
    #: When a later run took its place; then it is removed in time, unless its outputs still count (db/ledger/retention.py).
    superseded_at: Mapped[datetime | None]


class Job(Base):
    """One unit of work in the ledger."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("subject_kind", "subject_id", "run", "stage", "part"),
        _one_of("state", *JobState),
        # What a claim looks through.
        Index(
            "ix_jobs_claim",
            "queue",
            "account",
            text("priority DESC"),
            text("depth DESC"),
            "not_before",
            "job_id",
            postgresql_where=text("state = 'queued'"),
        ),
        # Claimable jobs: the number of wake-up messages that a queue needs.
        Index("ix_jobs_due", "queue", "not_before", postgresql_where=text("state = 'queued'")),
        Index("ix_jobs_running", "queue", "account", postgresql_where=text("state = 'running'")),
        Index(None, "video_id", "run"),
        # For erasures, videos with older sidecars, and lists of failures.
        Index("ix_jobs_failed", "user_id", postgresql_where=text("state = 'failed'")),
        # What is left out of a video's scenes, for their sidecars.
        Index("ix_jobs_not_looked_at", "video_id", postgresql_where=text("not_looked_at IS NOT NULL")),
        # Whether a stage, or a run, has a job that has not ended.
        Index(
            "ix_jobs_live",
            "subject_kind",
            "subject_id",
            "run",
            "stage",
            postgresql_where=text("state IN ('queued', 'running')"),
        ),
        # Ended jobs outside the pipeline (db/ledger/retention.py).
        Index(
            "ix_jobs_removable",
            "finished_at",
            postgresql_where=text(
                "(video_id IS NULL OR queue = 'housekeeping') AND state IN ('done', 'reused', 'cancelled', 'skipped')"
            ),
        ),
        # For the throughput of the last minute.
        Index("ix_jobs_done", "finished_at", postgresql_where=text("state = 'done'")),
    )

    job_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    subject_kind: Mapped[str] = mapped_column(server_default="video")
    subject_id: Mapped[str]
    video_id: Mapped[OfVideo | None]
    user_id: Mapped[str]
    #: The account that its device time is charged to: its user, or the fleet (empty) for a switch.
    account: Mapped[str] = mapped_column(
        Computed("CASE WHEN subject_kind = 'switch' THEN '' ELSE user_id END", persisted=True)
    )
    queue: Mapped[str]
    run: Mapped[int]
    stage: Mapped[str]
    part: Mapped[int] = mapped_column(server_default="0")
    state: Mapped[str] = mapped_column(server_default="queued")
    #: Compared with jobs of the same account only.
    priority: Mapped[int] = mapped_column(server_default="0")
    #: Of its stage (``shared.graph.depth``).
    depth: Mapped[int] = mapped_column(server_default="0")
    #: When it may run; its age starts then.
    not_before: Mapped[Now]
    #: Incremented by every claim; the fence.
    attempt: Mapped[int] = mapped_column(server_default="0")
    #: Errors.
    failures: Mapped[int] = mapped_column(server_default="0")
    max_failures: Mapped[int] = mapped_column(server_default="3")
    #: Outages of a server, or losses of the node.
    outages: Mapped[int] = mapped_column(server_default="0")
    #: Deaths of its process, and those of them while no other job ran on the node (``alone_attempt``).
    deaths: Mapped[int] = mapped_column(server_default="0")
    deaths_alone: Mapped[int] = mapped_column(server_default="0")
    #: The attempt that began when it was alone on its node.
    alone_attempt: Mapped[int | None]
    #: What of its part is left out, as each attempt at it died (db/ledger/bisection.py).
    not_looked_at: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    #: Deferrals since it last made progress.
    deferrals: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]
    lease_owner: Mapped[str | None]
    payload: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    #: Results for later stages.
    result: Mapped[dict[str, Any] | None]
    model_id: Mapped[OfModel | None]
    progress: Mapped[float] = mapped_column(server_default="0")
    error_class: Mapped[str | None]
    error: Mapped[str | None]
    created_at: Mapped[Now]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    #: Device seconds of all attempts.
    device_seconds: Mapped[float | None]
    #: The span that created it (shared/trace_context.py): its own are in the same trace.
    traceparent: Mapped[str | None]


class QueueUsage(Base):
    """The device time of an account in a queue, and whether it has waiting jobs (db/ledger/usage.py)."""

    __tablename__ = "queue_usage"
    __table_args__ = (
        # For the choice of the next account.
        Index("ix_queue_usage_waiting", "queue", "level", "waiting_since", postgresql_where=text("waiting")),
        Index(
            "ix_queue_usage_due",
            "queue",
            "due_at",
            postgresql_where=text("NOT waiting AND due_at IS NOT NULL"),
        ),
        # For a changed half-life, and accounts to remove.
        Index(
            "ix_queue_usage_half_life", "half_life_s", postgresql_where=text("level > '-infinity'::float8")
        ),
        Index("ix_queue_usage_idle", "updated_at", postgresql_where=text("NOT waiting AND due_at IS NULL")),
    )

    queue: Mapped[str] = mapped_column(primary_key=True)
    account: Mapped[str] = mapped_column(primary_key=True)
    #: ln(recent device seconds) + time / decay: keeps the order of the decayed seconds at any later time.
    level: Mapped[float] = mapped_column(server_default=text("'-infinity'"))
    #: Half-life of ``level``, seconds.
    half_life_s: Mapped[float] = mapped_column(server_default="3600")
    #: Device seconds, not decayed.
    total_s: Mapped[float] = mapped_column(server_default="0")
    #: Whether there may be a claimable job; cleared by a claim that finds none.
    waiting: Mapped[bool] = mapped_column(server_default=text("false"))
    waiting_since: Mapped[datetime | None]
    #: If not waiting: when the first deferred job may run.
    due_at: Mapped[datetime | None]
    updated_at: Mapped[Now]


class Scene(Base):
    """A span between two cuts. Text and pointers are those of the published run; ``live`` when published."""

    __tablename__ = "scenes"
    __table_args__ = (
        UniqueConstraint("video_id", "split_version", "idx"),
        Index(None, "user_id", "video_id", postgresql_where=text("live")),
        Index("ix_scenes_tsv", "tsv", postgresql_using="gin", postgresql_where=text("live")),
        Index("ix_scenes_screen_tsv", "screen_tsv", postgresql_using="gin", postgresql_where=text("live")),
        Index("ix_scenes_people_changed", "video_id", postgresql_where=text("people_changed")),
    )

    scene_id: Mapped[UUID] = mapped_column(primary_key=True)
    video_id: Mapped[OfVideo]
    user_id: Mapped[str]
    #: The run that split the video.
    split_version: Mapped[int]
    idx: Mapped[int]
    start_s: Mapped[float]
    end_s: Mapped[float]
    #: Its start: start, cut, gradual.
    kind: Mapped[str]
    #: Probability that it begins there; None: split before this was kept.
    cut_confidence: Mapped[float | None]
    #: [{ordinal, key, ts_s, width, height}]
    keyframes: Mapped[list[Any]]
    live: Mapped[bool] = mapped_column(server_default=text("false"))
    transcript: Mapped[str] = mapped_column(server_default="")
    #: [{start_s, end_s, text, words}]
    segments: Mapped[list[Any]] = mapped_column(server_default=text("'[]'::jsonb"))
    language: Mapped[str | None]
    tsv: Mapped[Any | None] = mapped_column(TSVECTOR)
    sidecar_key: Mapped[str | None]
    #: Runs whose vectors and faces are published with this scene.
    text_run: Mapped[int | None]
    vision_run: Mapped[int | None]
    face_run: Mapped[int | None]
    #: On-screen text, one line each, and its search column.
    screen_text: Mapped[str] = mapped_column(server_default="")
    screen_tsv: Mapped[Any | None] = mapped_column(TSVECTOR)
    #: The run that read it; None: not read.
    ocr_run: Mapped[int | None]
    #: What stages have not looked at (``shared.contracts.NotLookedAt``); None: nothing.
    not_looked_at: Mapped[list[Any] | None] = mapped_column(JSONB(none_as_null=True))
    #: Its people have changed since its sidecar was written.
    people_changed: Mapped[bool] = mapped_column(server_default=text("false"))


class PreparedScene(Base):
    """What a run will show of a scene that callers see already, until it is published (``db.publication``)."""

    __tablename__ = "prepared_scenes"

    scene_id: Mapped[OfScene] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    # As in ``scenes``:
    transcript: Mapped[str]
    segments: Mapped[list[Any]]
    language: Mapped[str | None]
    tsv: Mapped[Any] = mapped_column(TSVECTOR)
    sidecar_key: Mapped[str]
    text_run: Mapped[int | None]
    vision_run: Mapped[int | None]
    face_run: Mapped[int | None]
    screen_text: Mapped[str]
    screen_tsv: Mapped[Any] = mapped_column(TSVECTOR)
    ocr_run: Mapped[int | None]
    not_looked_at: Mapped[list[Any] | None] = mapped_column(JSONB(none_as_null=True))


class TranscriptPart(Base):
    """The transcript of one window; scenes get their words from these."""

    __tablename__ = "transcript_parts"
    __table_args__ = (ForeignKeyConstraint(["video_id"], ["videos.video_id"], ondelete="CASCADE"),)

    video_id: Mapped[str] = mapped_column(primary_key=True)
    run: Mapped[int] = mapped_column(primary_key=True)
    part: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    start_s: Mapped[float]
    end_s: Mapped[float]
    language: Mapped[str | None]
    segments: Mapped[list[Any]]
    model_id: Mapped[OfModel | None]


class Model(Base):
    """A model whose outputs are stored: vectors of several models are stored side by side."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("name", "revision"),)

    model_id: Mapped[int] = mapped_column(Integer, Identity(), primary_key=True)
    name: Mapped[str]
    revision: Mapped[str]
    family: Mapped[str]
    dim: Mapped[int | None]
    #: cosine or l2
    metric: Mapped[str | None]
    #: Of its jobs.
    run: Mapped[int] = mapped_column(server_default="0")
    created_at: Mapped[Now]

    @property
    def deleted_at(self) -> datetime | None:
        """A model's row stays."""
        return None


class Embedding(Base):
    """One vector of one scene by one model; HNSW indexes are made per model (db/vectors.py)."""

    __tablename__ = "embeddings"
    __table_args__ = (Index(None, "user_id", "model_id"),)

    scene_id: Mapped[OfScene] = mapped_column(primary_key=True)
    model_id: Mapped[OfModel] = mapped_column(primary_key=True)
    #: 0 for text; the keyframe's ordinal for vision.
    ordinal: Mapped[int] = mapped_column(primary_key=True)
    run: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    vec: Mapped[Any] = mapped_column(HALFVEC)


class LexicalWeights(Base):
    """Lexical weights of a scene, by a model that produces them (BGE-M3)."""

    __tablename__ = "lexical_weights"
    __table_args__ = (
        Index("ix_lexical_weights_tokens", "tokens", postgresql_using="gin"),
        Index(None, "user_id", "model_id"),
    )

    scene_id: Mapped[OfScene] = mapped_column(primary_key=True)
    model_id: Mapped[OfModel] = mapped_column(primary_key=True)
    run: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    #: Token ids of the model's vocabulary: to find candidates.
    tokens: Mapped[list[int]] = mapped_column(ARRAY(Integer))
    #: Token id (from 0) -> weight; its inner product with a query's is their lexical similarity.
    weights: Mapped[Any] = mapped_column(SPARSEVEC)


class SceneTags(Base):
    """Tags of a scene: labels that a vision model found in its keyframes."""

    __tablename__ = "scene_tags"

    scene_id: Mapped[OfScene] = mapped_column(primary_key=True)
    run: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    model_id: Mapped[OfModel]
    #: label -> probability, 0..1, the maximum over the scene's keyframes
    tags: Mapped[dict[str, Any]]


class ScreenText(Base):
    """One line of on-screen text of a scene, stored once however many keyframes show it."""

    __tablename__ = "screen_texts"

    scene_id: Mapped[OfScene] = mapped_column(primary_key=True)
    run: Mapped[int] = mapped_column(primary_key=True)
    #: Its position among the scene's lines, from 0, by time and reading order.
    place: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    model_id: Mapped[OfModel]
    text: Mapped[str]
    #: Confidence of the best sighting, 0..1.
    score: Mapped[float]
    #: [{ordinal, ts_s, box}]: the keyframes that show it, box x, y, width, height in their pixels
    sightings: Mapped[list[Any]]


class Face(Base):
    """A face found in a keyframe. Box and landmarks in that keyframe's pixels."""

    __tablename__ = "faces"
    __table_args__ = (Index(None, "scene_id"), Index(None, "user_id"))

    face_id: Mapped[UUID] = mapped_column(primary_key=True)
    scene_id: Mapped[OfScene]
    user_id: Mapped[str]
    run: Mapped[int]
    #: The keyframe's ordinal, and its time in the video.
    ordinal: Mapped[int]
    ts_s: Mapped[float]
    #: [x, y, width, height]
    box: Mapped[list[Any]]
    #: [[x, y], ...]
    landmarks: Mapped[list[Any]]
    det_score: Mapped[float]
    model_id: Mapped[OfModel]
    vec: Mapped[Any] = mapped_column(HALFVEC)
    #: Quality (AdaFace's feature norm); None: the model does not measure it.
    quality: Mapped[float | None]
    #: Faces of one scene with the same number are the same person seen several times; None before tracks were made.
    track: Mapped[int | None]


class Person(Requested, Base):
    """A person of a user: named, or unknown with a number."""

    __tablename__ = "people"
    __table_args__ = (
        _one_of("kind", "named", "unknown"),
        UniqueConstraint("user_id", "external_id"),
        Index(
            "uq_people_name",
            "user_id",
            text("lower(name)"),
            unique=True,
            postgresql_where=text("deleted_at IS NULL AND merged_into IS NULL"),
        ),
        Index("ix_people_merged_into", "merged_into", postgresql_where=text("merged_into IS NOT NULL")),
        Index("ix_people_moving", "user_id", postgresql_where=text("moving_event IS NOT NULL")),
        Index("ix_people_open", "person_id", postgresql_where=text("ended_run < run AND deleted_at IS NULL")),
        # For the next number of an unknown person.
        Index(
            "ix_people_numbers",
            "user_id",
            text("(substring(name, '^unknown ([0-9]{1,6})$'::text)::integer)"),
        ),
    )

    person_id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    #: The id that the user chose; otherwise the primary key.
    external_id: Mapped[str] = mapped_column(default=_same_as("person_id"))
    name: Mapped[str]
    kind: Mapped[str] = mapped_column(server_default="named")
    #: The newest run of jobs (enrol, match the archive), and the newest one that has ended.
    run: Mapped[int] = mapped_column(server_default="0")
    ended_run: Mapped[int] = mapped_column(server_default="0")
    #: Set: merged into that person.
    merged_into: Mapped[str | None]
    #: Set while a job moves tracks from or to this person: its event.
    moving_event: Mapped[int | None] = mapped_column(BigInteger)
    #: When the last upload URL expires; None: there never was one.
    uploads_until: Mapped[datetime | None]
    created_at: Mapped[Now]
    #: Set: the id is a tombstone and is not used again.
    deleted_at: Mapped[datetime | None]
    #: The receipt of the erasure.
    receipt: Mapped[dict[str, Any] | None]


class PersonPhoto(Base):
    """A photo of a person, its state, and its vector."""

    __tablename__ = "person_photos"
    __table_args__ = (
        _one_of("state", "waiting", "pending", "good", "refused", "failed"),
        UniqueConstraint("storage_key"),
        Index(None, "person_id"),
    )

    photo_id: Mapped[UUID] = mapped_column(primary_key=True)
    person_id: Mapped[OfPerson]
    user_id: Mapped[str]
    storage_key: Mapped[str]
    #: waiting for its upload, pending, good (has a vector), refused (for its content), failed (internal error)
    state: Mapped[str] = mapped_column(server_default="waiting")
    error_class: Mapped[str | None]
    error: Mapped[str | None]
    model_id: Mapped[OfModel | None]
    vec: Mapped[Any | None] = mapped_column(HALFVEC)
    quality: Mapped[float | None]
    #: [x, y, width, height] in the photo's pixels
    box: Mapped[list[Any] | None]
    created_at: Mapped[Now]


class PersonProfile(Base):
    """The profile of a person for one model."""

    __tablename__ = "person_profiles"
    __table_args__ = (Index(None, "user_id", "model_id"),)

    person_id: Mapped[OfPerson] = mapped_column(primary_key=True)
    model_id: Mapped[OfModel] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    vec: Mapped[Any] = mapped_column(HALFVEC)
    #: Number of photos in it; 0: computed from tracks in videos.
    photos: Mapped[int]
    tracks: Mapped[int] = mapped_column(server_default="0")


class FaceTrack(Base):
    """A track: one face through one scene, and its person."""

    __tablename__ = "face_tracks"
    __table_args__ = (
        UniqueConstraint("scene_id", "run", "track"),
        _one_of("decided_by", "machine", "human"),
        Index(None, "video_id"),
        Index(None, "user_id", "model_id"),
        # By video: a batch of a person's tracks locks few videos.
        Index(None, "person_id", "video_id", "track_id"),
    )

    track_id: Mapped[UUID] = mapped_column(primary_key=True)
    scene_id: Mapped[OfScene]
    video_id: Mapped[OfVideo]
    user_id: Mapped[str]
    run: Mapped[int]
    #: As in ``faces.track``.
    track: Mapped[int]
    model_id: Mapped[OfModel]
    #: Its best face: the keyframe's ordinal and time, the box [x, y, width, height] in pixels.
    ordinal: Mapped[int]
    ts_s: Mapped[float]
    box: Mapped[list[Any]]
    vec: Mapped[Any] = mapped_column(HALFVEC)
    faces: Mapped[int]
    person_id: Mapped[str | None] = mapped_column(ForeignKey("people.person_id", ondelete="SET NULL"))
    #: Mean over the faces that voted: cosine, or 1 - Euclidean distance. 1 if a human decided.
    similarity: Mapped[float | None]
    votes: Mapped[int | None]
    decided_by: Mapped[str | None]


class ScenePerson(Base):
    """A person in a published scene."""

    __tablename__ = "scene_people"
    __table_args__ = (Index(None, "person_id"), Index(None, "user_id", "person_id"))

    scene_id: Mapped[OfScene] = mapped_column(primary_key=True)
    person_id: Mapped[OfPerson] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    #: Similarity of the person's best track, 0..1.
    confidence: Mapped[float]
    #: Keyframes in which the person was recognised.
    frame_count: Mapped[int]


class PeopleEvent(Base):
    """A change of a user's people. Never updated; an undo is a new event."""

    __tablename__ = "people_events"
    __table_args__ = (Index(None, "user_id", "event_id"), UniqueConstraint("undoes"))

    event_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    user_id: Mapped[str]
    kind: Mapped[str]
    person_id: Mapped[str | None]
    #: Data for undoing it.
    payload: Mapped[dict[str, Any]]
    #: The event this one undoes.
    undoes: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[Now]


class MovedTrack(Base):
    """A track that a merge moved, for its undo."""

    __tablename__ = "moved_tracks"

    event_id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    video_id: Mapped[OfVideo] = mapped_column(primary_key=True, index=True)
    #: No foreign key: a track that a later run replaced is not moved back.
    track_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[str]


class ErasureScene(Base):
    """A scene of a person that is being erased, whose sidecars are still to be checked."""

    __tablename__ = "erasure_scenes"

    person_id: Mapped[OfPerson] = mapped_column(primary_key=True)
    video_id: Mapped[OfVideo] = mapped_column(primary_key=True, index=True)
    #: ``db.people.erasure.NO_SCENE``: sidecars of the video that are not shown.
    scene_id: Mapped[UUID] = mapped_column(primary_key=True)
    user_id: Mapped[str]


class FaceDecision(Base):
    """A decision of a human: a face is, or is not, this person. Bound to a time and a place in the video."""

    __tablename__ = "face_decisions"
    __table_args__ = (Index(None, "video_id"), Index(None, "person_id"), Index(None, "event_id"))

    decision_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    user_id: Mapped[str]
    video_id: Mapped[OfVideo]
    person_id: Mapped[OfPerson]
    is_person: Mapped[bool]
    ts_s: Mapped[float]
    #: [x, y, width, height] in pixels of the keyframe at ``ts_s``
    box: Mapped[list[Any]]
    #: The merge or split that created it, whose undo deletes it.
    event_id: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[Now]


class ModelSwitch(Requested, Base):
    """A switch of the active model: the new model's vectors are created beside the old ones."""

    __tablename__ = "model_switches"
    __table_args__ = (
        _one_of("state", "building", "ready", "activated", "discarding", "ended"),
        Index("uq_model_switches_open", "kind", unique=True, postgresql_where=text("state <> 'ended'")),
    )

    switch_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    #: Of models: text, vision.
    kind: Mapped[str]
    from_model: Mapped[OfModel]
    to_model: Mapped[OfModel]
    #: building, ready (both complete, the old one is active), activated (the new one is active), discarding, ended
    state: Mapped[str] = mapped_column(server_default="building")
    #: Of its jobs.
    run: Mapped[int] = mapped_column(server_default="1")
    #: Scenes with vectors of the old model at the start, and scenes with new vectors since.
    total: Mapped[int] = mapped_column(BigInteger, server_default="0")
    done: Mapped[int] = mapped_column(BigInteger, server_default="0")
    #: The position in the videos, by when they were indexed.
    seen_until: Mapped[datetime | None]
    seen_video: Mapped[str] = mapped_column(server_default="")
    created_at: Mapped[Now]
    ready_at: Mapped[datetime | None]
    #: Time of the last activation or rollback.
    activated_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    @property
    def deleted_at(self) -> datetime | None:
        """No job of a switch counts once it has ended."""
        return self.ended_at


class SearchChange(Base):
    """A transaction that has changed what searches of a user may find; triggers write it (migration 0015)."""

    __tablename__ = "search_changes"

    user_id: Mapped[str] = mapped_column(primary_key=True)
    transaction: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    #: Random, never used twice.
    token: Mapped[UUID]


class ActiveModel(Base):
    """The active model of a kind, if a switch has chosen it; without a row the configured one."""

    __tablename__ = "active_models"

    kind: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[OfModel]
    changed_at: Mapped[Now]


class ApiKey(Base):
    """A key of a caller of the HTTP API. ``account`` is its user; no request that reads as one user reads it."""

    __tablename__ = "api_keys"

    key_id: Mapped[str] = mapped_column(primary_key=True)
    account: Mapped[str]
    #: Of its secret, in hexadecimal digits; the secret has 256 random bits.
    secret_sha256: Mapped[str]
    operator: Mapped[bool]
    name: Mapped[str]
    created_at: Mapped[Now]
    ended_at: Mapped[datetime | None]


class Webhook(Base):
    """Where a user wants to be told of events; the subject of the jobs that deliver them."""

    __tablename__ = "webhooks"
    __table_args__ = (UniqueConstraint("user_id", "url"),)

    webhook_id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    url: Mapped[str]
    #: Signs the deliveries; it can't be stored as a hash.
    secret: Mapped[str]
    #: Names of events.
    events: Mapped[list[Any]]
    #: Cleared by its receiver's status 410.
    enabled: Mapped[bool] = mapped_column(server_default=text("true"))
    #: Of its jobs.
    run: Mapped[int] = mapped_column(server_default="0")
    #: Attempts in a row at which the receiver was out of order; it is left alone until ``not_before``.
    failures: Mapped[int] = mapped_column(server_default="0")
    not_before: Mapped[Now]
    created_at: Mapped[Now]

    @property
    def deleted_at(self) -> datetime | None:
        """A deleted webhook has no row."""
        return None


class WebhookDelivery(Base):
    """One event for one webhook."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        _one_of("state", "pending", "delivered", "failed"),
        CheckConstraint("octet_length(body) < 16384", name="body"),
        UniqueConstraint("webhook_id", "event", "occurrence"),
        Index(None, "user_id", "delivery_id"),
        Index(
            "ix_webhook_deliveries_pending",
            "webhook_id",
            "next_at",
            postgresql_where=text("state = 'pending'"),
        ),
    )

    delivery_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.webhook_id", ondelete="CASCADE"))
    user_id: Mapped[str]
    event: Mapped[str]
    #: Tells two events of a kind apart, so that none is stored twice.
    occurrence: Mapped[str]
    #: What it is about: erased with it.
    video_id: Mapped[OfVideo | None] = mapped_column(index=True)
    person_id: Mapped[OfPerson | None] = mapped_column(index=True)
    #: JSON as it is sent and signed.
    body: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = mapped_column(server_default="0")
    #: HTTP status and error of the last attempt.
    status: Mapped[int | None]
    error: Mapped[str | None]
    next_at: Mapped[Now]
    #: When it fails for good.
    give_up_at: Mapped[datetime] = mapped_column(index=True)
    created_at: Mapped[Now]
    ended_at: Mapped[datetime | None]
