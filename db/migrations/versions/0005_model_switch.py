"""Store switches of the searched model, and which model is active.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")


def _time(name: str, *, null: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=null, server_default=None if null else NOW)


def _model(table: str, column: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], ["models.model_id"], name=op.f(f"fk_{table}_{column}"))


def upgrade() -> None:
    op.create_table(
        "model_switches",
        sa.Column("switch_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("from_model", sa.Integer(), nullable=False),
        sa.Column("to_model", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), server_default="building", nullable=False),
        sa.Column("run", sa.Integer(), server_default="1", nullable=False),
        sa.Column("total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("done", sa.BigInteger(), server_default="0", nullable=False),
        _time("seen_until", null=True),
        sa.Column("seen_video", sa.Text(), server_default="", nullable=False),
        _time("created_at"),
        _time("ready_at", null=True),
        _time("flipped_at", null=True),
        _time("ended_at", null=True),
        sa.CheckConstraint(
            "state IN ('building', 'ready', 'flipped', 'dropping', 'ended')",
            name=op.f("ck_model_switches_state"),
        ),
        _model("model_switches", "from_model"),
        _model("model_switches", "to_model"),
        sa.PrimaryKeyConstraint("switch_id", name=op.f("pk_model_switches")),
    )
    op.create_index(
        "uq_model_switches_open",
        "model_switches",
        ["kind"],
        unique=True,
        postgresql_where=sa.text("state <> 'ended'"),
    )
    op.create_table(
        "active_models",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        _time("changed_at"),
        _model("active_models", "model_id"),
        sa.PrimaryKeyConstraint("kind", name=op.f("pk_active_models")),
    )
    op.create_index(op.f("ix_videos_indexed_at_video_id"), "videos", ["indexed_at", "video_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_videos_indexed_at_video_id"), table_name="videos")
    op.drop_table("active_models")
    op.drop_table("model_switches")
    op.execute("DELETE FROM jobs WHERE subject_kind = 'switch'")
