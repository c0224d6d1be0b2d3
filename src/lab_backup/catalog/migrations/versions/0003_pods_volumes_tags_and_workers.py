"""Pods, volumes, tags, workers, credentials of storages, and schedules of more than one source."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _of_a_host(name: str, *columns: sa.Column[object]) -> None:
    op.create_table(
        name,
        sa.Column("podman_host_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        *columns,
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["podman_host_id"],
            ["podman_hosts.id"],
            name=op.f(f"fk_{name}_podman_host_id_podman_hosts"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f(f"pk_{name}")),
        sa.UniqueConstraint("podman_host_id", "name", name=op.f(f"uq_{name}_podman_host_id_name")),
    )
    op.create_index(op.f(f"ix_{name}_podman_host_id"), name, ["podman_host_id"], unique=False)


def upgrade() -> None:
    """Change the tables."""
    _of_a_host(
        "pods",
        sa.Column("pod_id", sa.String(), nullable=False),
        sa.Column("containers", sa.Integer(), nullable=False),
    )
    _of_a_host("volumes", sa.Column("driver", sa.String(), nullable=False))
    op.create_table(
        "source_tags",
        sa.Column("source_type", sa.String(), nullable=False),
        sa.Column("source_id", sa.Uuid(), nullable=False),
        sa.Column("tag", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("source_type", "source_id", "tag", name=op.f("pk_source_tags")),
    )
    op.create_index(op.f("ix_source_tags_tag"), "source_tags", ["tag"], unique=False)
    op.create_table(
        "workers",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("queues", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("figures", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_workers")),
    )
    op.create_index(op.f("ix_workers_seen_at"), "workers", ["seen_at"], unique=False)
    op.add_column("containers", sa.Column("pod", sa.String(), server_default="", nullable=False))
    op.add_column("storage_backends", sa.Column("credentials", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("not_before", sa.DateTime(timezone=True), nullable=True))
    op.alter_column("backup_schedules", "source_id", existing_type=sa.Uuid(), nullable=True)
    op.add_column("backup_schedules", sa.Column("source_tag", sa.String(), nullable=True))
    op.add_column("backup_schedules", sa.Column("replicate_to", sa.Uuid(), nullable=True))
    op.add_column("backup_schedules", sa.Column("jitter_seconds", sa.Integer(), server_default="0", nullable=False))
    op.create_foreign_key(
        op.f("fk_backup_schedules_replicate_to_storage_backends"),
        "backup_schedules",
        "storage_backends",
        ["replicate_to"],
        ["id"],
    )


def downgrade() -> None:
    """Change them back. Schedules of more than one source, which the tables before cannot hold, go."""
    op.drop_constraint(
        op.f("fk_backup_schedules_replicate_to_storage_backends"), "backup_schedules", type_="foreignkey"
    )
    op.execute("DELETE FROM backup_schedules WHERE source_id IS NULL OR source_type NOT IN ('vm', 'container')")
    for table, column in (
        ("backup_schedules", "jitter_seconds"),
        ("backup_schedules", "replicate_to"),
        ("backup_schedules", "source_tag"),
        ("jobs", "not_before"),
        ("storage_backends", "credentials"),
        ("containers", "pod"),
    ):
        op.drop_column(table, column)
    op.alter_column("backup_schedules", "source_id", existing_type=sa.Uuid(), nullable=False)
    for table in ("workers", "source_tags", "volumes", "pods"):
        op.drop_table(table)
