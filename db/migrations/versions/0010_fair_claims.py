"""Order claims by the device time of users, and give housekeeping a queue of its own.

``jobs`` gets the account whose share a job takes, its stage's depth and its count of deferrals; ``queue_usage`` says
how much device time an account has had in a queue and whether it waits there. Jobs that wait are taken over.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

# As of this revision; later ones may know other stages.
_HOUSEKEEPING = "('sweep', 'erase', 'match', 'forget', 'move', 'late_photos', 'revise', 'drop')"
_DEPTH = "CASE WHEN stage = 'split' THEN 0 WHEN stage IN ('audio', 'vision', 'face', 'ocr') THEN 1 WHEN stage = 'asr' THEN 2 WHEN stage = 'text' THEN 3 ELSE 4 END"
_OPEN = "state IN ('queued', 'running', 'failed')"


def upgrade() -> None:
    op.add_column(
        "jobs",
        sa.Column(
            "account",
            sa.Text(),
            sa.Computed("CASE WHEN subject_kind = 'switch' THEN '' ELSE user_id END", persisted=True),
            nullable=False,
        ),
    )
    op.add_column("jobs", sa.Column("depth", sa.Integer(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("deferrals", sa.Integer(), server_default="0", nullable=False))
    op.execute(f"UPDATE jobs SET depth = {_DEPTH} WHERE {_OPEN}")
    op.execute(f"UPDATE jobs SET lane = 'housekeeping' WHERE {_OPEN} AND stage IN {_HOUSEKEEPING}")
    op.drop_index("ix_jobs_claim", table_name="jobs")
    op.drop_index("ix_jobs_running", table_name="jobs")
    op.create_index(
        "ix_jobs_claim",
        "jobs",
        ["lane", "account", sa.text("priority DESC"), sa.text("depth DESC"), "not_before", "job_id"],
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "ix_jobs_running", "jobs", ["lane", "account"], postgresql_where=sa.text("state = 'running'")
    )
    op.create_index(
        "ix_jobs_due", "jobs", ["lane", "not_before"], postgresql_where=sa.text("state = 'queued'")
    )
    op.create_index(
        "ix_videos_open",
        "videos",
        ["user_id"],
        postgresql_where=sa.text("state IN ('uploaded', 'processing')"),
    )
    op.create_table(
        "queue_usage",
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("level", sa.Double(), server_default=sa.text("'-infinity'"), nullable=False),
        sa.Column("half_life_s", sa.Double(), server_default="3600", nullable=False),
        sa.Column("total_s", sa.Double(), server_default="0", nullable=False),
        sa.Column("waiting", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("waiting_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "updated_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("queue", "account", name=op.f("pk_queue_usage")),
    )
    op.create_index(
        "ix_queue_usage_waiting",
        "queue_usage",
        ["queue", "level", "waiting_since"],
        postgresql_where=sa.text("waiting"),
    )
    op.create_index(
        "ix_queue_usage_due",
        "queue_usage",
        ["queue", "due_at"],
        postgresql_where=sa.text("NOT waiting AND due_at IS NOT NULL"),
    )
    # Every end of an attempt changes a row and its place in an index.
    op.execute(
        "ALTER TABLE queue_usage SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500)"
    )
    op.execute("ALTER TABLE queue_usage ENABLE ROW LEVEL SECURITY")
    op.execute(
        "CREATE POLICY own_rows ON queue_usage FOR SELECT"
        " USING (account = nullif(current_setting('app.user_id', true), ''))"
    )
    op.execute(
        "INSERT INTO queue_usage (queue, account, waiting, waiting_since)"
        " SELECT lane, account, true, min(not_before) FROM jobs WHERE state = 'queued' GROUP BY lane, account"
    )


def downgrade() -> None:
    op.drop_table("queue_usage")
    op.drop_index("ix_videos_open", table_name="videos")
    op.drop_index("ix_jobs_due", table_name="jobs")
    op.drop_index("ix_jobs_running", table_name="jobs")
    op.drop_index("ix_jobs_claim", table_name="jobs")
    op.execute(f"UPDATE jobs SET lane = 'media' WHERE {_OPEN} AND lane = 'housekeeping'")
    op.drop_column("jobs", "deferrals")
    op.drop_column("jobs", "depth")
    op.drop_column("jobs", "account")
    op.create_index(
        "ix_jobs_claim",
        "jobs",
        ["lane", "user_id", sa.text("priority DESC"), "created_at", "job_id"],
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "ix_jobs_running", "jobs", ["lane", "user_id"], postgresql_where=sa.text("state = 'running'")
    )
