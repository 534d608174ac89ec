"""Show the rows of one user only to whoever does not own the tables: the second wall between users.

The role that requests are read as is made by ``db.row_security.ALLOW``, if this database user may; it stays after a downgrade,
as other databases of the server may use it. The two views are for finding words: under row-level security a condition
that is not leakproof (``tsv @@ query``, ``tokens && array``) can't use an index. They let the same rows through.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from alembic import op

from db.row_security import ALLOW, DISALLOW

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# A setting that was local to an earlier transaction is empty, and so is the user of jobs that are nobody's.
MINE = "user_id = nullif(current_setting('app.user_id', true), '')"
TABLES = (
    "videos",
    "jobs",
    "scenes",
    "transcript_parts",
    "embeddings",
    "lexical_weights",
    "scene_tags",
    "screen_texts",
    "faces",
    "people",
    "person_photos",
    "person_profiles",
    "face_tracks",
    "scene_people",
    "people_events",
    "face_decisions",
)
VIEWS = {
    "searched_scenes": (
        "scenes",
        "scene_id, video_id, user_id, idx, start_s, end_s, language, live, tsv, screen_tsv, text_run",
    ),
    "searched_weights": ("lexical_weights", "scene_id, model_id, run, user_id, tokens, weights"),
}


def upgrade() -> None:
    policies = dict.fromkeys(TABLES, MINE)
    policies["runs"] = f"EXISTS (SELECT FROM videos v WHERE v.video_id = runs.video_id AND v.{MINE})"
    for table, condition in policies.items():
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY own_rows ON {table} FOR SELECT USING ({condition})")
    for view, (table, columns) in VIEWS.items():
        # A view is read with its owner's rights; who asks decides here, too. No security barrier: that loses the index.
        op.execute(
            f"CREATE VIEW {view} AS SELECT {columns} FROM {table}"
            f" WHERE {MINE} OR (SELECT NOT row_security_active('{table}'::regclass))"
        )
    op.execute(ALLOW)


def downgrade() -> None:
    op.execute(DISALLOW)
    for view in VIEWS:
        op.execute(f"DROP VIEW {view}")
    for table in ("runs", *TABLES):
        op.execute(f"DROP POLICY own_rows ON {table}")
        op.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
