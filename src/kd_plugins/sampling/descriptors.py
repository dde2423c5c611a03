"""Describe structures by vectors: of a teacher's node embeddings, or of SOAP."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from kd_plugins.store.store import TargetStore
from kd_plugins.structures.readers import LabelledStructure, to_structure

EMBEDDINGS = "node_embeddings"
CUTOFF, N_MAX, L_MAX = 5.0, 6, 4
"""Of SOAP: cutoff in Å, radial functions and the largest degree. Ours; no paper gives them."""

Vectors = NDArray[np.float64]


def embedding_descriptors(
    structures: Sequence[LabelledStructure], store: TargetStore, progress: bool = True
) -> Vectors:
    """Return the mean and the spread of each structure's node embeddings, by element.

    Args:
        structures: whose targets the store holds.
        store: with ``node_embeddings``.
        progress: show a bar.

    Returns:
        (structures, 2 E D) for E elements and D features: for each element the means over its atoms
        and their standard deviations; zeros where a structure has none of it.

    Raises:
        ValueError: if the store has no embeddings, or another structure by an id.
        KeyError: for structures that are not in the store.
    """
    if EMBEDDINGS not in store.manifest.dtypes:
        raise ValueError(
            f"{store.folder} has no {EMBEDDINGS}, it has {', '.join(store.manifest.dtypes)}; label "
            "with a teacher that predicts them and --quantities energy forces node_embeddings, or "
            "leave the store out and structures are described by SOAP"
        )
    check_stored(structures, store)

    elements = _elements(structures)
    rows = []
    for one in _bar(structures, progress):
        values = store.read(one.structure_id, to_structure(one.atoms)).values
        if EMBEDDINGS not in values:
            raise ValueError(
                f"{store.folder}: {one.structure_id!r} has no {EMBEDDINGS}; label it again"
            )
        rows.append(_summarize(one, values[EMBEDDINGS].double().numpy(), elements))
    return np.array(rows)


def soap_descriptors(structures: Sequence[LabelledStructure], progress: bool = True) -> Vectors:
    """Return the mean and the spread of each structure's SOAP vectors, by element.

    SOAP (Bartók, Kondor, Csányi 2013) by the library DScribe, each atom's vector of length 1, as
    in the SOAP kernel.

    Args:
        structures: any.
        progress: show a bar.

    Returns:
        As `embedding_descriptors`.

    Raises:
        ImportError: if DScribe is not installed.
    """
    try:
        from dscribe.descriptors import SOAP
    except ImportError as error:
        raise ImportError(
            f"without --store structures are described by DScribe, which is not installed "
            f"({error}): pip install 'kd_plugins[select]', or give a --store with {EMBEDDINGS}"
        ) from error

    elements = _elements(structures)
    # With `periodic`, each structure's own `pbc` counts.
    soap = SOAP(r_cut=CUTOFF, n_max=N_MAX, l_max=L_MAX, species=elements, periodic=True)
    rows = []
    for one in _bar(structures, progress):
        features = soap.create(one.atoms)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        rows.append(_summarize(one, features, elements))
    return np.array(rows)


def check_stored(structures: Sequence[LabelledStructure], store: TargetStore) -> None:
    """Refuse structures that a store does not hold.

    Raises:
        KeyError: naming the first, and how many there are.
    """
    stored = set(store.ids())
    missing = [one.structure_id for one in structures if one.structure_id not in stored]
    if missing:
        raise KeyError(
            f"{len(missing)} of {len(structures)} structures are not in {store.folder}, such as "
            f"{missing[0]!r}; label them into it first (kd-plugins label)"
        )


def _summarize(structure: LabelledStructure, features: Vectors, elements: list[int]) -> Vectors:
    """Return means and standard deviations of features (N, D) over the atoms of each element."""
    parts = []
    for element in elements:
        of_element = features[structure.atoms.numbers == element]
        if len(of_element):
            parts += [of_element.mean(axis=0), of_element.std(axis=0)]
        else:
            parts += [np.zeros(features.shape[1])] * 2
    return np.concatenate(parts)


def _elements(structures: Sequence[LabelledStructure]) -> list[int]:
    return sorted({int(number) for one in structures for number in one.atoms.numbers})


def _bar(structures: Sequence[LabelledStructure], progress: bool) -> tqdm[LabelledStructure]:
    return tqdm(structures, "describe", unit=" structures", disable=None if progress else True)
