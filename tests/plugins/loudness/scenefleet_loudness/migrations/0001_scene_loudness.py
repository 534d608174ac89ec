"""Keep the level of each scene.

Revision ID: 0001
"""

import sqlalchemy as sa
from alembic import op

from db.plugin_tables import create_scene_table

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_scene_table("scene_loudness", sa.Column("dbfs", sa.Double, nullable=False))


def downgrade() -> None:
    op.drop_table("scene_loudness")
