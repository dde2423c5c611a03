"""Molecular crystals: their molecules, random and scaled copies of them, kinds and subsets."""

from kd_plugins.crystals.composition import kind as kind
from kd_plugins.crystals.composition import of_kind as of_kind
from kd_plugins.crystals.deformation import Deformation as Deformation
from kd_plugins.crystals.deformation import deformed as deformed
from kd_plugins.crystals.deformation import deformed_frames as deformed_frames
from kd_plugins.crystals.deformation import scale_rigidly as scale_rigidly
from kd_plugins.crystals.molecules import Molecules as Molecules
from kd_plugins.crystals.molecules import find_molecules as find_molecules
from kd_plugins.crystals.subsets import crystal_of as crystal_of
from kd_plugins.crystals.subsets import nested_subset as nested_subset
from kd_plugins.crystals.subsets import split as split
from kd_plugins.crystals.volume_scan import Minimum as Minimum
from kd_plugins.crystals.volume_scan import minimum_volume as minimum_volume
from kd_plugins.crystals.volume_scan import volume_scan as volume_scan
