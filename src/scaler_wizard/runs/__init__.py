"""The run engine inside a worker: phases, gates, breaker, checkpoints, telemetry. Knows no recipe."""
