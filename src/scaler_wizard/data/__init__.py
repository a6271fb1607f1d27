"""Text, tasks and rows that recipes train on and measure with."""
