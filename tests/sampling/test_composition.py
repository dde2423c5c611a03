"""Kinds of crystals (Taniguchi 2024), at the borders between them."""

from __future__ import annotations

import pytest
from ase import Atoms

from kd_plugins.sampling import kind, of_kind
from kd_plugins.structures.readers import LabelledStructure

FORMULAS = [
    ("H2O", "organic"),
    ("C6H4BrClFINPS", "organic"),
    ("O2", "organic"),
    ("C2H6Si2Cu", "inorganic"),  # 8 of 11
    ("C2H6Si", "complex"),
    ("C2H6BSi", "complex"),  # exactly 80 %
    ("Cu", "inorganic"),
    ("CuO9", "inorganic"),  # 90 %, but of one organic element
    ("CuO8N", "complex"),
    ("CaCO3", "complex"),  # exactly 80 %: 4 of 5
    ("NaCl", "inorganic"),
    ("SiO2", "inorganic"),
]


@pytest.mark.parametrize(("formula", "expected"), FORMULAS)
def test_kind_of_a_formula(formula: str, expected: str) -> None:
    numbers = Atoms(formula).numbers
    assert kind(numbers) == expected
    assert kind(numbers[::-1].tolist()) == expected


def test_structures_of_one_kind_keep_their_order() -> None:
    frames = [LabelledStructure(formula, Atoms(formula)) for formula, _ in FORMULAS]
    for wanted in ("organic", "complex", "inorganic"):
        found = [frame.structure_id for frame in of_kind(frames, wanted)]
        assert found == [formula for formula, expected in FORMULAS if expected == wanted]


@pytest.mark.parametrize("bad", [[], [0, 6], [119], [[6, 6]]])
def test_numbers_of_no_element_are_refused(bad: list[int]) -> None:
    with pytest.raises(ValueError, match=r"atomic_numbers: expected \(N,\) numbers of elements"):
        kind(bad)


def test_an_unknown_kind_is_refused_at_once() -> None:
    with pytest.raises(
        KeyError, match="unknown kind of crystal 'organics'; did you mean 'organic'"
    ):
        of_kind([], "organics")
