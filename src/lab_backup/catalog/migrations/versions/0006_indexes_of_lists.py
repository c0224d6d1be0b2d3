"""Indexes by which lists of many backups, jobs and lines are read in their order."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# name, table, columns
MADE = (
    ("ix_backups_status_completed", "backups", ["status", "completed_at", "id"]),
    ("ix_backups_storage_completed", "backups", ["storage_backend_id", "completed_at", "id"]),
    ("ix_backups_source_name_completed", "backups", ["source_name", "completed_at", "id"]),
    ("ix_backups_source_id_completed", "backups", ["source_id", "completed_at", "id"]),
    ("ix_backups_source_type_completed", "backups", ["source_type", "completed_at", "id"]),
    ("ix_backups_source_name_id", "backups", ["source_name", "id"]),
    ("ix_backups_size_id", "backups", ["size", "id"]),
    ("ix_backups_compressed_size_id", "backups", ["compressed_size", "id"]),
    ("ix_jobs_status_created_at_id", "jobs", ["status", "created_at", "id"]),
    ("ix_jobs_type_created_at_id", "jobs", ["type", "created_at", "id"]),
    ("ix_jobs_lock_key_created_at", "jobs", ["lock_key", "created_at"]),
    ("ix_jobs_completed_at", "jobs", ["completed_at"]),
    ("ix_job_logs_job_id_timestamp_id", "job_logs", ["job_id", "timestamp", "id"]),
)
# What they make needless.
DROPPED = (
    ("ix_jobs_status_created_at", "jobs", ["status", "created_at"]),
    ("ix_job_logs_job_id_id", "job_logs", ["job_id", "id"]),
)


def upgrade() -> None:
    """Change the tables."""
    for name, table, columns in MADE:
        op.create_index(name, table, columns)
    op.create_index("ix_backups_tags", "backups", ["tags"], postgresql_using="gin", postgresql_ops={"tags": "jsonb_path_ops"})  # fmt: skip
    for name, table, _ in DROPPED:
        op.drop_index(name, table_name=table)


def downgrade() -> None:
    """Change them back."""
    for name, table, columns in DROPPED:
        op.create_index(name, table, columns)
    op.drop_index("ix_backups_tags", table_name="backups")
    for name, table, _ in MADE:
        op.drop_index(name, table_name=table)
