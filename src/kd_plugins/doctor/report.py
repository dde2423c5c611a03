"""A diagnosis as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill

from ase.data import chemical_symbols

from kd_plugins.core.quantities import quantity
from kd_plugins.doctor.diagnosis import Diagnosis, QuantitySummary
from kd_plugins.doctor.inputs import Finding
from kd_plugins.doctor.references import References
from kd_plugins.store.manifest import Manifest

WIDTH = 100  # columns


def format_diagnosis(diagnosis: Diagnosis) -> str:
    """Return a table, the findings and what decides, at most 100 columns wide."""
    return "\n".join(_lines(diagnosis)) + "\n"


def format_added_offsets(manifest: Manifest) -> str:
    """Return the offsets that `kd_plugins.doctor.align.align` added to a teacher's energies.

    >>> format_added_offsets(Manifest("t", "f", {"energy": "float64"}, energy_offsets={"Cu": -4.0}))
    'added to each energy, eV an atom: Cu -4.000000'
    """
    pairs = manifest.energy_offsets.items()
    listed = ", ".join(f"{symbol} {offset:+.6f}" for symbol, offset in pairs)
    text = f"added to each energy, eV an atom: {listed}"
    return fill(text, width=WIDTH, subsequent_indent="    ")


def _lines(diagnosis: Diagnosis) -> Iterator[str]:
    yield (
        f"{diagnosis.n_labels} labels, {diagnosis.n_targets} targets, {diagnosis.n_compared} "
        "structures examined"
    )

    if diagnosis.summaries:
        yield ""
        yield f"{'quantity':<24}{'labels':>8}{'targets':>9}   mean |teacher - label|"
        yield from map(_row, diagnosis.summaries)

    for finding in diagnosis.findings:
        yield ""
        yield from _paragraph(finding)
        if finding.code == "energy-offset" and diagnosis.references is not None:
            yield _offsets_by_symbol(diagnosis.references)

    yield ""
    yield _last_line(diagnosis)
    yield from _worth(diagnosis)


def _worth(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield how good the teacher is beside the labels, and the advice that follows."""
    if diagnosis.deviations:
        yield ""
        yield "will it help? how far the teacher is from the labels, of how much the labels vary"
        yield "(energies after each element's zero was fitted):"
        yield from (f"    {deviation.text}" for deviation in diagnosis.deviations)

    for text in diagnosis.advice:
        yield ""
        yield fill(f"advice: {text}", width=WIDTH, subsequent_indent="    ")


def _row(row: QuantitySummary) -> str:
    unit = "eV/atom" if row.quantity == "energy" else quantity(row.quantity).unit
    difference = "-" if row.mean_difference is None else f"{row.mean_difference:.4g} {unit}"
    return f"{row.quantity:<24}{row.n_labels:>8}{row.n_targets:>9}   {difference}"


def _paragraph(finding: Finding) -> Iterator[str]:
    indent = {"width": WIDTH, "subsequent_indent": "    ", "break_on_hyphens": False}
    way_out = f"; if it is meant so: --allow {finding.name}" if finding.severity == "error" else ""
    yield fill(f"{finding.severity} {finding.code}: {finding.text}{way_out}", **indent)
    if finding.structure_ids:
        yield fill(f"    structures: {', '.join(finding.structure_ids)}", **indent)


def _offsets_by_symbol(references: References) -> str:
    """Return the offsets again by symbol; the finding itself has atomic numbers."""
    pairs = references.offsets.items()
    listed = ", ".join(f"{chemical_symbols[z]} {offset:+.3f}" for z, offset in pairs)
    return fill(f"    by element, eV: {listed}", width=WIDTH, subsequent_indent="    ")


def _last_line(diagnosis: Diagnosis) -> str:
    n_errors = sum(finding.severity == "error" for finding in diagnosis.findings)
    n_warnings = len(diagnosis.findings) - n_errors

    if not diagnosis.findings:
        if not diagnosis.n_compared:
            return "nothing to examine"
        if not any(row.n_labels for row in diagnosis.summaries):
            return (
                "nothing found, but there are no labels to compare with: only targets were examined"
            )
        return "nothing found"

    counts = f"{_count(n_errors, 'error')}, {_count(n_warnings, 'warning')}"
    return f"{counts}: correct the errors before training" if n_errors else counts


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
