"""Alembic's entry: runs the steps on the connection that `coordinator.schema.migrate` passes."""

from alembic import context

from coordinator.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
