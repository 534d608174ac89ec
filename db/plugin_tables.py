"""Tables of plug-ins, for use in their Alembic revisions: rows of scenes that go with them and that only their user sees."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op


def create_scene_table(name: str, *columns: sa.Column[object], key: tuple[str, ...] = ()) -> None:
    """Create a table with ``scene_id``, ``run``, ``user_id`` and the given columns.

    Args:
        key: columns that, with scene and run, tell rows apart; none: a scene has one row per run.
    """
    op.create_table(
        name,
        sa.Column("scene_id", sa.Uuid, sa.ForeignKey("scenes.scene_id", ondelete="CASCADE"), nullable=False),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("scene_id", "run", *key),
    )
    op.execute(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY")
    op.execute(
        f"CREATE POLICY own_rows ON {name} FOR SELECT"
        " USING (user_id = nullif(current_setting('app.user_id', true), ''))"
    )
