"""How many jobs run at once on a host, and in a storage."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLES = ("kvm_hosts", "podman_hosts", "storage_backends")


def upgrade() -> None:
    """Change the tables."""
    for table in TABLES:
        op.add_column(table, sa.Column("at_once", sa.Integer(), server_default="0", nullable=False))


def downgrade() -> None:
    """Change them back."""
    for table in TABLES:
        op.drop_column(table, "at_once")
