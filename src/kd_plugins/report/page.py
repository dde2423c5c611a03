"""The page: one file of HTML that needs nothing else, and beside it a folder of its figures."""

from __future__ import annotations

import html
import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from kd_plugins.files import check_folder, write_bytes
from kd_plugins.report import tables
from kd_plugins.report.metrics import metric
from kd_plugins.report.results import ExperimentResults, read_results
from kd_plugins.report.verdicts import Verdict, verdict

FIGURE_FILES = (".png", ".svg", ".csv")
WHOLE = "Everything that was measured"
Table = tuple[str, list[str], list[list[str]]]
"""Caption, head and rows."""


@dataclass(frozen=True)
class Drawing:
    """A figure as the page has it.

    Args:
        svg: safe to put into HTML as it is.
        path: of its files, relative to the page, without suffix.
    """

    title: str
    caption: str
    svg: str
    path: str


@dataclass(frozen=True)
class Chapter:
    """What the page tells of one experiment."""

    key: str
    experiment: ExperimentResults
    verdicts: Sequence[Verdict]
    summary: str
    note: str
    tables: Sequence[Table]
    measurements: tuple[list[str], list[list[str]]]
    markdown: str
    drawings: Sequence[Drawing]
    provenance: Sequence[tuple[str, str]]


def write_report(folders: Sequence[Path], out: Path) -> Path:
    """Write the page of one or several experiments, and ``<out stem>_figures`` beside it.

    The same folders give the same bytes. Figures of an earlier report of that name are replaced,
    and removed if they are no longer drawn.

    Args:
        folders: of experiments, or of single models.
        out: the HTML file.

    Returns:
        The HTML file.

    Raises:
        FileNotFoundError: for a folder that is no experiment.
        ValueError: for no folder or one twice, a name that is no page's, or a file that is not as
            it should be.
    """
    if not folders:
        raise ValueError("write_report: expected at least one folder of an experiment, got none")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{out}: expected a name that ends in .html for the page")
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise ValueError(f"expected each folder once, got {', '.join(map(str, folders))}")
    check_folder(out.parent)
    experiments = [read_results(Path(folder)) for folder in folders]
    figures = out.with_name(f"{out.stem}_figures")
    written: set[Path] = set()
    chapters = [
        _chapter(f"e{number}", experiment, figures, written)
        for number, experiment in enumerate(experiments, start=1)
    ]
    _tidy(figures, written)
    return write_bytes(out, render(chapters).encode())


def render(chapters: Sequence[Chapter]) -> str:
    """Return the page as HTML."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = importlib.resources.files("kd_plugins.report").joinpath("page.html")
    title = " · ".join(chapter.experiment.title for chapter in chapters)
    template = environment.from_string(source.read_text(encoding="utf-8"))
    return template.render(chapters=chapters, title=title)


def _chapter(key: str, experiment: ExperimentResults, figures: Path, written: set[Path]) -> Chapter:
    verdicts = verdict(experiment) if experiment.runs else []
    shown = [("Arms", *tables.arms(experiment))]
    if verdicts:
        shown.append(("Difference from the control", *tables.differences(experiment)))
    measurements = tables.measurements(experiment)
    return Chapter(
        key=key,
        experiment=experiment,
        verdicts=verdicts,
        summary=_summary(experiment),
        note=_note(experiment),
        tables=shown,
        measurements=measurements,
        markdown=_markdown(key, [*shown, (WHOLE, *measurements)], figures, written),
        drawings=_drawings(key, experiment, figures, written),
        provenance=list(_flat(experiment.provenance)),
    )


def _markdown(key: str, shown: Sequence[Table], figures: Path, written: set[Path]) -> str:
    """Write the tables as Markdown, for a README; return the file's place beside the page."""
    texts = [f"{title}\n\n{tables.markdown(head, rows)}\n" for title, head, rows in shown]
    path = write_bytes(figures / f"{key}-tables.md", "\n".join(texts).encode())
    written.add(path)
    return quote(f"{figures.name}/{path.name}")


def _drawings(
    key: str, experiment: ExperimentResults, figures: Path, written: set[Path]
) -> list[Drawing]:
    from kd_plugins.report.figures import inline
    from kd_plugins.report.plots import all_plots

    drawings = []
    for plot in all_plots(experiment):
        name, svg = f"{key}-{plot.name}", plot.svg()
        contents = (plot.png(), svg.encode(), plot.csv().encode())
        for suffix, content in zip(FIGURE_FILES, contents, strict=True):
            written.add(write_bytes(figures / f"{name}{suffix}", content))
        inlined = inline(svg, name, html.escape(plot.title))
        drawings.append(Drawing(plot.title, plot.caption, inlined, quote(f"{figures.name}/{name}")))
    return drawings


def _tidy(figures: Path, written: set[Path]) -> None:
    """Remove figures of an earlier report that this one has not drawn."""
    for path in sorted(figures.glob("e*-*")):
        if path.suffix in (*FIGURE_FILES, ".md") and path not in written:
            path.unlink()


def _summary(experiment: ExperimentResults) -> str:
    """Say what there is to say without a control."""
    if not experiment.runs:
        return "Nothing has been run yet."
    arm = experiment.arms[0]
    known = [name for name in tables.decisive(experiment) if experiment.values(arm, name)]
    numbers = []
    for name in known:
        value = tables.mean_and_spread(experiment, arm, name)
        numbers.append(f"{metric(name).label} {value} {metric(name).unit}".strip())
    return f"{arm}, measured alone: {'; '.join(numbers) or 'no errors measured'}."


def _note(experiment: ExperimentResults) -> str:
    missing = experiment.missing
    if not missing:
        return ""
    planned = len(experiment.arms) * len(experiment.seeds)
    names = ", ".join(f"{arm} seed {seed}" for arm, seed in missing[:8])
    more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
    return f"{len(missing)} of {planned} runs are missing: {names}{more}."


def _flat(provenance: Mapping[str, object], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in provenance.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}: ")
        elif isinstance(value, (list, tuple)):
            yield name, ", ".join(map(str, value))
        else:
            yield name, str(value)
