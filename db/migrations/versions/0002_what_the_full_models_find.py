"""Store what the full models find: lexical weights, picture tags, quality and track of a face.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import SPARSEVEC
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "lexical_weights",
        sa.Column("scene_id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("tokens", postgresql.ARRAY(sa.Integer()), nullable=False),
        sa.Column("weights", SPARSEVEC(), nullable=False),
        sa.ForeignKeyConstraint(
            ["scene_id"], ["scenes.scene_id"], name=op.f("fk_lexical_weights_scene_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.model_id"], name=op.f("fk_lexical_weights_model_id")),
        sa.PrimaryKeyConstraint("scene_id", "model_id", "run", name=op.f("pk_lexical_weights")),
    )
    op.create_index("ix_lexical_weights_tokens", "lexical_weights", ["tokens"], postgresql_using="gin")
    op.create_index(op.f("ix_lexical_weights_user_id_model_id"), "lexical_weights", ["user_id", "model_id"])
    op.create_table(
        "scene_tags",
        sa.Column("scene_id", sa.Uuid(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("tags", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(
            ["scene_id"], ["scenes.scene_id"], name=op.f("fk_scene_tags_scene_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.model_id"], name=op.f("fk_scene_tags_model_id")),
        sa.PrimaryKeyConstraint("scene_id", "run", name=op.f("pk_scene_tags")),
    )
    op.add_column("faces", sa.Column("quality", sa.Double(), nullable=True))
    op.add_column("faces", sa.Column("track", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("faces", "track")
    op.drop_column("faces", "quality")
    op.drop_table("scene_tags")
    op.drop_index(op.f("ix_lexical_weights_user_id_model_id"), table_name="lexical_weights")
    op.drop_index("ix_lexical_weights_tokens", table_name="lexical_weights", postgresql_using="gin")
    op.drop_table("lexical_weights")
