"""Loss math and teacher targets, free of any host framework."""

import warnings
from importlib import import_module
from typing import Any

from kd_plugins.core.curvature import force_derivative as force_derivative
from kd_plugins.core.curvature import random_directions as random_directions
from kd_plugins.core.distances import DISTANCES as DISTANCES
from kd_plugins.core.distances import Huber as Huber
from kd_plugins.core.distances import absolute_mean as absolute_mean
from kd_plugins.core.distances import absolute_sum as absolute_sum
from kd_plugins.core.distances import cosine_similarity as cosine_similarity
from kd_plugins.core.distances import norm as norm
from kd_plugins.core.distances import squared_mean as squared_mean
from kd_plugins.core.distances import squared_sum as squared_sum
from kd_plugins.core.loss import CrackTerm as CrackTerm
from kd_plugins.core.loss import DistanceTerm as DistanceTerm
from kd_plugins.core.loss import DistillationLoss as DistillationLoss
from kd_plugins.core.loss import InstanceTerm as InstanceTerm
from kd_plugins.core.loss import LossInputs as LossInputs
from kd_plugins.core.loss import LossReport as LossReport
from kd_plugins.core.loss import TermReport as TermReport
from kd_plugins.core.pairing import Comparison as Comparison
from kd_plugins.core.projection import Projection as Projection
from kd_plugins.core.quantities import QUANTITIES as QUANTITIES
from kd_plugins.core.quantities import Quantity as Quantity
from kd_plugins.core.reduction import masked_mean as masked_mean
from kd_plugins.core.relations import Crack as Crack
from kd_plugins.core.relations import Instance as Instance
from kd_plugins.core.relations import crack_loss as crack_loss
from kd_plugins.core.relations import instance_loss as instance_loss
from kd_plugins.core.schedules import SCHEDULES as SCHEDULES
from kd_plugins.core.schedules import Constant as Constant
from kd_plugins.core.schedules import Cosine as Cosine
from kd_plugins.core.schedules import Linear as Linear
from kd_plugins.core.schedules import Piecewise as Piecewise
from kd_plugins.core.targets import TeacherTargets as TeacherTargets

_MOVED = ("Manifest", "Record", "StoreError", "Structure", "TargetStore")


def __getattr__(name: str) -> Any:
    """Return a name that has moved to `kd_plugins.store`, for one version more.

    Raises:
        AttributeError: for any other name.
    """
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"{__name__}.{name} is kd_plugins.store.{name} now", DeprecationWarning, stacklevel=2
    )
    return getattr(import_module("kd_plugins.store"), name)
