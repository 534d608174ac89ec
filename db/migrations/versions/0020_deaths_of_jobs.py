"""Count the deaths of a job's processes, and keep what no process survived to look at.

Revision ID: 0020
Revises: 0017
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("deaths", "deaths_alone"):
        op.add_column("jobs", sa.Column(name, sa.Integer(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("alone_attempt", sa.Integer()))
    op.add_column("jobs", sa.Column("not_looked_at", JSONB()))
    op.create_index(
        "ix_jobs_not_looked_at", "jobs", ["video_id"], postgresql_where=sa.text("not_looked_at IS NOT NULL")
    )
    op.add_column("scenes", sa.Column("not_looked_at", JSONB()))


def downgrade() -> None:
    op.drop_column("scenes", "not_looked_at")
    op.drop_index("ix_jobs_not_looked_at", "jobs")
    for name in ("not_looked_at", "alone_attempt", "deaths_alone", "deaths"):
        op.drop_column("jobs", name)
