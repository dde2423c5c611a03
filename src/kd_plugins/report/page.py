"""The page: one file of HTML that needs nothing else, and beside it a folder of its figures."""

from __future__ import annotations

import html
import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from kd_plugins.files import check_folder, write_bytes
from kd_plugins.report.metrics import metric
from kd_plugins.report.results import ExperimentResults, choose_arms, read_results
from kd_plugins.report.tables import (
    Table,
    arms_table,
    best_points_table,
    decisive_metrics,
    differences_table,
    format_markdown,
    mean_and_spread,
    measurements_table,
)
from kd_plugins.report.verdicts import Verdict, verdict
from kd_plugins.report.worth import worth_of_best

FIGURE_FILES = (".png", ".svg", ".csv")
ALL_MEASUREMENTS = "Everything that was measured"
ARMS = "Arms; ★ the best mean, ☆ the second best"
MOST_MISSING = 8
"""Missing runs that are named; more are counted."""
CaptionedTable = tuple[str, list[str], list[list[str]]]
"""Caption, head and rows."""


@dataclass(frozen=True)
class Drawing:
    """A figure on the page.

    Args:
        title: above the figure.
        caption: below the figure.
        svg: safe to put into HTML as it is.
        path: of its files, relative to the page, without suffix.
    """

    title: str
    caption: str
    svg: str
    path: str


@dataclass(frozen=True)
class Chapter:
    """The part of the page about one experiment; `page.html` reads these names.

    Args:
        key: short name, the beginning of the names of its files and ids.
        experiment: its results.
        worth: the best student beside its teacher; empty without a teacher.
        verdicts: one for each arm but the control.
        summary: a sentence in place of verdicts.
        note: which runs are missing and which figures are left out; empty if nothing is.
        tables: of the arms.
        measurements: head and rows of the table of all metrics.
        markdown: address of the tables in Markdown, relative to the page.
        drawings: its figures.
        provenance: names and values.
    """

    key: str
    experiment: ExperimentResults
    worth: str
    verdicts: Sequence[Verdict]
    summary: str
    note: str
    tables: Sequence[CaptionedTable]
    measurements: Table
    markdown: str
    drawings: Sequence[Drawing]
    provenance: Sequence[tuple[str, str]]


def write_report(folders: Sequence[Path], out: Path, arms: Sequence[str] = ()) -> Path:
    """Write the page of one or several experiments, and ``<out stem>_figures`` beside it.

    The same folders give the same bytes. Figures of an earlier report of that name are replaced,
    and removed if they are no longer drawn.

    Args:
        folders: of experiments, or of single models.
        out: the HTML file.
        arms: patterns such as ``mixed-*-1``; only arms that match one are on the page. All if
            left out.

    Returns:
        The HTML file.

    Raises:
        FileNotFoundError: for a folder that is no experiment.
        ValueError: for no folder or one twice, a name that is no page's, a file that is not as
            it should be, or a pattern that no arm of any folder matches.
    """
    if not folders:
        raise ValueError("write_report: expected at least one folder of an experiment, got none")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{out}: expected a name that ends in .html for the page")
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise ValueError(f"expected each folder once, got {', '.join(map(str, folders))}")
    check_folder(out.parent)

    # All folders are read before the first file is written, so an error leaves nothing behind.
    experiments = choose_arms([read_results(Path(folder)) for folder in folders], arms)

    figures = out.with_name(f"{out.stem}_figures")
    written: set[Path] = set()
    chapters = [
        _make_chapter(f"e{number}", experiment, figures, written)
        for number, experiment in enumerate(experiments, start=1)
    ]
    _remove_old_figures(figures, written)
    return write_bytes(out, render_page(chapters).encode())


def render_page(chapters: Sequence[Chapter]) -> str:
    """Return the page as HTML."""
    import jinja2

    # Autoescape, so that no name or text of a user becomes HTML.
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = importlib.resources.files("kd_plugins.report").joinpath("page.html")
    template = environment.from_string(source.read_text(encoding="utf-8"))
    title = " · ".join(chapter.experiment.title for chapter in chapters)
    return template.render(chapters=chapters, title=title)


def _make_chapter(
    key: str, experiment: ExperimentResults, figures: Path, written: set[Path]
) -> Chapter:
    """Return a chapter, its figures and tables written into a folder.

    Args:
        key: as in `Chapter`.
        experiment: its results.
        figures: the folder.
        written: all files so far; those of this chapter are added.
    """
    verdicts = verdict(experiment) if experiment.runs else []
    best = worth_of_best(experiment)
    tables = [(ARMS, *arms_table(experiment))]
    best_of_axis = best_points_table(experiment)
    if best_of_axis is not None:
        tables.append((f"Best over {experiment.best_over}", *best_of_axis))
    if verdicts:
        tables.append(("Difference from the control", *differences_table(experiment)))
    measurements = measurements_table(experiment)
    all_tables = [*tables, (ALL_MEASUREMENTS, *measurements)]

    return Chapter(
        key=key,
        experiment=experiment,
        worth=best.sentence if best else "",
        verdicts=verdicts,
        summary=_summary(experiment),
        note=" ".join(filter(None, (_missing_runs(experiment), _left_out(experiment)))),
        tables=tables,
        measurements=measurements,
        markdown=_write_markdown(key, all_tables, figures, written),
        drawings=_write_figures(key, experiment, figures, written),
        provenance=list(_flatten(experiment.provenance)),
    )


def _write_markdown(
    key: str, tables: Sequence[CaptionedTable], figures: Path, written: set[Path]
) -> str:
    """Write the tables as Markdown, for a README; return their address relative to the page."""
    texts = [f"{caption}\n\n{format_markdown(head, rows)}\n" for caption, head, rows in tables]
    path = write_bytes(figures / f"{key}-tables.md", "\n".join(texts).encode())
    written.add(path)
    return quote(f"{figures.name}/{path.name}")


def _write_figures(
    key: str, experiment: ExperimentResults, figures: Path, written: set[Path]
) -> list[Drawing]:
    """Write every figure as PNG, SVG and CSV; return them as the page holds them."""
    from kd_plugins.report.figures import inline_svg
    from kd_plugins.report.plots import all_plots

    drawings = []
    for plot in all_plots(experiment):
        name, svg = f"{key}-{plot.name}", plot.svg()
        contents = (plot.png(), svg.encode(), plot.csv().encode())
        for suffix, content in zip(FIGURE_FILES, contents, strict=True):
            written.add(write_bytes(figures / f"{name}{suffix}", content))

        in_page = inline_svg(svg, name, html.escape(plot.title))
        address = quote(f"{figures.name}/{name}")
        drawings.append(Drawing(plot.title, plot.caption, in_page, address))
    return drawings


def _remove_old_figures(figures: Path, written: set[Path]) -> None:
    """Remove figures of an earlier report that this one has not drawn."""
    for path in sorted(figures.glob("e*-*")):
        if path.suffix in (*FIGURE_FILES, ".md") and path not in written:
            path.unlink()


def _summary(experiment: ExperimentResults) -> str:
    """Return the sentence of an experiment without a control."""
    if not experiment.runs:
        return "Nothing has been run yet."

    arm = experiment.arms[0]
    numbers = []
    for name in decisive_metrics(experiment):
        if experiment.values(arm, name):
            value = mean_and_spread(experiment, arm, name)
            numbers.append(f"{metric(name).label} {value} {metric(name).unit}".strip())
    return f"{arm}, measured alone: {'; '.join(numbers) or 'no errors measured'}."


def _missing_runs(experiment: ExperimentResults) -> str:
    missing = experiment.missing
    if not missing:
        return ""

    planned = len(experiment.arms) * len(experiment.seeds)
    names = ", ".join(f"{arm} seed {seed}" for arm, seed in missing[:MOST_MISSING])
    n_more = len(missing) - MOST_MISSING
    more = f" and {n_more} more" if n_more > 0 else ""
    return f"{len(missing)} of {planned} runs are missing: {names}{more}."


def _left_out(experiment: ExperimentResults) -> str:
    from kd_plugins.report.plots import MOST_ARMS

    n_arms = len(experiment.arms)
    if n_arms <= MOST_ARMS:
        return ""
    return (
        f"{n_arms} arms are too many for figures of single arms, such as learning curves; "
        "kd-plugins report --arms PATTERN draws those of some."
    )


def _flatten(provenance: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield names and values; names of inner mappings are joined by colons."""
    for key, value in provenance.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}: ")
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(map(str, value))
        else:
            yield name, str(value)
