from __future__ import annotations

import csv
import html
import io
import itertools
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from kd_plugins.files import write_json
from kd_plugins.report import write_report
from kd_plugins.report.figures import GREY, INK, PALETTE, Plot, choose_styles, make_panels, styled
from kd_plugins.report.results import Series
from kd_plugins.report.training_plots import Band, average_seeds, find_crossings
from tests.report.fixtures import plan, write_experiment

DARK = "#14171b"


def luminance(colour: str) -> float:
    """Relative luminance of a colour as WCAG defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast of two colours as WCAG defines it."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_markdown_has_the_cells_of_the_pages_tables(experiment_folder: Path, report: Path) -> None:
    """And the page has a link to them."""
    path = report.with_name(f"{report.stem}_figures") / "e1-tables.md"
    assert f'href="{path.parent.name}/{path.name}"' in report.read_text()
    rows = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    cells = [cell for row in rows for cell in row.strip("|").split(" | ")]
    assert len(rows) > 5
    assert [cell for cell in cells if html.escape(cell.strip()) not in report.read_text()] == []


def test_summary_of_a_model_without_control_names_errors_and_provenance(tmp_path: Path) -> None:
    """Errors are those from the teacher where there are no labels."""
    found = {
        "model": "hippynn folder=x",
        "metrics": {"teacher_force_rmse": 0.1, "speedup": 12.5},
        "provenance": {"teacher": "chgnet", "structures (SHA-256)": {"test.xyz": "0123"}},
    }
    write_json(tmp_path / "evaluation.json", found)
    page = write_report([tmp_path], tmp_path / "page.html").read_text()
    numbers = "force RMSE from the teacher 100 meV/Å; speed relative to the teacher 12.5 times."
    assert f"student, measured alone: {numbers}" in page
    assert "hippynn folder=x" in page and "chgnet" in page and "0123" in page


def test_the_same_experiment_gives_the_same_bytes(
    experiment_folder: Path, report: Path, tmp_path: Path
) -> None:
    again = write_report([experiment_folder], tmp_path / "elsewhere" / report.name)
    one, other = (
        {path.relative_to(out.parent): path.read_bytes() for path in out.parent.rglob("*.*")}
        for out in (report, again)
    )
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []
    assert not any(str(experiment_folder).encode() in content for content in one.values())


def test_every_figure_has_its_files_and_numbers(report: Path) -> None:
    page, figures = report.read_text(), report.with_name("report_figures")
    linked = set(re.findall(r'href="(report_figures/[^"]+)"', page))
    assert linked == {f"report_figures/{path.name}" for path in figures.iterdir()}
    drawn = [name for name in linked if not name.endswith("/e1-tables.md")]
    assert len(drawn) == 3 * page.count("<figure>") == 3 * 18 == len(linked) - 1
    for path in figures.glob("*.csv"):
        head, *rows = csv.reader(path.read_text().splitlines())
        assert rows
        assert {len(row) for row in rows} == {len(head)}


def test_ids_are_unique_and_nothing_is_loaded(report: Path) -> None:
    page = report.read_text()
    names = re.findall(r'\bid="([^"]*)"', page)
    assert len(names) == len(set(names)) > 100
    assert set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", page)) <= set(names)
    assert not re.search(r'(src|href)="(https?:)?//', page)
    assert "<script" not in page
    assert INK not in page.split("</style>", 1)[1]


def test_the_verdict_comes_first(report: Path) -> None:
    sections = re.findall(r'<section class="(\w+)"', report.read_text())
    assert sections == ["verdict", "arms", "figures", "provenance"]


def test_html_in_names_and_provenance_is_escaped(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script> $x$ \"' &"
    write_json(tmp_path / "experiment.json", plan(title=bad, provenance={bad: {bad: [bad]}}))
    evaluation = {
        "model": bad,
        "metrics": {bad: 1.0},
        "curves": {bad: {"epochs": [1, 2], "values": [1, 2]}},
    }
    write_json(tmp_path / "single" / "evaluation.json", evaluation)
    page = write_report([tmp_path, tmp_path / "single"], tmp_path / "out.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 5
    assert "Nothing has been run yet." in page
    assert "15 of 15 runs are missing" in page
    assert page.count("<article") == 2


def test_figures_of_an_earlier_report_are_removed(tmp_path: Path) -> None:
    write_json(tmp_path / "evaluation.json", {"model": "m"})
    old, other = tmp_path / "r_figures" / "e1-old.svg", tmp_path / "r_figures" / "notes.txt"
    old.parent.mkdir()
    old.touch()
    other.touch()
    write_report([tmp_path], tmp_path / "r.html")
    assert (old.exists(), other.exists()) == (False, True)


def test_a_report_of_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one folder"):
        write_report([], tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("colour", [*PALETTE, GREY])
def test_colours_have_contrast_on_light_and_dark_backgrounds(colour: str) -> None:
    assert min(contrast(colour, "#ffffff"), contrast(colour, DARK)) >= 3


def test_arms_have_different_colours_and_markers() -> None:
    styles = choose_styles([f"arm {i}" for i in range(8)], "arm 0")
    assert len({style.colour for style in styles.values()}) == 8
    assert len({style.marker for style in styles.values()}) == 8


def test_figures_do_not_depend_on_the_users_matplotlib_settings() -> None:
    import matplotlib

    @styled
    def draw() -> str:
        figure, (axes,) = make_panels(1)
        axes.plot([1, 2], [3, 4])
        return Plot("a", "", "", figure, []).svg()

    expected = draw()
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "none"}):
        assert draw() == expected


def test_curves_cross_where_the_other_one_becomes_higher() -> None:
    def curve(*values: float) -> Band:
        return average_seeds([Series(tuple(range(len(values))), values)])

    assert find_crossings(curve(3, 2, 1, 1), curve(2, 2, 2, 0)) == [2.0, 3.0]
    assert find_crossings(curve(3, 3), curve(1, 1)) == []


def test_importing_report_loads_neither_matplotlib_nor_jinja2() -> None:
    code = "import kd_plugins.report, sys; print({'matplotlib', 'jinja2'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


HOSTILE = (
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    " =1",
    "a|b",
    "a\nb",
    "<img src=x onerror=alert(1)>",
    "a`b`",
    "[x](javascript:alert(1))",
    "$\\frac$",
    "_hidden",
    "\"'>",
    "]]>",
    "-->",
    "\\",
)


def test_hostile_names_are_escaped_in_html_csv_svg_and_markdown(tmp_path: Path) -> None:
    """Of arms, metrics, crystals, curves, terms, models, titles and provenance, in every file."""
    first, name = "=<b>arm<b>|$x", "".join(HOSTILE)
    arms = [first, *(one for one in HOSTILE if not set(one) & set("/\\"))]
    metrics = [name, "force_rmse"]
    raw = plan(title=name, host=name, arms=arms, control=first, metrics=metrics, seeds=[0])
    write_json(tmp_path / "experiment.json", {**raw, "provenance": {name: {name: [name, name]}}})

    moduli = {"bulk": 1.0, "shear": 1.0}
    for arm in arms:
        found = {
            "model": name,
            "metrics": {name: 1.0 + len(arm), "force_rmse": 1.0},
            "curves": {one: {"epochs": [1, 2], "values": [2.0, 1.0]} for one in HOSTILE},
            "terms": {name: {"epochs": [1, 2], "values": [2.0, 1.0]}},
            "volumes": {one: {"student": 1.0, "reference": 1.0} for one in HOSTILE},
            "elasticity": {name: {"student": moduli}},
        }
        found["volumes"][name] = {"student": 1.0, "failures": {"student": name}, "reference": 1.0}
        write_json(tmp_path / "runs" / arm / "seed0" / "evaluation.json", found)

    page = write_report([tmp_path], tmp_path / "out" / "page.html")
    assert "<img" not in page.read_text() and "<b>arm" not in page.read_text()

    figures = page.with_name("page_figures")
    for path in figures.glob("*.csv"):
        for row in csv.reader(io.StringIO(path.read_text())):
            for cell in row:
                assert is_number(cell) or not cell.lstrip(" ").startswith(tuple("=+-@\t\r\n"))
    for path in figures.glob("*.svg"):
        ElementTree.parse(path)

    (tables,) = figures.glob("*.md")
    lines = tables.read_text().splitlines()
    assert not any("<" in line for line in lines)
    heads = [place for place, line in enumerate(lines) if re.fullmatch(r"\|(---\|)+", line)]
    for place in heads:
        columns = lines[place].count("---")
        rows = itertools.takewhile(lambda line: line.startswith("|"), lines[place - 1 :])
        assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows} == {columns + 1}


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("experiment.json", "expected a name that ends in .html"),
        ("page.pdf", "expected a name that ends in .html"),
        ("experiment.json/page.html", "is a file; expected a folder"),
        ("folder.html", "folder.html: is a folder; expected a file"),
    ],
)
def test_a_path_that_is_not_a_page_is_refused_and_nothing_overwritten(
    tmp_path: Path, out: str, message: str
) -> None:
    write_experiment(tmp_path, arms=(), seeds=())
    (tmp_path / "folder.html").mkdir()
    before = (tmp_path / "experiment.json").read_bytes()
    with pytest.raises((ValueError, OSError), match=message):
        write_report([tmp_path], tmp_path / out)
    assert (tmp_path / "experiment.json").read_bytes() == before
    with pytest.raises(ValueError, match="expected each folder once"):
        write_report([tmp_path, tmp_path / "."], tmp_path / "page.html")


def test_figures_have_unique_names(tmp_path: Path) -> None:
    """Also of names that differ only in punctuation, in a number, or after many letters."""
    write_json(tmp_path / "experiment.json", plan(arms=["a", "b"], control="a", seeds=[0]))
    names = ["loss", "loss!", "loss 2", "loss-2", "x" * 400, "x" * 401]
    curves = {name: {"epochs": [1, 2], "values": [2.0, 1.0]} for name in names}
    for arm in "ab":
        found = {"model": arm, "metrics": {}, "curves": curves}
        write_json(tmp_path / "runs" / arm / "seed0" / "evaluation.json", found)
    page = write_report([tmp_path], tmp_path / "page.html")
    assert len(list(page.with_name("page_figures").glob("e1-curve-*.csv"))) == len(names)
