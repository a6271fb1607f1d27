"""The training step: batches in, step results out. Knows nothing about recipes."""
