"""The command line: one file per command; each parses, calls and prints. Torch is never imported here."""
