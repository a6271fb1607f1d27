"""Matplotlib figures to inline SVG that follows the reader's light or dark theme.

Figures are drawn in the stand-in colours of `Ink`; the finished SVG has each replaced by a CSS variable of
the page, so that one picture serves both themes and print. Text stays text: it can be read out, searched
and copied. No pyplot, so no global figure registry.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

WIDTH_UNITS = 430
"""Width of every picture in its own units; on a phone of 360 px its text of 13 units is 10 px high."""
UNITS_PER_INCH = 72
FONT_UNITS = 13


@dataclass(frozen=True)
class Ink:
    """Stand-in colours, one per CSS variable; the values mean nothing but must not collide."""

    text: str = "#010101"
    muted: str = "#020202"
    grid: str = "#030303"
    before: str = "#040404"
    after: str = "#050505"
    third: str = "#060606"
    bad: str = "#070707"
    shade: str = "#080808"
    paper: str = "#090909"


INK = Ink()
_VARIABLES = {value: f"var(--{name})" for name, value in vars(INK).items()}
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a "$" in a name is a dollar, not a formula
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": FONT_UNITS,
    "axes.labelsize": FONT_UNITS,
    "axes.titlesize": FONT_UNITS,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": INK.muted,
    "axes.labelcolor": INK.text,
    "axes.titlecolor": INK.text,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": INK.grid,
    "grid.linewidth": 0.8,
    "text.color": INK.text,
    "xtick.color": INK.muted,
    "ytick.color": INK.muted,
    "xtick.labelcolor": INK.text,
    "ytick.labelcolor": INK.text,
    "xtick.labelsize": FONT_UNITS - 1,
    "ytick.labelsize": FONT_UNITS - 1,
    "legend.fontsize": FONT_UNITS - 0.5,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
}
# rc_context changes settings of the whole process for its duration.
_STYLE_LOCK = threading.Lock()


def draw(name: str, height: int, paint: Callable[[Figure], None]) -> str:
    """The SVG element that `paint` leaves on a figure of `WIDTH_UNITS` x `height`.

    Args:
        name: prefix of every id in the element, so that many can stand in one page.
    """
    with _STYLE_LOCK, mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH_UNITS / UNITS_PER_INCH, height / UNITS_PER_INCH), layout="constrained")
        paint(figure)
        target = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(target, metadata=nothing)
    return _inline(target.getvalue(), name)


def label(value: str, limit: int = 24) -> str:
    """Text for inside a picture: short, one line, of characters that its font has."""
    plain = "".join(char if char.isprintable() and ord(char) < 0x250 else "?" for char in value)
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def legend_above(axes: Axes, columns: int = 2, clearance: float = 0.0) -> None:
    """A legend over the plot, out of the way of the data; `clearance` above it in heights of the plot."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.0 + clearance), ncols=columns, borderaxespad=0.2,
        handlelength=1.8,
        columnspacing=1.4, borderpad=0.1,
    )  # fmt: skip


def _inline(document: str, name: str) -> str:
    body = document[document.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", body)
    body = body.replace("xlink:href=", "href=")
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", body, count=1)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    # The page's own font is narrower than the one measured with, so nothing overlaps.
    body = body.replace("'DejaVu Sans'", "inherit").replace("DejaVu Sans", "inherit")
    return body.strip()
