"""Laws of the table of quantities."""

from __future__ import annotations

import pytest

from kd_plugins.core import QUANTITIES, Quantity
from kd_plugins.core.quantities import quantity

every_row = pytest.mark.parametrize("row", QUANTITIES.values(), ids=QUANTITIES)


@every_row
def test_a_row_is_found_by_its_name(row: Quantity) -> None:
    """The key of the table is the name in the row."""
    assert quantity(row.name) is row


@every_row
def test_the_scope_says_how_many_items(row: Quantity) -> None:
    """Even where there are as many structures as atoms, the scope is what the row declares."""
    expected = {"atom": 7, "structure": 2}
    assert row.n_items(n_structures=2, n_atoms=7) == expected[row.scope]
    assert row.n_items(n_structures=3, n_atoms=3) == 3


@every_row
def test_a_row_fits_its_own_shape_and_no_other_rank(row: Quantity) -> None:
    """A letter fits any size; no axis may be missing or left over."""
    own = tuple(9 if isinstance(size, str) else size for size in row.shape)
    assert row.fits(own)
    assert not row.fits((*own, 1))
    assert not own or not row.fits(own[:-1])


@every_row
def test_a_number_in_a_shape_fits_itself_only(row: Quantity) -> None:
    """Sizes that physics fixes, such as the 3 of a force, are not up to the model."""
    grown = tuple(size + 1 if isinstance(size, int) else 9 for size in row.shape)
    assert row.fits(grown) == all(isinstance(size, str) for size in row.shape)


@every_row
def test_a_row_has_a_unit(row: Quantity) -> None:
    """Learned features have the unit 1."""
    assert row.unit
    assert (row.unit == "1") == row.name.endswith("embeddings")


def test_the_table_cannot_be_changed() -> None:
    """A quantity means the same everywhere."""
    with pytest.raises(TypeError, match="does not support item assignment"):
        QUANTITIES["energy"] = QUANTITIES["forces"]


def test_the_message_about_a_misspelt_quantity_has_the_nearest_name() -> None:
    """Unknown names never pass silently."""
    with pytest.raises(KeyError, match="unknown quantity 'force'; did you mean 'forces'"):
        quantity("force")


def test_the_message_about_an_unknown_quantity_has_all_names() -> None:
    """Where no name is near, all are listed."""
    with pytest.raises(
        KeyError,
        match="unknown quantity 'xyzzy'; known: atomic_energies, atomic_energies_std, energy",
    ):
        quantity("xyzzy")
