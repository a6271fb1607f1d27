"""Alembic's entry point: migrates over the connection that `database` passes in."""

from alembic import context

from scaler_wizard.store.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,  # SQLite alters a table by making a new one
    transactional_ddl=True,  # `database` opens SQLite transactions itself, so that DDL rolls back too
)
with context.begin_transaction():
    context.run_migrations()
