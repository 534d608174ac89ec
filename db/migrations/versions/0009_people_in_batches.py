"""Erase, merge and split people in batches: which tracks an act moved, which scenes an erasure has still to look at.

Cost: three new columns without defaults (no rewrite), two small partial indexes, and ``face_tracks`` gets its index by
person once more, ordered by video (about 1 s for a million tracks, during which no track is written).

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

MINE = "user_id = nullif(current_setting('app.user_id', true), '')"
TABLES = ("moved_tracks", "erasure_scenes")


def upgrade() -> None:
    op.add_column("people", sa.Column("moving_event", sa.BigInteger(), nullable=True))
    op.add_column("people", sa.Column("uploads_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("face_decisions", sa.Column("event_id", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_face_decisions_event_id"), "face_decisions", ["event_id"])
    op.create_index(
        "ix_people_moving", "people", ["user_id"], postgresql_where=sa.text("moving_event IS NOT NULL")
    )
    op.create_index(
        "ix_people_merged_into",
        "people",
        ["merged_into"],
        postgresql_where=sa.text("merged_into IS NOT NULL"),
    )
    op.create_index("ix_jobs_failed", "jobs", ["user_id"], postgresql_where=sa.text("state = 'failed'"))
    op.create_index(
        op.f("ix_face_tracks_person_id_video_id_track_id"),
        "face_tracks",
        ["person_id", "video_id", "track_id"],
    )
    op.drop_index(op.f("ix_face_tracks_person_id"), table_name="face_tracks")
    op.create_table(
        "moved_tracks",
        sa.Column("event_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("video_id", sa.Text(), nullable=False),
        sa.Column("track_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["video_id"], ["videos.video_id"], name=op.f("fk_moved_tracks_video_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("event_id", "video_id", "track_id", name=op.f("pk_moved_tracks")),
    )
    op.create_table(
        "erasure_scenes",
        sa.Column("person_id", sa.Text(), nullable=False),
        sa.Column("video_id", sa.Text(), nullable=False),
        sa.Column("scene_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["person_id"], ["people.person_id"], name=op.f("fk_erasure_scenes_person_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["video_id"], ["videos.video_id"], name=op.f("fk_erasure_scenes_video_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("person_id", "video_id", "scene_id", name=op.f("pk_erasure_scenes")),
    )
    for table in TABLES:
        op.create_index(op.f(f"ix_{table}_video_id"), table, ["video_id"])
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY own_rows ON {table} FOR SELECT USING ({MINE})")


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)
    op.create_index(op.f("ix_face_tracks_person_id"), "face_tracks", ["person_id"])
    op.drop_index(op.f("ix_face_tracks_person_id_video_id_track_id"), table_name="face_tracks")
    op.drop_index("ix_jobs_failed", table_name="jobs")
    op.drop_index("ix_people_merged_into", table_name="people")
    op.drop_index("ix_people_moving", table_name="people")
    op.drop_column("face_decisions", "event_id")
    op.drop_column("people", "uploads_until")
    op.drop_column("people", "moving_event")
