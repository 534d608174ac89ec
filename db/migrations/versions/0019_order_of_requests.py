"""Note when the newest request about a row was sent: an older one that arrives later must not undo it. Number a model's jobs.

Revision ID: 0019
Revises: 0017
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_TABLES = ("videos", "people", "model_switches")


def upgrade() -> None:
    for table in _TABLES:
        op.add_column(table, sa.Column("requested_at", sa.DateTime(timezone=True)))
        op.add_column(table, sa.Column("requested_by", sa.Text()))
    op.add_column("models", sa.Column("run", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    op.execute("DELETE FROM jobs WHERE subject_kind = 'model'")
    op.drop_column("models", "run")
    for table in _TABLES:
        op.drop_column(table, "requested_by")
        op.drop_column(table, "requested_at")
