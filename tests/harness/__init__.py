"""What tests of several rooms share; pytest puts this package's folder on sys.path (pyproject.toml)."""
