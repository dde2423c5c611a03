"""Training structures: made from seed structures, chosen, and divided into sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kd_plugins.names import lazy_names

if TYPE_CHECKING:
    from kd_plugins.sampling.composition import kind as kind
    from kd_plugins.sampling.composition import of_kind as of_kind
    from kd_plugins.sampling.deformation import Deformation as Deformation
    from kd_plugins.sampling.deformation import deformed as deformed
    from kd_plugins.sampling.deformation import deformed_frames as deformed_frames
    from kd_plugins.sampling.deformation import scale_rigidly as scale_rigidly
    from kd_plugins.sampling.molecules import Molecules as Molecules
    from kd_plugins.sampling.molecules import find_molecules as find_molecules
    from kd_plugins.sampling.pool import write_pool as write_pool
    from kd_plugins.sampling.rigid_volumes import Minimum as Minimum
    from kd_plugins.sampling.rigid_volumes import minimum_volume as minimum_volume
    from kd_plugins.sampling.rigid_volumes import volume_scan as volume_scan
    from kd_plugins.sampling.sampler import sample as sample
    from kd_plugins.sampling.selection import Selection as Selection
    from kd_plugins.sampling.selection import farthest_points as farthest_points
    from kd_plugins.sampling.selection import select as select
    from kd_plugins.sampling.settings import MolecularDynamics as MolecularDynamics
    from kd_plugins.sampling.settings import Packing as Packing
    from kd_plugins.sampling.settings import Rattle as Rattle
    from kd_plugins.sampling.settings import RigidMolecules as RigidMolecules
    from kd_plugins.sampling.settings import Sampling as Sampling
    from kd_plugins.sampling.settings import Strain as Strain
    from kd_plugins.sampling.settings import Surfaces as Surfaces
    from kd_plugins.sampling.settings import Vacancies as Vacancies
    from kd_plugins.sampling.subsets import crystal_of as crystal_of
    from kd_plugins.sampling.subsets import nested_subset as nested_subset
    from kd_plugins.sampling.subsets import split as split

_HOMES = {
    "kind": "kd_plugins.sampling.composition",
    "of_kind": "kd_plugins.sampling.composition",
    "Deformation": "kd_plugins.sampling.deformation",
    "deformed": "kd_plugins.sampling.deformation",
    "deformed_frames": "kd_plugins.sampling.deformation",
    "scale_rigidly": "kd_plugins.sampling.deformation",
    "Molecules": "kd_plugins.sampling.molecules",
    "find_molecules": "kd_plugins.sampling.molecules",
    "Minimum": "kd_plugins.sampling.rigid_volumes",
    "minimum_volume": "kd_plugins.sampling.rigid_volumes",
    "volume_scan": "kd_plugins.sampling.rigid_volumes",
    "write_pool": "kd_plugins.sampling.pool",
    "sample": "kd_plugins.sampling.sampler",
    "Selection": "kd_plugins.sampling.selection",
    "farthest_points": "kd_plugins.sampling.selection",
    "select": "kd_plugins.sampling.selection",
    "MolecularDynamics": "kd_plugins.sampling.settings",
    "Packing": "kd_plugins.sampling.settings",
    "Rattle": "kd_plugins.sampling.settings",
    "RigidMolecules": "kd_plugins.sampling.settings",
    "Sampling": "kd_plugins.sampling.settings",
    "Strain": "kd_plugins.sampling.settings",
    "Surfaces": "kd_plugins.sampling.settings",
    "Vacancies": "kd_plugins.sampling.settings",
    "crystal_of": "kd_plugins.sampling.subsets",
    "nested_subset": "kd_plugins.sampling.subsets",
    "split": "kd_plugins.sampling.subsets",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
