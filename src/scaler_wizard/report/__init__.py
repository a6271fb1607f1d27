"""A finished run directory to one self-contained HTML page. No torch."""
