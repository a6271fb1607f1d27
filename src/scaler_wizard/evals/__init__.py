"""One probe per file, offline and seeded, each with its n, confidence interval and baseline."""
