"""Renditions: what a browser plays of a video.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("videos", sa.Column("rendition", JSONB()))


def downgrade() -> None:
    op.drop_column("videos", "rendition")
