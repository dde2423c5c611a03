from __future__ import annotations

import pytest

from kd_plugins.report import tables
from kd_plugins.report.metrics import GPA, metric
from kd_plugins.report.statistics import Difference
from tests.report.test_verdicts import experiment

FOUND = experiment({"control": [0.050, 0.052, 0.051], "student": [0.040, 0.041, 0.042]})


def test_arms_table_has_a_row_an_arm_in_the_pages_unit() -> None:
    head, rows = tables.arms_table(FOUND)
    assert head == ["arm", "runs", "force RMSE (meV/Å)", "weights", "training (CPU min)"]
    assert rows[1] == ["student", "3 of 3", "41.0 ± 1.0", "–", "1.73"]


def test_differences_table_leaves_the_control_out() -> None:
    head, rows = tables.differences_table(FOUND)
    assert head == ["arm", "force RMSE"]
    ((arm, text),) = rows
    assert arm == "student"
    assert text.startswith("−19.6 % (−2")


def test_measurements_table_has_a_row_a_metric() -> None:
    head, rows = tables.measurements_table(FOUND)
    assert head == ["", "control", "student"]
    assert rows == [["force RMSE (meV/Å)", "51.0 ± 1.0", "41.0 ± 1.0"]]


def test_markdown_needs_rows_as_long_as_the_head() -> None:
    with pytest.raises(ValueError, match="expected 2 cells a row as in the head, got"):
        tables.format_markdown(["a", "b"], [["1"]])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.05, "0.05"), (1234567, "1 234 567"), (-12.345, "−12.3"), (99.99, "100"), (3e-9, "3e-09")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert tables.format_number(value).replace(tables.THIN, " ") == text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 1.0], "1"),
        ([100.0, 300.0], "200 ± 141"),
        ([0.00123, 0.00125], "0.001240 ± 0.000014"),
        ([-1.0, -2.0], "−1.50 ± 0.71"),
        ([1e-9, 2e-9], "1.5e-09 ± 7.07e-10"),
    ],
)
def test_spreads_are_rounded_by_the_deviation(values: list[float], text: str) -> None:
    assert tables.format_spread(values) == text


def test_difference_of_two_seeds_has_no_interval() -> None:
    assert tables.format_difference(Difference(-3.0, 2, None, None)) == "−3.0 % (2 seeds)"


def test_metrics_have_units_and_directions() -> None:
    assert metric("stress_rmse").factor == GPA
    assert metric("teacher_energy_per_atom_mae").title == ("energy MAE from the teacher (meV/atom)")
    assert metric("embedding_cosine").smaller_is_better is False
    assert metric("teacher_of_something").title == "teacher of something"
