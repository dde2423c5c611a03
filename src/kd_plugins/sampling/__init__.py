"""Sampling of training structures: deformed molecular crystals, kinds of crystals, subsets."""

from kd_plugins.sampling.composition import kind as kind
from kd_plugins.sampling.composition import of_kind as of_kind
from kd_plugins.sampling.deformation import Deformation as Deformation
from kd_plugins.sampling.deformation import deformed as deformed
from kd_plugins.sampling.deformation import deformed_frames as deformed_frames
from kd_plugins.sampling.deformation import scale_rigidly as scale_rigidly
from kd_plugins.sampling.molecules import Molecules as Molecules
from kd_plugins.sampling.molecules import find_molecules as find_molecules
from kd_plugins.sampling.subsets import crystal_of as crystal_of
from kd_plugins.sampling.subsets import nested_subset as nested_subset
from kd_plugins.sampling.subsets import split as split
from kd_plugins.sampling.volume_scan import Minimum as Minimum
from kd_plugins.sampling.volume_scan import minimum_volume as minimum_volume
from kd_plugins.sampling.volume_scan import volume_scan as volume_scan
