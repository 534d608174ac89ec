"""Count the work of a queue for an autoscaler, whose database user may call this function and read no table.

Revision ID: 0017
Revises: 0016
"""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # The body is parsed here, so a caller's search_path can't put another table in the place of `jobs`. Each half reads an
    # index (ix_jobs_due, ix_jobs_running) and stops at a thousand: a larger number would start no more nodes.
    op.execute(
        """
        CREATE FUNCTION queue_backlog(queue_name text) RETURNS bigint
        LANGUAGE sql STABLE STRICT PARALLEL RESTRICTED SECURITY DEFINER
        BEGIN ATOMIC
            SELECT count(*) FROM (
                (SELECT FROM jobs WHERE queue = queue_name AND state = 'queued' AND not_before <= now() LIMIT 1000)
                UNION ALL
                (SELECT FROM jobs WHERE queue = queue_name AND state = 'running' LIMIT 1000)
            ) AS work;
        END
        """
    )
    op.execute("REVOKE ALL ON FUNCTION queue_backlog(text) FROM PUBLIC")


def downgrade() -> None:
    op.execute("DROP FUNCTION queue_backlog(text)")
