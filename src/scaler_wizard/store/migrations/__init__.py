"""Schema migrations (Alembic), run by `database.Database` when it opens a workspace."""
