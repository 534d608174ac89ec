"""Keep the frequent statements of the ledger independent of its age: indexes of what is open, and of what can be removed.

Revision ID: 0018
Revises: 0017
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_ENDED = "state IN ('done', 'reused', 'cancelled', 'skipped')"


def upgrade() -> None:
    op.add_column("runs", sa.Column("superseded_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(
        "UPDATE runs SET superseded_at = coalesce(runs.ended_at, clock_timestamp())"
        " FROM videos WHERE videos.video_id = runs.video_id AND runs.run < videos.run"
    )
    op.create_index("ix_runs_open", "runs", ["video_id"], postgresql_where=sa.text("ended_at IS NULL"))
    op.create_index(
        "ix_runs_superseded",
        "runs",
        ["superseded_at"],
        postgresql_where=sa.text("superseded_at IS NOT NULL"),
    )
    op.create_index(
        "ix_jobs_live",
        "jobs",
        ["subject_kind", "subject_id", "run", "stage"],
        postgresql_where=sa.text("state IN ('queued', 'running')"),
    )
    op.create_index(
        "ix_jobs_removable",
        "jobs",
        ["finished_at"],
        postgresql_where=sa.text(f"(video_id IS NULL OR queue = 'housekeeping') AND {_ENDED}"),
    )
    op.create_index(
        "ix_people_open",
        "people",
        ["person_id"],
        postgresql_where=sa.text("ended_run < run AND deleted_at IS NULL"),
    )
    op.create_index(
        "ix_people_numbers",
        "people",
        ["user_id", sa.text("(CAST(substring(name from '^unknown ([0-9]{1,6})$') AS integer))")],
    )
    op.create_index(
        "ix_queue_usage_half_life",
        "queue_usage",
        ["half_life_s"],
        postgresql_where=sa.text("level > '-infinity'::float8"),
    )
    op.create_index(
        "ix_queue_usage_idle",
        "queue_usage",
        ["updated_at"],
        postgresql_where=sa.text("NOT waiting AND due_at IS NULL"),
    )


def downgrade() -> None:
    for name, table in (
        ("ix_queue_usage_idle", "queue_usage"),
        ("ix_queue_usage_half_life", "queue_usage"),
        ("ix_people_numbers", "people"),
        ("ix_people_open", "people"),
        ("ix_jobs_removable", "jobs"),
        ("ix_jobs_live", "jobs"),
        ("ix_runs_superseded", "runs"),
        ("ix_runs_open", "runs"),
    ):
        op.drop_index(name, table_name=table)
    op.drop_column("runs", "superseded_at")
