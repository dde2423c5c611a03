"""Selection: farthest points, largest spreads, and an order of the pool that changes nothing."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_plugins import TargetStore
from kd_plugins.cli import main
from kd_plugins.sampling import Rattle, Sampling, farthest_points, nested_subset, sample, select
from kd_plugins.sampling.descriptors import embedding_descriptors, soap_descriptors
from kd_plugins.store import Manifest, Record
from kd_plugins.structures import LabelledStructure, read_structures
from kd_plugins.structures.readers import to_structure

WIDTH = 3
COORDINATES = st.integers(-9, 9)
needs_dscribe = pytest.mark.skipif(find_spec("dscribe") is None, reason="dscribe is not installed")


@pytest.fixture(scope="module")
def pool() -> list[LabelledStructure]:
    crystal = bulk("Cu", cubic=True)
    crystal.symbols[0] = "Ag"
    seeds = [LabelledStructure("cu", bulk("Cu", cubic=True)), LabelledStructure("agcu", crystal)]
    return list(sample(seeds, Sampling(rattle=Rattle(6)), seed=0))


@pytest.fixture(scope="module")
def store(pool: list[LabelledStructure], tmp_path_factory: pytest.TempPathFactory) -> TargetStore:
    """Embeddings and spreads that are random numbers."""
    dtypes = {"energy": "float64", "node_embeddings": "float32", "forces_std": "float32"}
    folder = tmp_path_factory.mktemp("targets") / "store"
    made = TargetStore.create(folder, Manifest("random", "random", dtypes))
    generator = torch.Generator().manual_seed(0)
    made.append(
        Record(
            one.structure_id,
            to_structure(one.atoms),
            {
                "energy": torch.tensor(0.0),
                "node_embeddings": torch.randn(4, WIDTH, generator=generator),
                "forces_std": torch.rand(4, 3, generator=generator),
            },
        )
        for one in pool
    )
    return made


def ids(structures: tuple[LabelledStructure, ...]) -> list[str]:
    return [one.structure_id for one in structures]


@settings(max_examples=60, deadline=None)
@given(
    points=st.lists(st.tuples(COORDINATES, COORDINATES), min_size=1, max_size=8),
    beside=st.lists(st.tuples(COORDINATES, COORDINATES), max_size=3),
    data=st.data(),
)
def test_each_chosen_point_is_the_farthest_from_those_before(
    points: list[tuple[int, int]], beside: list[tuple[int, int]], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(points)))
    array, others = np.array(points, float), np.array(beside, float).reshape(-1, 2)
    chosen, distances, radius = farthest_points(array, count, others)

    def least(point: np.ndarray, indices: np.ndarray) -> float:
        return min(np.linalg.norm(point - one) for one in [*others, *array[indices]])

    assert len(set(chosen.tolist())) == count
    for step, (index, distance) in enumerate(zip(chosen, distances, strict=True)):
        if step == 0 and not beside:
            from_mean = np.linalg.norm(array - array.mean(axis=0), axis=1)
            assert from_mean[index] == from_mean.min() and np.isnan(distance)
            continue
        assert np.isclose(distance, least(array[index], chosen[:step]))
        assert np.isclose(distance, max(least(point, chosen[:step]) for point in array))
    assert np.isclose(radius, max(least(point, chosen) for point in array))


@settings(max_examples=60, deadline=None)
@given(
    points=st.lists(st.tuples(COORDINATES, COORDINATES), min_size=2, max_size=8),
    data=st.data(),
)
def test_covering_radius_is_at_most_twice_the_best(
    points: list[tuple[int, int]], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(points)))
    array = np.array(points, float)
    _, _, radius = farthest_points(array, count)

    apart = np.linalg.norm(array[:, None] - array[None], axis=-1)
    best = min(
        apart[list(some)].min(axis=0).max() for some in combinations(range(len(array)), count)
    )
    assert radius <= 2 * best + 1e-9


@pytest.mark.parametrize("by", ["distance", "spread", "random"])
def test_order_of_the_pool_changes_nothing(
    pool: list[LabelledStructure], store: TargetStore, by: str
) -> None:
    beside = pool[3:5]
    first = select(pool, 4, by, store, beside, progress=False)  # type: ignore[arg-type]
    second = select(pool[::-1], 4, by, store, beside[::-1], progress=False)  # type: ignore[arg-type]
    assert ids(first.structures) == ids(second.structures)
    assert np.array_equal(first.scores, second.scores, equal_nan=True)
    assert not set(ids(first.structures)) & {one.structure_id for one in beside}
    fewer = select(pool, 2, by, store, beside, progress=False)  # type: ignore[arg-type]
    assert ids(fewer.structures) == ids(first.structures[:2])


def test_descriptors_are_means_and_spreads_by_element(
    pool: list[LabelledStructure], store: TargetStore
) -> None:
    vectors = embedding_descriptors(pool, store, progress=False)
    assert vectors.shape == (len(pool), 2 * 2 * WIDTH)
    for vector, one in zip(vectors, pool, strict=True):
        embeddings = store[one.structure_id].values["node_embeddings"].numpy()
        copper = embeddings[one.atoms.symbols == "Cu"]
        assert np.allclose(vector[: 2 * WIDTH], [*copper.mean(axis=0), *copper.std(axis=0)])
        if "Ag" not in one.atoms.symbols:
            assert not vector[2 * WIDTH :].any()


def test_largest_spreads_come_first(pool: list[LabelledStructure], store: TargetStore) -> None:
    def spread(one: LabelledStructure) -> float:
        return store[one.structure_id].values["forces_std"].norm(dim=1).max().item()

    chosen = select(pool, 5, "spread", store, progress=False)
    assert chosen.quantity == "forces_std"
    assert np.allclose(chosen.scores, sorted(map(spread, pool), reverse=True)[:5])
    assert np.allclose([spread(one) for one in chosen.structures], chosen.scores)


def test_random_is_a_nested_subset(pool: list[LabelledStructure]) -> None:
    names = [one.structure_id for one in pool]
    chosen = select(pool, 5, "random", seed=3, progress=False)
    assert ids(chosen.structures) == nested_subset(names, 5, seed=3)


@needs_dscribe
def test_soap_descriptors_do_not_change_with_rotation(pool: list[LabelledStructure]) -> None:
    turned = []
    for one in pool:
        atoms = one.atoms.copy()
        atoms.rotate(35, (1, 2, 3), rotate_cell=True)
        turned.append(LabelledStructure(one.structure_id, atoms[::-1]))

    one, two = (soap_descriptors(some, progress=False) for some in (pool, turned))
    assert np.allclose(one, two, atol=1e-7)
    assert np.ptp(one, axis=0).max() > 1e-3
    chosen = select(pool, 4, progress=False)
    assert ids(chosen.structures) == ids(select(turned, 4, progress=False).structures)


def test_chosen_structures_keep_their_labels_and_origin(tmp_path: Path) -> None:
    main(["sample", str(_seed(tmp_path)), "--strain", "4", "--out", str(tmp_path / "pool.extxyz")])
    pool = tmp_path / "pool.extxyz"
    main(["label", str(pool), "--teacher", "emt", "--store", str(tmp_path / "store")])
    main(["export", str(tmp_path / "store"), str(tmp_path / "labelled.extxyz")])
    for source, name in ((pool, "a"), (tmp_path / "labelled.extxyz", "b")):
        words = ["select", str(source), "--count", "2", "--by", "random"]
        assert main([*words, "--out", str(tmp_path / f"{name}.extxyz")]) == 0

    bare, labelled = (list(read_structures([tmp_path / f"{name}.extxyz"])) for name in "ab")
    originals = {one.structure_id: one for one in read_structures([pool])}
    for one in bare:
        assert one.atoms == originals[one.structure_id].atoms
        assert str(one.atoms.info) == str(originals[one.structure_id].atoms.info)
    store = TargetStore.open(tmp_path / "store")
    for one in labelled:
        targets = store[one.structure_id].values
        assert np.allclose(one.labels["energy"], targets["energy"].item())
        assert np.allclose(one.labels["forces"], targets["forces"], atol=1e-6)
        assert np.allclose(one.labels["stress"], targets["stress"][0], atol=1e-7)
        assert np.allclose(one.labels["atomic_energies"], targets["atomic_energies"], atol=1e-6)


def _seed(folder: Path) -> Path:
    path = folder / "cu.extxyz"
    bulk("Cu", cubic=True).write(path)
    return path
