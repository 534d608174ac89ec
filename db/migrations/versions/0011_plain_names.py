"""Name columns, stages and states by the terms that the code and the docs use.

``jobs.lane`` is ``queue``, ``runs.made`` is ``stage_runs``, ``model_switches.flipped_at`` is ``activated_at``; stages and
states of jobs and switches that wait, run or have ended get their new names.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

#: (table, old column, new column)
_COLUMNS = (
    ("jobs", "lane", "queue"),
    ("runs", "made", "stage_runs"),
    ("model_switches", "flipped_at", "activated_at"),
)
_STAGES = {
    "erase": "erase_video",
    "forget": "erase_person",
    "revise": "rewrite_sidecars",
    "text_anew": "text_reembed",
    "vision_anew": "vision_reembed",
    "drop": "discard",
}
_JOB_STATES = ("queued", "running", "done", "{}", "failed", "cancelled", "skipped")


def _rename(table: str, column: str, names: dict[str, str]) -> None:
    cases = " ".join(f"WHEN '{old}' THEN '{new}'" for old, new in names.items())
    old_names = ", ".join(f"'{old}'" for old in names)
    op.execute(f"UPDATE {table} SET {column} = CASE {column} {cases} END WHERE {column} IN ({old_names})")


def _require(table: str, states: tuple[str, ...]) -> None:
    allowed = ", ".join(f"'{state}'" for state in states)
    op.create_check_constraint(op.f(f"ck_{table}_state"), table, f"state IN ({allowed})")


def upgrade() -> None:
    for table, old, new in _COLUMNS:
        op.alter_column(table, old, new_column_name=new)
    for table in ("jobs", "model_switches"):
        op.drop_constraint(op.f(f"ck_{table}_state"), table, type_="check")
    _rename("jobs", "stage", _STAGES)
    _rename("jobs", "state", {"carried": "reused"})
    _rename("model_switches", "state", {"flipped": "activated", "dropping": "discarding"})
    _require("jobs", tuple(state.format("reused") for state in _JOB_STATES))
    _require("model_switches", ("building", "ready", "activated", "discarding", "ended"))


def downgrade() -> None:
    for table in ("jobs", "model_switches"):
        op.drop_constraint(op.f(f"ck_{table}_state"), table, type_="check")
    _rename("jobs", "stage", {new: old for old, new in _STAGES.items()})
    _rename("jobs", "state", {"reused": "carried"})
    _rename("model_switches", "state", {"activated": "flipped", "discarding": "dropping"})
    _require("jobs", tuple(state.format("carried") for state in _JOB_STATES))
    _require("model_switches", ("building", "ready", "flipped", "dropping", "ended"))
    for table, old, new in _COLUMNS:
        op.alter_column(table, new, new_column_name=old)
