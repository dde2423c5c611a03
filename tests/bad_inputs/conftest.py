"""How many of the bad inputs were refused clearly, at the end of a run."""

from __future__ import annotations

import pytest

TESTS = "tests/bad_inputs/test_cases.py::test_it_is_refused_clearly["


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the share of the cases."""
    counts = {
        outcome: sum(
            report.nodeid.startswith(TESTS) for report in terminalreporter.stats.get(outcome, [])
        )
        for outcome in ("passed", "failed")
    }
    total = sum(counts.values())
    if total:
        share = 100 * counts["passed"] / total
        terminalreporter.write_line(
            f"bad inputs: {counts['passed']} of {total} refused clearly ({share:.4g} %)"
        )
