"""Pictures of data in text."""

from __future__ import annotations

from scaler_wizard.data.lengths import LengthSummary

BAR_WIDTH = 40


def histogram(lengths: LengthSummary | None) -> list[str]:
    """One line for each bin of a length histogram that is not empty: `  <=   128   1,234 ########`."""
    if lengths is None:
        return []
    most = max(rows for _, rows in lengths.bars)
    lines = [f"  rows by length in {lengths.unit}"]
    for limit, rows in lengths.bars:
        label = f"<= {limit:>7,}" if limit < 1 << 40 else "   longer "
        lines.append(f"  {label} {rows:>11,} {'#' * max(1, round(BAR_WIDTH * rows / most))}")
    return lines
