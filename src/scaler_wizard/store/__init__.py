"""Workspace, run directory, checkpoints, state database, flight log: everything that touches the disk."""
