"""Table 2 of Taniguchi 2024 from measured and published stiffness tensors.

    python recipes/chgnet_organic/elastic.py --tensors stiffness_tensors_rev.csv --out table2.md

Mean absolute errors of all averaged moduli, of the compounds that an experiment and the computation
have and whose tensors are positive definite. Several tensors of one compound are averaged as
moduli. ``--method`` names the rows of the table that were computed, NNP for PFP v4. The mean model
predicts the mean of the experiments for every compound.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kd_plugins.evaluate import mean_moduli, read_stiffness
from kd_plugins.evaluate.stiffness_data import MODULI, matching_compounds
from kd_plugins.files import write_bytes

MEAN_MODEL = (5.72, 4.82, 5.03, 4.88, 4.10, 3.10, 3.56, 3.32, 2.36, 2.00, 2.09, 2.02, 0.04, 0.68)
PFP_V5 = (4.51, 3.58, 3.81, 3.55, 5.32, 5.18, 5.25, 5.22, 1.75, 1.32, 1.44, 1.32, 0.05, 0.58)
"""On 44 compounds, in the order of `MODULI` (Taniguchi 2024, Table 2)."""


def shared_moduli(tensors: Path, method: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the compounds that are compared, and their moduli (C, 14), measured and computed."""
    measured, computed = read_stiffness(tensors), read_stiffness(tensors, method)
    pairs = {
        name: (mean_moduli(measured[name]), mean_moduli(computed[other]))
        for name, other in matching_compounds(list(measured), computed).items()
    }
    kept = [name for name, (one, two) in pairs.items() if one and two]
    if not kept:
        raise SystemExit(f"{tensors}: no compound has tensors of an experiment and of {method}")
    sides = [
        np.array([[pairs[name][side][modulus] for modulus in MODULI] for name in kept])
        for side in (0, 1)
    ]
    return kept, sides[0], sides[1]


def table(tensors: Path, method: str) -> Iterator[str]:
    """Yield the lines of the table."""
    names, measured, computed = shared_moduli(tensors, method)
    mean_model = np.abs(measured - measured.mean(axis=0)).mean(axis=0)
    errors = np.abs(computed - measured).mean(axis=0)

    yield f"{len(names)} compounds; in brackets the paper, PFP v5.0.0 on 44 compounds"
    yield ""
    yield f"| MAE (GPa) | mean model | {method} |"
    yield "|---|---|---|"
    rows = zip(MODULI.values(), mean_model, MEAN_MODEL, errors, PFP_V5, strict=True)
    for symbol, mean, paper_mean, ours, paper in rows:
        yield f"| {symbol} | {mean:.2f} ({paper_mean:.2f}) | {ours:.2f} ({paper:.2f}) |"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tensors", type=Path, required=True, help="CSV of stiffness tensors")
    parser.add_argument("--method", default="NNP", help="of the computed ones (NNP, PFP v4)")
    parser.add_argument("--out", type=Path, help="for the table, in Markdown")
    options = parser.parse_args()

    text = "\n".join(table(options.tensors, options.method))
    print(text)
    if options.out:
        write_bytes(options.out, f"{text}\n".encode())


if __name__ == "__main__":
    main()
