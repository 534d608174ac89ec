"""Keep the text that scenes show, line by line and searchable.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "screen_texts",
        sa.Column("scene_id", sa.Uuid(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("sightings", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(
            ["scene_id"], ["scenes.scene_id"], name=op.f("fk_screen_texts_scene_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.model_id"], name=op.f("fk_screen_texts_model_id")),
        sa.PrimaryKeyConstraint("scene_id", "run", "place", name=op.f("pk_screen_texts")),
    )
    op.add_column("scenes", sa.Column("screen_text", sa.Text(), server_default="", nullable=False))
    op.add_column("scenes", sa.Column("screen_tsv", postgresql.TSVECTOR(), nullable=True))
    op.add_column("scenes", sa.Column("ocr_run", sa.Integer(), nullable=True))
    op.create_index(
        "ix_scenes_screen_tsv",
        "scenes",
        ["screen_tsv"],
        postgresql_using="gin",
        postgresql_where=sa.text("live"),
    )


def downgrade() -> None:
    op.drop_index("ix_scenes_screen_tsv", table_name="scenes", postgresql_using="gin")
    op.drop_column("scenes", "ocr_run")
    op.drop_column("scenes", "screen_tsv")
    op.drop_column("scenes", "screen_text")
    op.drop_table("screen_texts")
