"""A figure with its numbers, and how all figures look: the same everywhere, light or dark."""

from __future__ import annotations

import csv
import functools
import io
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

P = ParamSpec("P")
R = TypeVar("R")

INK = "#1b1f24"
"""The colour of text and axes; the page puts its own there."""

# Each stands out at least 3 to 1 from white and from the page's dark background, in this order
# also for the colour-blind.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b0619a", "#9a7400", "#7a6fdc", "#c2455a")
GREY = "#808080"
MARKERS = "osD^vPX"
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))

WIDTH = 5.2
"""Inches; a phone shows it at two thirds, so letters are large."""

DPI = 160.0

TALLEST = 200.0
"""Inches; matplotlib draws at most 65,536 pixels."""

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""How a cell begins that a spreadsheet runs."""

STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "legend.frameon": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 11.0,
    "axes.titlesize": 11.0,
    "axes.labelsize": 11.0,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "legend.fontsize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 6.0,
    "svg.fonttype": "path",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.dpi": DPI,
}


@dataclass(frozen=True)
class Plot:
    """A figure and what it shows.

    Args:
        name: of its files.
        rows: its numbers, the first row being the head.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    rows: Sequence[Sequence[object]]

    def __post_init__(self) -> None:
        """Lay the figure out once, so that no drawing does it again."""
        engine = self.figure.get_layout_engine()
        if engine is not None:
            with warnings.catch_warnings():
                # names so long that nothing is left for the axes; the numbers are in the CSV
                warnings.filterwarnings("ignore", "constrained_layout not applied")
                engine.execute(self.figure)
        self.figure.set_layout_engine("none")

    def svg(self) -> str:
        """Draw it on a transparent background; the same plot gives the same text."""
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with matplotlib.rc_context():
            _set_style(**{"svg.hashsalt": f"kd_plugins {self.name}"})
            FigureCanvasSVG(self.figure).print_svg(buffer, metadata=nothing)
        self.figure.set_dpi(DPI)  # print_svg leaves 72 behind
        return buffer.getvalue()

    def png(self) -> bytes:
        """Draw it on white."""
        buffer = io.BytesIO()
        with matplotlib.rc_context():
            _set_style()
            self.figure.set_facecolor("white")
            FigureCanvasAgg(self.figure).print_png(buffer, metadata={"Software": None})
            self.figure.set_facecolor("none")
        return buffer.getvalue()

    def csv(self) -> str:
        """Return its numbers as comma-separated values, of which a spreadsheet runs none."""
        buffer = io.StringIO()
        rows = [[cell(value) for value in row] for row in self.rows]
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        return buffer.getvalue()


@dataclass(frozen=True)
class Look:
    """How an arm is drawn in every figure."""

    colour: str
    marker: str
    dashes: str | tuple[int, tuple[float, ...]]


Looks = Mapping[str, Look]


def looks(arms: Iterable[str], control: str | None) -> dict[str, Look]:
    """Give the control grey and every other arm a colour, a marker and dashes of its own."""
    others = [arm for arm in arms if arm != control]
    found = {
        arm: Look(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])
        for i, arm in enumerate(others)
    }
    return found if control is None else {control: Look(GREY, "h", "-"), **found}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Let a function draw in the style of the house, whatever the reader's settings."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context():
            _set_style()
            return draw(*args, **kwargs)

    return drawn


def panels(count: int, height: float = 3.4, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many panels, each ``height`` inches high."""
    columns = min(columns, count)
    rows = -(-count // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    figure = Figure(figsize=(WIDTH, min(rows * height, TALLEST)), layout=layout)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for empty in grid[count:]:
        empty.remove()
    return figure, list(grid[:count])


def legend(figure: Figure, axes: Axes) -> None:
    """Put the legend of a panel under the figure, each label once and the teacher's last."""
    handles, labels = axes.get_legend_handles_labels()
    found = sorted(zip(labels, handles, strict=True), key=lambda one: one[0].startswith("teacher"))
    once = dict(found)
    columns = (
        1 if max(map(len, once), default=0) > 24 else 2 if len(once) == 4 else min(3, len(once))
    )
    if once:
        figure.legend(list(once.values()), list(once), loc="outside lower center", ncols=columns)


def logarithmic(axis: Axis, values: Iterable[float]) -> None:
    """Make an axis logarithmic if its values are above zero and span more than fivefold."""
    values = list(values)
    if not values or min(values) <= 0 or max(values) < 5 * min(values):
        return
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    few = max(values) < 100 * min(values)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def plain(text: str) -> str:
    """Return a user's text so that matplotlib reads no mathematics into it and draws it in a line.

    A first underscore would leave it out of the legend; control characters are no XML.
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    shown = re.sub("^_", "\N{MODIFIER LETTER LOW MACRON}", printable)
    return shown.replace("$", r"\$")


def cell(value: object) -> object:
    """Return a value of a CSV; text that a spreadsheet would run gets an apostrophe in front.

    >>> cell("=1+1"), cell(-1.5), cell("student")
    ("'=1+1", -1.5, 'student')
    """
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULAS):
        return f"'{value}"
    return value


def slug(text: str) -> str:
    """Return a name for files, of at most 80 letters.

    >>> slug("validation force RMSE (eV/Å)")
    'validation-force-rmse-ev-a'
    """
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_only.lower())[:80].strip("-") or "figure"


def inline(svg: str, prefix: str, label: str) -> str:
    """Return an SVG to put into a page: names of its own, the page's colour, no preamble.

    Args:
        svg: as `Plot.svg` draws it.
        prefix: letters that no other figure of the page has.
        label: what it shows, without characters that mean something in XML.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg).replace("url(#", f"url(#{prefix}-")
    svg = svg.replace(INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _set_style(**more: str) -> None:
    matplotlib.rcdefaults()
    matplotlib.rcParams.update({**STYLE, **more})
