"""Names and addresses beside the audit log instead of in it, so that they can be erased."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Change the tables."""
    op.create_table(
        "personal_data",
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("value", sa.String(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_personal_data_user_id_users"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_personal_data")),
    )
    op.create_index(op.f("ix_personal_data_user_id"), "personal_data", ["user_id"], unique=False)


def downgrade() -> None:
    """Change them back."""
    op.drop_index(op.f("ix_personal_data_user_id"), table_name="personal_data")
    op.drop_table("personal_data")
