"""Keep how certain the cut is that begins a scene.

Revision ID: 0021
Revises: 0020
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Null for scenes of earlier splits: nothing is known of their cuts.
    op.add_column("scenes", sa.Column("cut_confidence", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("scenes", "cut_confidence")
