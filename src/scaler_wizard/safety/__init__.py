"""Contract, breaker, gates, throttle, limits: pure state machines, tested with a frozen clock."""
