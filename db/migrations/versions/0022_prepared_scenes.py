"""Keep what a run will show of scenes that callers see already, so that one short transaction can show it.

Revision ID: 0022
Revises: 0021
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "prepared_scenes",
        sa.Column("scene_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("transcript", sa.Text(), nullable=False),
        sa.Column("segments", JSONB(), nullable=False),
        sa.Column("language", sa.Text()),
        sa.Column("tsv", TSVECTOR(), nullable=False),
        sa.Column("sidecar_key", sa.Text(), nullable=False),
        sa.Column("text_run", sa.Integer()),
        sa.Column("vision_run", sa.Integer()),
        sa.Column("face_run", sa.Integer()),
        sa.Column("screen_text", sa.Text(), nullable=False),
        sa.Column("screen_tsv", TSVECTOR(), nullable=False),
        sa.Column("ocr_run", sa.Integer()),
        sa.Column("not_looked_at", JSONB()),
        sa.PrimaryKeyConstraint("scene_id", name=op.f("pk_prepared_scenes")),
        sa.ForeignKeyConstraint(
            ["scene_id"],
            ["scenes.scene_id"],
            name=op.f("fk_prepared_scenes_scene_id_scenes"),
            ondelete="CASCADE",
        ),
    )
    op.execute("ALTER TABLE prepared_scenes ENABLE ROW LEVEL SECURITY")
    op.execute(
        "CREATE POLICY own_rows ON prepared_scenes FOR SELECT"
        " USING (user_id = nullif(current_setting('app.user_id', true), ''))"
    )


def downgrade() -> None:
    op.drop_table("prepared_scenes")
