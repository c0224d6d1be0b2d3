"""How full storages were, day by day."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the tables."""
    op.create_table(
        "storage_samples",
        sa.Column("storage_id", sa.Uuid(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["storage_id"],
            ["storage_backends.id"],
            name=op.f("fk_storage_samples_storage_id_storage_backends"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("storage_id", "day", name=op.f("pk_storage_samples")),
    )


def downgrade() -> None:
    """Change them back."""
    op.drop_table("storage_samples")
