"""Laws of the record of teacher targets: what it keeps and all that it refuses."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor

from kd_plugins.core import QUANTITIES, Quantity, TeacherTargets
from tests.core.draws import normal, shape_of

IDS = ("first", "second", "third")
N_ATOMS = torch.tensor([2, 0, 3])
PRESENT = torch.tensor([True, True, False])

every_quantity = pytest.mark.parametrize("row", QUANTITIES.values(), ids=QUANTITIES)


def value_of(row: Quantity) -> Tensor:
    """Return a valid target of one quantity."""
    return normal(*shape_of(row, len(N_ATOMS), int(N_ATOMS.sum())))


def record(values: dict[str, Tensor], **present: Tensor) -> TeacherTargets:
    """Return a record of the three structures."""
    return TeacherTargets(IDS, N_ATOMS, values, present)


@every_quantity
def test_a_valid_target_is_kept(row: Quantity) -> None:
    """The tensor itself, and every item has a target."""
    value = value_of(row)
    targets = record({row.name: value})
    assert targets.values[row.name] is value
    assert targets.mask(row.name).tolist() == [True] * len(value)


@every_quantity
@pytest.mark.parametrize("wrong", ["short", "long", "extra axis", "scalar"])
def test_a_wrong_shape_is_refused(row: Quantity, wrong: str) -> None:
    """The message names the quantity, what was expected and what came."""
    value = value_of(row)
    shapes = {
        "short": value[:-1],
        "long": torch.cat([value, value[:1]]),
        "extra axis": value[..., None],
        "scalar": value.flatten()[0],
    }
    axis = {"atom": "N=5", "structure": "B=3"}[row.scope]
    with pytest.raises(ValueError, match=rf"^{row.name}: expected \({axis}.*\), got \("):
        record({row.name: shapes[wrong]})


def test_forces_in_two_dimensions_are_refused() -> None:
    """The message in full."""
    with pytest.raises(ValueError, match=r"^forces: expected \(N=5, 3\), got \(5, 2\)$"):
        record({"forces": torch.zeros(5, 2)})


@every_quantity
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_names_its_structure(row: Quantity, bad: float) -> None:
    """The last item belongs to the third structure; empty structures are no trap."""
    value = value_of(row)
    value.view(-1)[-1] = bad
    with pytest.raises(ValueError, match=f"^{row.name}: .* structure 'third' is not finite"):
        record({row.name: value})


@pytest.mark.parametrize(("atom", "owner"), [(0, "first"), (1, "first"), (2, "third")])
def test_a_bad_atom_names_its_structure(atom: int, owner: str) -> None:
    """Atoms are counted through structures, also through the one without atoms."""
    forces = torch.zeros(5, 3)
    forces[atom, 1] = float("nan")
    with pytest.raises(ValueError, match=f"an atom of structure '{owner}'"):
        record({"forces": forces})


@every_quantity
def test_nan_does_not_mean_missing(row: Quantity) -> None:
    """A missing target is a boolean; its rows hold finite numbers all the same."""
    value = value_of(row)
    value.view(-1)[-1] = float("nan")
    with pytest.raises(ValueError, match="mark missing targets in `present`"):
        record({row.name: value}, **{row.name: PRESENT})


@every_quantity
def test_a_target_with_a_graph_is_refused(row: Quantity) -> None:
    """Nothing is ever learned through a teacher."""
    with pytest.raises(ValueError, match=f"^{row.name}: .*must not require grad; detach it"):
        record({row.name: value_of(row).requires_grad_()})


@pytest.mark.parametrize("mask", [PRESENT[:2], PRESENT.float(), PRESENT[:, None], N_ATOMS])
def test_a_wrong_presence_is_refused(mask: Tensor) -> None:
    """One boolean a structure and nothing else."""
    with pytest.raises(ValueError, match=r"^present\['energy'\]: expected booleans \(B=3,\), got "):
        record({"energy": torch.zeros(3)}, energy=mask)


def test_presence_without_a_value_is_refused() -> None:
    """A presence without a value is a misspelling."""
    with pytest.raises(ValueError, match=r"^present\['force'\] has no value beside it"):
        record({"forces": torch.zeros(5, 3)}, force=PRESENT)


def test_an_unknown_quantity_is_refused() -> None:
    """With the nearest name."""
    with pytest.raises(KeyError, match="unknown quantity 'energie'; did you mean 'energy'"):
        record({"energie": torch.zeros(3)})


def test_the_mask_of_an_absent_quantity_is_refused() -> None:
    """With the names that the record holds."""
    with pytest.raises(KeyError, match="hold no 'stress'; they hold energy, forces"):
        record({"energy": torch.zeros(3), "forces": torch.zeros(5, 3)}).mask("stress")


@pytest.mark.parametrize("ids", [(), ("a", "b"), ("a", "b", "c", "d")])
def test_every_structure_has_one_id(ids: tuple[str, ...]) -> None:
    """Ids and atom counts are of one length."""
    with pytest.raises(ValueError, match=f"^structure_ids: expected 3 .*, got {len(ids)}"):
        TeacherTargets(ids, N_ATOMS, {})


@every_quantity
def test_the_mask_is_over_the_items_of_the_quantity(row: Quantity) -> None:
    """A structure that is absent takes all its atoms with it."""
    targets = record({row.name: value_of(row)}, **{row.name: PRESENT})
    atoms, structures = [True, True, False, False, False], [True, True, False]
    assert targets.mask(row.name).tolist() == (atoms if row.scope == "atom" else structures)


@pytest.mark.parametrize("name", ["energy", "atomic_energies"])
def test_scope_is_declared_where_atoms_and_structures_are_as_many(name: str) -> None:
    """One-atom structures: N == B, and both scopes still work."""
    present = torch.tensor([True, False, True])
    one_atom = torch.ones(3, dtype=torch.long)
    targets = TeacherTargets(IDS, one_atom, {name: torch.zeros(3)}, {name: present})
    assert targets.mask(name).tolist() == present.tolist()


def test_as_many_items_do_not_make_an_atom_a_structure() -> None:
    """[2, 0, 1] has N == B == 3: the presence of atoms still follows their structures."""
    value, present = torch.zeros(3), torch.tensor([True, True, False])
    names = ("energy", "atomic_energies")
    both = dict.fromkeys(names, value), dict.fromkeys(names, present)
    targets = TeacherTargets(IDS, torch.tensor([2, 0, 1]), *both)
    assert targets.mask("energy").tolist() == [True, True, False]
    assert targets.mask("atomic_energies").tolist() == [True, True, False]
    first_absent = {name: torch.tensor([False, True, True]) for name in names}
    targets = TeacherTargets(IDS, torch.tensor([2, 0, 1]), both[0], first_absent)
    assert targets.mask("energy").tolist() == [False, True, True]
    assert targets.mask("atomic_energies").tolist() == [False, False, True]


def test_a_batch_may_be_empty() -> None:
    """No structures, no atoms, every quantity."""
    values = {row.name: torch.zeros(shape_of(row, 0, 0)) for row in QUANTITIES.values()}
    targets = TeacherTargets((), torch.zeros(0, dtype=torch.long), values)
    assert all(len(targets.mask(name)) == 0 for name in QUANTITIES)


def test_the_record_cannot_be_changed() -> None:
    """Neither its fields nor its mappings, and not through the dictionaries it was made from."""
    values, present = {"energy": torch.zeros(3)}, {"energy": PRESENT}
    targets = TeacherTargets(IDS, N_ATOMS, values, present)
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'n_atoms'"):
        targets.n_atoms = torch.ones(3)
    for mapping in (targets.values, targets.present):
        with pytest.raises(TypeError, match="does not support item assignment"):
            mapping["energy"] = torch.ones(3)
    values["forces"] = torch.zeros(5, 3)
    present.clear()
    assert list(targets.values) == list(targets.present) == ["energy"]


def test_the_record_survives_the_trip_to_another_process() -> None:
    """As what a worker of a data loader returns must."""
    targets = record({"energy": torch.ones(3)}, energy=PRESENT)
    copy = pickle.loads(pickle.dumps(targets))
    assert torch.equal(copy.values["energy"], torch.ones(3))
    assert torch.equal(copy.mask("energy"), PRESENT)


def parts(dtype: torch.dtype = torch.float64) -> list[TeacherTargets]:
    """Return one record a structure, each with every quantity in the table."""
    return [
        TeacherTargets(
            (structure_id,),
            torch.tensor([n_atoms]),
            {
                row.name: normal(*shape_of(row, 1, n_atoms), seed=seed, dtype=dtype)
                for row in QUANTITIES.values()
            },
        )
        for seed, (structure_id, n_atoms) in enumerate(zip(IDS, N_ATOMS.tolist(), strict=True))
    ]


def assert_equal(actual: TeacherTargets, expected: TeacherTargets) -> None:
    """Both have the same structures, and bit for bit the same targets where there are any."""
    assert actual.structure_ids == expected.structure_ids
    assert torch.equal(actual.n_atoms, expected.n_atoms)
    assert set(actual.values) == set(expected.values)
    for name, value in expected.values.items():
        mask = expected.mask(name)
        assert torch.equal(actual.mask(name), mask)
        assert actual.values[name].dtype == value.dtype
        assert torch.equal(actual.values[name][mask], value[mask])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_unbatching_a_collated_batch_gives_its_parts_back(dtype: torch.dtype) -> None:
    """Every quantity and precision, and a structure without atoms."""
    before = parts(dtype)
    after = TeacherTargets.collate(before).unbatch()
    for actual, expected in zip(after, before, strict=True):
        assert_equal(actual, expected)


def test_collating_an_unbatched_batch_gives_the_batch_back() -> None:
    """With what is missing in it."""
    for row in QUANTITIES.values():
        for present in (PRESENT, ~PRESENT):
            targets = record({row.name: value_of(row)}, **{row.name: present})
            assert_equal(TeacherTargets.collate(targets.unbatch()), targets)


@every_quantity
def test_a_collated_batch_has_the_shapes_of_the_table(row: Quantity) -> None:
    """Items of structures stay items of structures, also where there are as many atoms."""
    batch = TeacherTargets.collate(parts())
    assert batch.values[row.name].shape == shape_of(row, 3, 5)
    one_atom = [
        TeacherTargets((name,), torch.tensor([1]), {row.name: normal(*shape_of(row, 1, 1))})
        for name in IDS
    ]
    assert TeacherTargets.collate(one_atom).values[row.name].shape == shape_of(row, 3, 3)


@every_quantity
@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_a_quantity_that_a_structure_lacks_is_missing_in_the_batch(
    row: Quantity, lacking: int
) -> None:
    """``present`` is False there; the rows are zeros, and those of the others are untouched."""
    before = parts()
    before[lacking] = TeacherTargets(
        before[lacking].structure_ids, before[lacking].n_atoms, {"energy": torch.zeros(1).double()}
    )
    if row.name == "energy":
        before[lacking] = TeacherTargets(IDS[lacking : lacking + 1], before[lacking].n_atoms, {})
    batch = TeacherTargets.collate(before)
    assert batch.present[row.name].tolist() == [place != lacking for place in range(3)]
    assert not batch.values[row.name][~batch.mask(row.name)].any()
    for actual, expected in zip(batch.unbatch(), before, strict=True):
        assert_equal(actual, expected)


def test_batches_collate_to_the_batch_of_all_their_structures() -> None:
    """Their presence comes along."""
    first = record({"forces": normal(5, 3)}, forces=PRESENT)
    second = TeacherTargets(("fourth",), torch.tensor([1]), {"forces": normal(1, 3, seed=1)})
    batch = TeacherTargets.collate([first, second])
    assert batch.structure_ids == (*IDS, "fourth")
    assert batch.present["forces"].tolist() == [*PRESENT.tolist(), True]
    assert batch.mask("forces").tolist() == [True, True, False, False, False, True]


def test_a_collated_batch_equals_the_same_batch_made_at_once() -> None:
    """The constructor, which checks everything, finds nothing wrong with it."""
    batch = TeacherTargets.collate([*parts(), TeacherTargets(("d",), torch.tensor([2]), {})])
    fields = batch.structure_ids, batch.n_atoms, batch.values, batch.present
    assert_equal(TeacherTargets(*fields), batch)


def test_no_records_cannot_be_collated() -> None:
    """They would have no quantities."""
    with pytest.raises(ValueError, match="collate: expected at least one record"):
        TeacherTargets.collate([])


def test_embeddings_of_two_widths_cannot_be_collated() -> None:
    """The message names a structure of each."""
    two = [
        TeacherTargets((name,), torch.tensor([1]), {"node_embeddings": torch.zeros(1, width)})
        for name, width in (("a", 4), ("b", 8))
    ]
    message = r"node_embeddings: .* one shape an item, got \(4,\) of 'a' and \(8,\) of 'b'"
    with pytest.raises(ValueError, match=message):
        TeacherTargets.collate(two)


def test_targets_move_to_a_device_with_everything_they_hold() -> None:
    """The meta device stands for any other; the number of atoms needs no question to it."""
    batch = TeacherTargets.collate([*parts(), TeacherTargets(("d",), torch.tensor([2]), {})])
    moved = batch.to(device="meta", non_blocking=True)
    tensors = (moved.n_atoms, *moved.values.values(), *moved.present.values())
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.n_items("structure"), moved.n_items("atom")) == (4, 7)
    assert moved.mask("forces").shape == (7,)
    assert_equal(batch.to("cpu"), batch)


@pytest.mark.parametrize(
    "n_atoms", [torch.tensor([-1, 3, 3]), torch.tensor([2.0, 0.0, 3.0])], ids=["negative", "float"]
)
@pytest.mark.usefixtures("unchecked")
def test_atoms_are_counted_in_whole_numbers(n_atoms: Tensor) -> None:
    """From 0 on."""
    with pytest.raises(ValueError, match="n_atoms: expected"):
        TeacherTargets(IDS, n_atoms, {"forces": torch.zeros(5, 3)})


def test_values_in_other_units_keep_structures_and_presence() -> None:
    batch = TeacherTargets.collate([*parts(), TeacherTargets(("d",), torch.tensor([2]), {})])
    scaled = batch.with_values({name: 2 * value for name, value in batch.values.items()})
    assert scaled.structure_ids == batch.structure_ids
    assert scaled.n_items("atom") == batch.n_items("atom")
    for name, value in batch.values.items():
        assert torch.equal(scaled.values[name], 2 * value)
        assert torch.equal(scaled.mask(name), batch.mask(name))
