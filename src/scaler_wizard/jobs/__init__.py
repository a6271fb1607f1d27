"""The host of a workspace: owns the database, starts and supervises one worker process per run. No torch."""
