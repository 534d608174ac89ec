"""Store people, their photos and profiles, face tracks, who is in a scene, and what humans said.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")


def _text(name: str, *, null: bool = False, default: str | None = None) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), nullable=null, server_default=default)


def _json(name: str, *, null: bool = False) -> sa.Column[object]:
    return sa.Column(name, postgresql.JSONB(astext_type=sa.Text()), nullable=null)


def _time(name: str, *, null: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=null, server_default=None if null else NOW)


def _key(table: str, column: str, target: str, ondelete: str | None = None) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [target], name=op.f(f"fk_{table}_{column}"), ondelete=ondelete)


def upgrade() -> None:
    op.create_table(
        "people",
        _text("person_id"),
        _text("user_id"),
        _text("name"),
        _text("kind", default="named"),
        sa.Column("run", sa.Integer(), server_default="0", nullable=False),
        sa.Column("ended_run", sa.Integer(), server_default="0", nullable=False),
        _text("merged_into", null=True),
        _time("created_at"),
        _time("deleted_at", null=True),
        _json("receipt", null=True),
        sa.CheckConstraint("kind IN ('named', 'unknown')", name=op.f("ck_people_kind")),
        sa.PrimaryKeyConstraint("person_id", name=op.f("pk_people")),
    )
    op.create_index(
        "uq_people_name",
        "people",
        ["user_id", sa.text("lower(name)")],
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL AND merged_into IS NULL"),
    )
    op.create_table(
        "person_photos",
        sa.Column("photo_id", sa.Uuid(), nullable=False),
        _text("person_id"),
        _text("user_id"),
        _text("storage_key"),
        _text("state", default="waiting"),
        _text("error_class", null=True),
        _text("error", null=True),
        sa.Column("model_id", sa.Integer(), nullable=True),
        sa.Column("vec", HALFVEC(), nullable=True),
        sa.Column("quality", sa.Double(), nullable=True),
        _json("box", null=True),
        _time("created_at"),
        sa.CheckConstraint(
            "state IN ('waiting', 'pending', 'good', 'refused', 'failed')",
            name=op.f("ck_person_photos_state"),
        ),
        _key("person_photos", "person_id", "people.person_id", "CASCADE"),
        _key("person_photos", "model_id", "models.model_id"),
        sa.PrimaryKeyConstraint("photo_id", name=op.f("pk_person_photos")),
        sa.UniqueConstraint("storage_key", name=op.f("uq_person_photos_storage_key")),
    )
    op.create_index(op.f("ix_person_photos_person_id"), "person_photos", ["person_id"])
    op.create_table(
        "person_profiles",
        _text("person_id"),
        sa.Column("model_id", sa.Integer(), nullable=False),
        _text("user_id"),
        sa.Column("vec", HALFVEC(), nullable=False),
        sa.Column("photos", sa.Integer(), nullable=False),
        sa.Column("tracks", sa.Integer(), server_default="0", nullable=False),
        _key("person_profiles", "person_id", "people.person_id", "CASCADE"),
        _key("person_profiles", "model_id", "models.model_id"),
        sa.PrimaryKeyConstraint("person_id", "model_id", name=op.f("pk_person_profiles")),
    )
    op.create_index(op.f("ix_person_profiles_user_id_model_id"), "person_profiles", ["user_id", "model_id"])
    op.create_table(
        "face_tracks",
        sa.Column("track_id", sa.Uuid(), nullable=False),
        sa.Column("scene_id", sa.Uuid(), nullable=False),
        _text("video_id"),
        _text("user_id"),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("track", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("ts_s", sa.Double(), nullable=False),
        _json("box"),
        sa.Column("vec", HALFVEC(), nullable=False),
        sa.Column("faces", sa.Integer(), nullable=False),
        _text("person_id", null=True),
        sa.Column("similarity", sa.Double(), nullable=True),
        sa.Column("votes", sa.Integer(), nullable=True),
        _text("decided_by", null=True),
        sa.CheckConstraint("decided_by IN ('machine', 'human')", name=op.f("ck_face_tracks_decided_by")),
        _key("face_tracks", "scene_id", "scenes.scene_id", "CASCADE"),
        _key("face_tracks", "video_id", "videos.video_id", "CASCADE"),
        _key("face_tracks", "model_id", "models.model_id"),
        _key("face_tracks", "person_id", "people.person_id", "SET NULL"),
        sa.PrimaryKeyConstraint("track_id", name=op.f("pk_face_tracks")),
        sa.UniqueConstraint("scene_id", "run", "track", name=op.f("uq_face_tracks_scene_id_run_track")),
    )
    op.create_index(op.f("ix_face_tracks_video_id"), "face_tracks", ["video_id"])
    op.create_index(op.f("ix_face_tracks_user_id_model_id"), "face_tracks", ["user_id", "model_id"])
    op.create_index(op.f("ix_face_tracks_person_id"), "face_tracks", ["person_id"])
    op.create_table(
        "scene_people",
        sa.Column("scene_id", sa.Uuid(), nullable=False),
        _text("person_id"),
        _text("user_id"),
        sa.Column("confidence", sa.Double(), nullable=False),
        sa.Column("frame_count", sa.Integer(), nullable=False),
        _key("scene_people", "scene_id", "scenes.scene_id", "CASCADE"),
        _key("scene_people", "person_id", "people.person_id", "CASCADE"),
        sa.PrimaryKeyConstraint("scene_id", "person_id", name=op.f("pk_scene_people")),
    )
    op.create_index(op.f("ix_scene_people_person_id"), "scene_people", ["person_id"])
    op.create_index(op.f("ix_scene_people_user_id_person_id"), "scene_people", ["user_id", "person_id"])
    op.create_table(
        "people_events",
        sa.Column("event_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        _text("user_id"),
        _text("kind"),
        _text("person_id", null=True),
        _json("payload"),
        sa.Column("undoes", sa.BigInteger(), nullable=True),
        _time("created_at"),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_people_events")),
        sa.UniqueConstraint("undoes", name=op.f("uq_people_events_undoes")),
    )
    op.create_index(op.f("ix_people_events_user_id_event_id"), "people_events", ["user_id", "event_id"])
    op.create_table(
        "face_decisions",
        sa.Column("decision_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        _text("user_id"),
        _text("video_id"),
        _text("person_id"),
        sa.Column("is_person", sa.Boolean(), nullable=False),
        sa.Column("ts_s", sa.Double(), nullable=False),
        _json("box"),
        _time("created_at"),
        _key("face_decisions", "video_id", "videos.video_id", "CASCADE"),
        _key("face_decisions", "person_id", "people.person_id", "CASCADE"),
        sa.PrimaryKeyConstraint("decision_id", name=op.f("pk_face_decisions")),
    )
    op.create_index(op.f("ix_face_decisions_video_id"), "face_decisions", ["video_id"])
    op.create_index(op.f("ix_face_decisions_person_id"), "face_decisions", ["person_id"])
    op.add_column(
        "scenes", sa.Column("people_changed", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.create_index(
        "ix_scenes_people_changed", "scenes", ["video_id"], postgresql_where=sa.text("people_changed")
    )


def downgrade() -> None:
    op.drop_index("ix_scenes_people_changed", table_name="scenes", postgresql_where=sa.text("people_changed"))
    op.drop_column("scenes", "people_changed")
    for table in (
        "face_decisions",
        "people_events",
        "scene_people",
        "face_tracks",
        "person_profiles",
        "person_photos",
        "people",
    ):
        op.drop_table(table)
    op.execute("DELETE FROM jobs WHERE subject_kind = 'person'")
