"""The tables. Times are Postgres's; ids given by callers are text, ids made by us are uuids or numbers."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
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
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

JOB_STATES = ("queued", "running", "done", "carried", "failed", "cancelled", "skipped")
#: States a job never leaves by itself.
TERMINAL = ("done", "carried", "failed", "cancelled", "skipped")
VIDEO_STATES = (
    "uploaded",
    "processing",
    "indexed",
    "partial",
    "failed",
    "cancelled",
    "deleted",
)

_NOW = func.clock_timestamp()


def _one_of(column: str, values: tuple[str, ...]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


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


class Video(Base):
    """A video, and the pointer to the run callers see."""

    __tablename__ = "videos"
    __table_args__ = (
        CheckConstraint(_one_of("state", VIDEO_STATES), name="state"),
        Index(None, "user_id", "created_at"),
    )

    video_id: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    storage_key: Mapped[str]
    state: Mapped[str] = mapped_column(server_default="uploaded")
    priority: Mapped[int] = mapped_column(server_default="0")
    #: The newest run; 0 when the video was refused at acceptance.
    run: Mapped[int] = mapped_column(server_default="0")
    #: The run whose outputs callers see.
    published_run: Mapped[int | None]
    #: Last sidecar revision handed out: no two attempts share one.
    revision: Mapped[int] = mapped_column(server_default="0")
    duration_s: Mapped[float | None]
    #: What the probe found.
    media: Mapped[dict[str, Any] | None]
    error_class: Mapped[str | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    indexed_at: Mapped[datetime | None]
    #: Set: the id is a tombstone and never comes back.
    deleted_at: Mapped[datetime | None]


class Run(Base):
    """One pass of a video through the pipeline, or part of it."""

    __tablename__ = "runs"

    video_id: Mapped[str] = mapped_column(ForeignKey("videos.video_id", ondelete="CASCADE"), primary_key=True)
    run: Mapped[int] = mapped_column(primary_key=True)
    #: Stages this run makes; the others are carried over.
    stages: Mapped[list[Any]]
    #: stage -> the run whose outputs count for this run.
    made: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    ended_at: Mapped[datetime | None]


class Job(Base):
    """One unit of work in the ledger."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("subject_kind", "subject_id", "run", "stage", "part"),
        CheckConstraint(_one_of("state", JOB_STATES), name="state"),
        # What a claim looks through.
        Index(
            "ix_jobs_claim",
            "lane",
            "user_id",
            text("priority DESC"),
            "created_at",
            "job_id",
            postgresql_where=text("state = 'queued'"),
        ),
        Index(
            "ix_jobs_running",
            "lane",
            "user_id",
            postgresql_where=text("state = 'running'"),
        ),
        Index(None, "video_id", "run"),
    )

    job_id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    subject_kind: Mapped[str] = mapped_column(server_default="video")
    subject_id: Mapped[str]
    video_id: Mapped[str | None] = mapped_column(ForeignKey("videos.video_id", ondelete="CASCADE"))
    user_id: Mapped[str]
    lane: Mapped[str]
    run: Mapped[int]
    stage: Mapped[str]
    part: Mapped[int] = mapped_column(server_default="0")
    state: Mapped[str] = mapped_column(server_default="queued")
    priority: Mapped[int] = mapped_column(server_default="0")
    not_before: Mapped[datetime] = mapped_column(server_default=_NOW)
    #: Grows with every claim; only a fence.
    attempt: Mapped[int] = mapped_column(server_default="0")
    #: Errors, and deaths of the worker while it ran.
    failures: Mapped[int] = mapped_column(server_default="0")
    max_failures: Mapped[int] = mapped_column(server_default="3")
    #: Times a service was away, or the whole node was lost.
    outages: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]
    lease_owner: Mapped[str | None]
    payload: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    #: What the stage found and later stages need.
    result: Mapped[dict[str, Any] | None]
    model_id: Mapped[int | None] = mapped_column(ForeignKey("models.model_id"))
    progress: Mapped[float] = mapped_column(server_default="0")
    error_class: Mapped[str | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    device_seconds: Mapped[float | None]


class Scene(Base):
    """A span between two cuts. Text and pointers are those of the published run; ``live`` when published."""

    __tablename__ = "scenes"
    __table_args__ = (
        UniqueConstraint("video_id", "split_version", "idx"),
        Index(None, "user_id", "video_id", postgresql_where=text("live")),
        Index(
            "ix_scenes_tsv",
            "tsv",
            postgresql_using="gin",
            postgresql_where=text("live"),
        ),
    )

    scene_id: Mapped[UUID] = mapped_column(primary_key=True)
    video_id: Mapped[str] = mapped_column(ForeignKey("videos.video_id", ondelete="CASCADE"))
    user_id: Mapped[str]
    #: The run that split the video.
    split_version: Mapped[int]
    idx: Mapped[int]
    start_s: Mapped[float]
    end_s: Mapped[float]
    #: What began it: start, cut, gradual.
    kind: Mapped[str]
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


class TranscriptPart(Base):
    """What one asr job heard in one window; scenes get their words from these."""

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
    model_id: Mapped[int | None] = mapped_column(ForeignKey("models.model_id"))


class Model(Base):
    """A model whose outputs are stored: vectors of different models live side by side."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("name", "revision"),)

    model_id: Mapped[int] = mapped_column(Integer, Identity(), primary_key=True)
    name: Mapped[str]
    revision: Mapped[str]
    family: Mapped[str]
    dim: Mapped[int | None]
    #: cosine or l2
    metric: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class Embedding(Base):
    """One vector of one scene by one model; HNSW indexes are made per model (db/vectors.py)."""

    __tablename__ = "embeddings"
    __table_args__ = (Index(None, "user_id", "model_id"),)

    scene_id: Mapped[UUID] = mapped_column(
        ForeignKey("scenes.scene_id", ondelete="CASCADE"), primary_key=True
    )
    model_id: Mapped[int] = mapped_column(ForeignKey("models.model_id"), primary_key=True)
    #: 0 for text; the keyframe's ordinal for vision.
    ordinal: Mapped[int] = mapped_column(primary_key=True)
    run: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    vec: Mapped[Any] = mapped_column(HALFVEC)


class Face(Base):
    """A face found in a keyframe. Box and landmarks in that keyframe's pixels."""

    __tablename__ = "faces"
    __table_args__ = (Index(None, "scene_id"), Index(None, "user_id"))

    face_id: Mapped[UUID] = mapped_column(primary_key=True)
    scene_id: Mapped[UUID] = mapped_column(ForeignKey("scenes.scene_id", ondelete="CASCADE"))
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
    model_id: Mapped[int] = mapped_column(ForeignKey("models.model_id"))
    vec: Mapped[Any] = mapped_column(HALFVEC)
