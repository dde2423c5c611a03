"""Volumes and RMSD15 of few crystals, a line each, and of many, such as COD's, together."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from kd_plugins.report.figures import choose_styles
from kd_plugins.report.physics_plots import draw_packing, draw_volumes
from kd_plugins.report.results import Volume


@pytest.mark.parametrize("count", [3, 477])
def test_every_crystal_is_in_the_numbers_of_the_figure(count: int) -> None:
    """One that exploded does not hide the others; the figure stays of a page's size."""
    rng = np.random.default_rng(0)
    crystals = {
        f"c{number}": [Volume(102 + rng.random(), 101, 100, 1.2, rng.random(), 0.1)]
        for number in range(count)
    }
    crystals["c0"] = [Volume(200, 101, 100, 1.2, 30.0, 0.1)]
    volumes = {"soft": crystals, "hard": {name: one * 2 for name, one in crystals.items()}}
    styles = choose_styles(["soft", "hard"], None)

    for draw, last in ((draw_volumes, 100.0), (draw_packing, 30.0)):
        plot = draw(volumes, styles)
        assert plot is not None
        drawn = [row for row in plot.rows[1:] if row[0] == "soft"]
        assert len(drawn) == count
        assert drawn[0][2] == pytest.approx(last)
        assert {row[0] for row in plot.rows[1:]} == {"soft", "hard", "teacher"}
        assert plot.figure.get_size_inches()[1] < 25
        plot.figure.canvas.draw()
        plt.close(plot.figure)


def test_crystals_without_molecules_have_no_packing() -> None:
    """And rigid ones."""
    assert (
        draw_packing({"soft": {"cu": [Volume(48, 47, 47)]}}, choose_styles(["soft"], None)) is None
    )
