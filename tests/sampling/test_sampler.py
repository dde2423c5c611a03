"""Sampled structures: in number, range and identity as the settings say, and guarded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.data.vdw_alvarez import vdw_radii
from ase.neighborlist import neighbor_list

from kd_plugins.sampling import (
    MolecularDynamics,
    Packing,
    Rattle,
    RigidMolecules,
    Sampling,
    Strain,
    Surfaces,
    Vacancies,
    crystal_of,
    find_molecules,
    sample,
)
from kd_plugins.sampling.guards import NEAREST, Guards
from kd_plugins.sampling.sampler import Sampler
from kd_plugins.sampling.settings import METHODS
from kd_plugins.structures import LabelledStructure
from kd_plugins.teachers import TeacherError, load_teacher

COPPER = LabelledStructure("cu", bulk("Cu", cubic=True))
NICKEL = LabelledStructure("ni/primitive", bulk("Ni"))
MD = MolecularDynamics(3, (2000, 1000), interval=3, equilibration=4)
ALL = Sampling(
    atoms=8,
    strain=Strain(3),
    rattle=Rattle(2),
    md=MD,
    vacancy=Vacancies(2),
    surface=Surfaces(4, layers=2),
)


def equal(one: LabelledStructure, other: LabelledStructure) -> bool:
    """Whether two structures are the same, bit for bit, with their origin."""
    return (
        one.structure_id == other.structure_id
        and one.atoms == other.atoms
        and str(one.atoms.info) == str(other.atoms.info)
    )


def test_each_method_makes_its_count_of_each_seed_structure() -> None:
    made = list(sample([COPPER, NICKEL], ALL, seed=0, potential="emt"))
    expected = [
        f"{seed}/{method}-{number:04d}"
        for seed in ("cu", "ni/primitive")
        for method in METHODS
        for number in range(ALL.count(method))
    ]
    assert [one.structure_id for one in made] == expected
    assert {crystal_of(one) for one in made} == {"cu", "ni/primitive"}
    assert all(one.atoms.info["seed_structure"] == crystal_of(one) for one in made)
    assert all(one.atoms.info["potential"] == "emt" for one in made)
    assert all(len(one.atoms) >= 7 for one in made)
    assert all(one.atoms.calc is None and not one.atoms.constraints for one in made)


def test_structures_depend_on_seed_seed_structure_and_number_alone() -> None:
    both = {one.structure_id: one for one in sample([COPPER, NICKEL], ALL, 0, "emt")}
    alone = list(sample([NICKEL], ALL, 0, "emt"))
    more = list(sample([NICKEL], replace(ALL, strain=Strain(5), rattle=Rattle()), 0, "emt"))
    other = list(sample([NICKEL], ALL, 1, "emt"))

    assert all(equal(both[one.structure_id], one) for one in alone)
    shared = [one for one in more if one.structure_id in both]
    assert len(shared) == len(alone) - 2
    assert all(equal(both[one.structure_id], one) for one in shared)
    assert not any(equal(one, two) for one, two in zip(alone, other, strict=True))


@pytest.mark.parametrize("stop", range(14))
def test_sampling_from_any_place_on_equals_uninterrupted(stop: int) -> None:
    whole = list(Sampler([COPPER], ALL, 0, "emt").draws())
    assert len(whole) == 14
    _, progress = whole[stop]

    rest = list(Sampler([COPPER], ALL, 0, "emt").draws(progress))
    assert len(rest) == 13 - stop
    for (one, its), (two, theirs) in zip(whole[stop + 1 :], rest, strict=True):
        assert equal(one, two)
        assert its == theirs


def test_strain_is_the_one_that_info_has() -> None:
    settings = Sampling(strain=Strain(20, linear=(-0.1, 0.2), shear=0.07, rattle=(0, 0)))
    strains = []
    for one in sample([COPPER], settings, seed=0):
        deformation = np.linalg.solve(COPPER.atoms.cell.array, one.atoms.cell.array)
        xx, yy, zz, yz, xz, xy = one.atoms.info["strain"]
        expected = [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]
        assert np.allclose(deformation - np.eye(3), expected)
        fractional = COPPER.atoms.get_scaled_positions()
        assert np.allclose(one.atoms.get_scaled_positions(wrap=False), fractional)
        strains.append(one.atoms.info["strain"])

    assert np.all(np.abs(np.array(strains)[:, 3:]) <= 0.07)
    assert np.linalg.matrix_rank(strains) == 6  # independent of each other
    assert np.array(strains)[:, :3].min() > -0.1 and np.array(strains)[:, :3].max() > 0.1


def test_rattle_has_the_spread_that_info_has() -> None:
    cell = LabelledStructure("cu", bulk("Cu", cubic=True) * (4, 4, 4))
    for one in sample([cell], Sampling(rattle=Rattle(3)), seed=0):
        moves = one.atoms.positions - cell.atoms.positions
        assert np.isclose(moves.std(), one.atoms.info["rattle"], rtol=0.15)
        assert 0.02 <= one.atoms.info["rattle"] <= 0.15
        assert np.all(one.atoms.cell == cell.atoms.cell)


def test_molecule_is_strained_and_rattled() -> None:
    water = LabelledStructure("water", molecule("H2O"))
    made = list(sample([water], Sampling(strain=Strain(2), rattle=Rattle(2, (0, 0.05))), seed=0))
    assert all(one.atoms.cell.rank == 0 and len(one.atoms) == 3 for one in made)
    assert not np.allclose(made[0].atoms.positions, water.atoms.positions)


def test_rigid_molecules_keep_their_bonds() -> None:
    water = molecule("H2O", cell=[5.0, 5.0, 5.0], pbc=True)
    crystal = LabelledStructure("ice", water)
    settings = RigidMolecules(count=2, linear_strain=(0.05, 0.1), rattle=0.0)

    for one in sample([crystal], Sampling(atoms=6, molecules=settings), seed=0):
        assert len(one.atoms) == 6
        lengths = one.atoms.get_all_distances(mic=True)[:3, :3]
        assert np.allclose(lengths, water.get_all_distances())
        assert one.atoms.get_volume() > 2 * water.get_volume()


def test_packed_molecules_are_rigid_and_touch_at_the_contact_of_info() -> None:
    water = molecule("H2O")
    seeds = [LabelledStructure("water", water)]
    settings = Packing(2, copies=3, trials=2, rattle=(0.0, 0.0))

    for one in sample(seeds, Sampling(packing=settings), seed=0):
        atoms = one.atoms
        assert len(atoms) == 9 and atoms.pbc.all()
        found = find_molecules(atoms)
        assert len(found) == 3
        for members in found.members:
            inner = np.linalg.norm(
                atoms.positions[members][:, None] - atoms.positions[members], axis=2
            )
            assert np.allclose(inner, water.get_all_distances())

        i, j, shifts, distances = neighbor_list("ijSd", atoms, 6.0)
        is_between = (found.index[i] != found.index[j]) | shifts.any(axis=1)
        ratios = distances / (vdw_radii[atoms.numbers[i]] + vdw_radii[atoms.numbers[j]])
        nearest = ratios[is_between].min()
        # No axis can shrink by another 2 %, and none has gone below the contact.
        assert atoms.info["contact"] <= nearest < 1.03 * atoms.info["contact"]


def test_vacancies_lack_atoms_of_the_repeated_cell() -> None:
    for one in sample([COPPER], Sampling(atoms=32, vacancy=Vacancies(2, missing=3)), seed=0):
        assert len(one.atoms) == 29


def test_slabs_go_through_the_miller_indices() -> None:
    slabs = list(sample([COPPER], Sampling(atoms=24, surface=Surfaces(4)), seed=0))
    assert [one.atoms.info["miller"] for one in slabs] == [
        (1, 0, 0),
        (1, 1, 0),
        (1, 1, 1),
        (1, 0, 0),
    ]
    for one in slabs:
        heights = one.atoms.positions[:, 2]
        assert len(one.atoms) >= 24
        assert one.atoms.cell.lengths()[2] - np.ptp(heights) > 15
        assert one.atoms.pbc.all()


def test_dynamics_goes_over_ladders_of_temperature_and_density() -> None:
    settings = MolecularDynamics(3, (900, 300), 1.5, 5, 7, 0.02, (1.04, 1.0))
    made = list(sample([COPPER], Sampling(md=settings), 0, EMT()))
    infos = [one.atoms.info for one in made]
    assert [one["temperature"] for one in infos] == [900, 600, 300]
    assert np.allclose([one["length_scale"] for one in infos], [1.04, 1.02, 1.0])
    lengths = [one.atoms.cell.lengths()[0] / COPPER.atoms.cell.lengths()[0] for one in made]
    assert np.allclose(lengths, [1.04, 1.02, 1.0])


def test_displacement_is_from_the_seed_without_drift() -> None:
    settings = MolecularDynamics(3, (2000,), interval=20, length_scales=(1.1, 1.0))
    for one, progress in Sampler([COPPER], Sampling(md=settings), 0, "emt").draws():
        assert progress.trajectory is not None
        positions = np.array(progress.trajectory["positions"])
        start = COPPER.atoms.positions * one.atoms.info["length_scale"]
        expected = np.sqrt(3 * (positions - start).var(axis=0).mean())
        assert np.isclose(one.atoms.info["displacement"], expected)
        assert 0.05 < expected < 3
        # The structure itself is wrapped.
        moves = np.linalg.solve(one.atoms.cell.array.T, (positions - one.atoms.positions).T)
        assert np.allclose(moves, np.round(moves), atol=1e-9)


def test_dynamics_reaches_its_temperature() -> None:
    settings = MolecularDynamics(10, (600,), interval=10, equilibration=60, friction=0.05)
    made = sample([COPPER], Sampling(atoms=32, md=settings), 0, "emt")
    crystal = _energy(bulk("Cu", cubic=True) * 2)
    rise = np.mean([_energy(one.atoms) for one in made]) - crystal
    # Equipartition, for a crystal that is not quite harmonic.
    assert 0.7 < rise / (1.5 * 32 * units.kB * 600) < 1.4


def test_every_structure_keeps_the_guards() -> None:
    settings = replace(ALL, min_distance=2.0, max_force=3.0, rattle=Rattle(8, (0.1, 0.3)))
    sampler = Sampler([COPPER], settings, 0, "emt")
    made = list(sampler.draws())
    for one, _ in made:
        distances = one.atoms.get_all_distances(mic=True)
        assert distances[distances > 0].min() >= 2.0
        (targets,) = load_teacher("emt").predict([one.atoms], ["forces"])
        assert np.linalg.norm(targets["forces"], axis=1).max() <= 3.0 + 1e-9
    rejected = made[-1][1].rejected
    assert rejected["min_distance"] > 0 and rejected["max_force"] > 0


def test_default_distance_is_a_share_of_the_covalent_radii() -> None:
    guards = Guards(None, 30.0)
    sum_of_radii = 0.31 * 2
    for share, passes in ((NEAREST + 0.01, True), (NEAREST - 0.01, False)):
        atoms = Atoms("H2", [[0, 0, 0], [0, 0, share * sum_of_radii]])
        assert (guards.reject(atoms) is None) == passes


def test_force_that_is_not_finite_is_rejected() -> None:
    atoms = bulk("Cu", cubic=True)
    forces = np.zeros((4, 3))
    forces[2, 1] = np.nan
    rejection = Guards(None, 30.0).reject(atoms, forces)
    assert rejection is not None and rejection.guard == "max_force" and "Cu2" in rejection.reason


def test_draws_that_always_fail_end_in_an_error() -> None:
    with pytest.raises(ValueError, match=r"cu/strain: none of 50 draws.*below 3.00.*min_distance"):
        list(sample([COPPER], Sampling(min_distance=3.0, strain=Strain(1)), seed=0))


def test_trajectory_that_comes_apart_ends_in_an_error() -> None:
    settings = MolecularDynamics(1, (1000,), timestep=500.0)
    with pytest.raises(ValueError, match="cu/md: molecular dynamics of Cu4 at 1000 K began anew"):
        list(sample([COPPER], Sampling(md=settings), 0, "emt"))


def test_what_cannot_be_sampled_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="nothing to sample"):
        sample([COPPER], Sampling(), 0)
    with pytest.raises(ValueError, match="md: needs a potential"):
        sample([COPPER], Sampling(md=MD), 0)
    with pytest.raises(ValueError, match="two seed structures are called 'cu'"):
        sample([COPPER, COPPER], Sampling(strain=Strain(1)), 0)
    with pytest.raises(TeacherError, match="unknown teacher 'emtt'"):
        sample([COPPER], Sampling(md=MD), 0, "emtt")
    with pytest.raises(ValueError, match="u: .*EMT"):
        uranium = LabelledStructure("u", bulk("U", "fcc", a=4.5))
        sample([uranium], Sampling(strain=Strain(1)), 0, "emt")


def _energy(atoms: Atoms) -> float:
    (targets,) = load_teacher("emt").predict([atoms], ["energy"])
    return float(targets["energy"])
