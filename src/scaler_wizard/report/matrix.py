"""A matrix of numbers in shaded cells, as a picture; knows nothing of what the numbers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from matplotlib.axes import Axes

from scaler_wizard.report.svg import label

ROW_UNITS: Final = 26
"""Height of a row."""
STRONG: Final = 0.6
"""Opacity of a full cell: its number stays readable in both themes."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One number and how strongly it is shaded."""

    text: str
    portion: float
    """0 to 1."""
    colour: str


def paint_matrix(
    axes: Axes, rows: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[int, int], Cell]
) -> None:
    """Paint cells by (row, column); a place without one stays empty."""
    for (y, x), cell in cells.items():
        axes.fill(
            [x - 0.47, x + 0.47, x + 0.47, x - 0.47], [y - 0.44, y - 0.44, y + 0.44, y + 0.44],
            color=cell.colour, alpha=STRONG * max(0.0, min(1.0, cell.portion)), linewidth=0,
        )  # fmt: skip
        axes.text(x, y, cell.text, ha="center", va="center", fontsize="small")
    axes.set_xticks(range(len(columns)), [label(column, 10) for column in columns])
    axes.set_yticks(range(len(rows)), [label(row, 14) for row in rows])
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
