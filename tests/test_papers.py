"""docs/papers.md: every table and figure of the three papers has its row, and no row is empty.

That the commands parse and that their configurations resolve is `tests.test_documents`' to hold;
that each trains on a few structures, the recipes' tests.
"""

from __future__ import annotations

import re

import pytest

from tests.documents import inline_commands
from tests.house import ROOT

TEXT = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
IN_PAPER = {
    "CRACK": [*(f"Table {n}" for n in range(1, 7)), "Figure 1"],
    "HIPNN": ["Table 1", *(f"Figure {n}" for n in (1, "2A", "3A", "3C", "4A", "5A"))],
    "CHGNet": [
        *("Table 1", "Table 2", "Figure 1"),
        *(f"Figure {n}" for n in ("2a", "3a", "3d", "4a", "4b", "7a")),
    ],
}  # fmt: skip
"""Heading of a paper's part to what its first column names."""


def rows(paper: str) -> list[list[str]]:
    """Return the cells of a paper's table without its head."""
    part = next(one for one in TEXT.split("\n## ") if one.startswith(paper))
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


@pytest.mark.parametrize("paper", list(IN_PAPER))
def test_every_table_and_figure_has_its_row(paper: str) -> None:
    first_cells = " ".join(row[0].replace("Figures", "Figure") for row in rows(paper))
    named = [re.sub(r"s (?=\d)", " ", one) for one in IN_PAPER[paper]]
    missing = [one for one in named if one not in first_cells.replace("Tables", "Table")]
    assert missing == []


@pytest.mark.parametrize("paper", list(IN_PAPER))
def test_no_row_is_empty(paper: str) -> None:
    for row in rows(paper):
        assert len(row) == 4 and all(row), row
        if "–" in row[2:]:
            assert re.search("drawing|not built", row[1]), row


def test_the_commands_of_the_page_are_looked_at() -> None:
    assert len(inline_commands(TEXT)) >= 20
