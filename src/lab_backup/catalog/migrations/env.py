"""How Alembic runs the migrations: on the connection that it is given."""

from alembic import context

from lab_backup.catalog.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, transaction_per_migration=True
)
with context.begin_transaction():
    context.run_migrations()
