"""A figure with its numbers, and the style that all figures share, light or dark."""

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
"""Colour of text and axes. The page replaces it by its own colour of text."""

# Each colour has a contrast of at least 3 to 1 with white and with the page's dark background.
# Neighbours in this order can be distinguished with colour blindness, too.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#b0619a", "#9a7400", "#7a6fdc", "#c2455a")
GREY = "#808080"
MARKERS = "osD^vPX"
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))

WIDTH = 5.2
"""Inches. A phone shows a figure at two thirds of its size, so the font is large."""
DPI = 160.0
TALLEST = 200.0
"""Inches. matplotlib draws at most 65,536 pixels."""

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""How a cell begins that a spreadsheet would run as a formula."""
LONG_LABEL = 24
"""Letters of a label above which a legend has one column."""

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
    "svg.fonttype": "path",  # no font has to be there where the page is read
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.dpi": DPI,
}


# --- A figure and its files ---------------------------------------------------------------------


@dataclass(frozen=True)
class Plot:
    """A figure and the numbers that it shows.

    Args:
        name: of its files.
        title: above the figure.
        caption: below the figure.
        figure: as matplotlib draws it.
        rows: its numbers; the first row is the head.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    rows: Sequence[Sequence[object]]

    def __post_init__(self) -> None:
        """Lay the figure out once, so that SVG and PNG do not do it again."""
        engine = self.figure.get_layout_engine()
        if engine is not None:
            with warnings.catch_warnings():
                # Names can be so long that nothing is left for the axes. The CSV has the numbers.
                warnings.filterwarnings("ignore", "constrained_layout not applied")
                engine.execute(self.figure)
        self.figure.set_layout_engine("none")

    def svg(self) -> str:
        """Draw it on a transparent background; the same plot gives the same text."""
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with matplotlib.rc_context():
            # Without a salt matplotlib's ids within the SVG are random.
            _set_style(**{"svg.hashsalt": f"kd_plugins {self.name}"})
            FigureCanvasSVG(self.figure).print_svg(buffer, metadata=no_metadata)

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
        """Return its numbers as comma-separated values without formulas."""
        buffer = io.StringIO()
        rows = [[escape_cell(value) for value in row] for row in self.rows]
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        return buffer.getvalue()


def inline_svg(svg: str, prefix: str, label: str) -> str:
    """Return an SVG to put into a page: its own ids, the page's colour, no preamble.

    Args:
        svg: as `Plot.svg` draws it.
        prefix: letters that no other figure of the page has.
        label: what it shows, as escaped text.
    """
    svg = svg[svg.index("<svg") :]

    # A style element in the page would apply to all of the page.
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", svg, flags=re.DOTALL)

    # Ids are unique in a page, not only in a figure.
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg).replace("url(#", f"url(#{prefix}-")

    svg = svg.replace(INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


# --- Style --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArmStyle:
    """Colour, marker and dashes of an arm, the same in every figure."""

    colour: str
    marker: str
    dashes: str | tuple[int, tuple[float, ...]]


ArmStyles = Mapping[str, ArmStyle]


def choose_styles(arms: Iterable[str], control: str | None) -> dict[str, ArmStyle]:
    """Return a style for each arm; the control is grey."""
    others = [arm for arm in arms if arm != control]
    styles = {
        arm: ArmStyle(PALETTE[i % len(PALETTE)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])
        for i, arm in enumerate(others)
    }
    if control is None:
        return styles
    return {control: ArmStyle(GREY, "h", "-"), **styles}


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Let a function draw in the style of this module, whatever matplotlib is set to."""

    @functools.wraps(draw)
    def draw_in_style(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context():
            _set_style()
            return draw(*args, **kwargs)

    return draw_in_style


def _set_style(**more: str) -> None:
    matplotlib.rcdefaults()
    matplotlib.rcParams.update({**STYLE, **more})


# --- Panels, legends, axes ----------------------------------------------------------------------


def make_panels(count: int, height: float = 3.4, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels.

    Args:
        count: number of panels.
        height: of a panel in inches.
        columns: panels beside each other, at most.
    """
    columns = min(columns, count)
    rows = -(-count // columns)  # rounded up

    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    figure = Figure(figsize=(WIDTH, min(rows * height, TALLEST)), layout=layout)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()

    for empty in grid[count:]:
        empty.remove()
    return figure, list(grid[:count])


def add_legend(figure: Figure, axes: Axes) -> None:
    """Put the legend of a panel under the figure, each label once and the teacher's last."""
    handles, labels = axes.get_legend_handles_labels()
    entries = sorted(
        zip(labels, handles, strict=True), key=lambda entry: entry[0].startswith("teacher")
    )
    handle_of = dict(entries)
    if not handle_of:
        return

    if max(map(len, handle_of)) > LONG_LABEL:
        columns = 1
    elif len(handle_of) == 4:
        columns = 2  # two rows of two instead of three and one
    else:
        columns = min(3, len(handle_of))
    figure.legend(
        list(handle_of.values()), list(handle_of), loc="outside lower center", ncols=columns
    )


def use_log_scale(axis: Axis, values: Iterable[float]) -> None:
    """Make an axis logarithmic if its values are above zero and span more than fivefold."""
    values = list(values)
    if not values or min(values) <= 0 or max(values) < 5 * min(values):
        return

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})

    # Below two decades, powers of ten alone would be one or two ticks.
    is_short = max(values) < 100 * min(values)
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if is_short else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


# --- Names that a user has given ----------------------------------------------------------------


def escape_text(text: str) -> str:
    """Return a user's text in one line in which matplotlib finds no mathematics."""
    # Control characters are not allowed in XML, and SVG is XML.
    printable = "".join(letter if letter.isprintable() else " " for letter in text)

    # matplotlib leaves a label that begins with an underscore out of the legend.
    visible = re.sub("^_", "\N{MODIFIER LETTER LOW MACRON}", printable)
    return visible.replace("$", r"\$")


def capitalize(text: str) -> str:
    """Return text with a capital first letter; `str.capitalize` would make ``RMSE`` small.

    >>> capitalize("force RMSE")
    'Force RMSE'
    """
    return text[:1].upper() + text[1:]


def escape_cell(value: object) -> object:
    """Return a value of a CSV; text that a spreadsheet would run gets an apostrophe in front.

    >>> escape_cell("=1+1"), escape_cell(-1.5), escape_cell("student")
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
