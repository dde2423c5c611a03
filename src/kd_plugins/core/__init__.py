"""Loss math and teacher targets, free of any host framework."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kd_plugins.names import lazy_names

if TYPE_CHECKING:
    from kd_plugins.core.contrastive import ContrastiveResult as ContrastiveResult
    from kd_plugins.core.contrastive import Crack as Crack
    from kd_plugins.core.contrastive import Instance as Instance
    from kd_plugins.core.contrastive import crack_loss as crack_loss
    from kd_plugins.core.contrastive import info_nce as info_nce
    from kd_plugins.core.contrastive import instance_loss as instance_loss
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
    from kd_plugins.core.negatives import SampledNegatives as SampledNegatives
    from kd_plugins.core.projection import Projection as Projection
    from kd_plugins.core.quantities import QUANTITIES as QUANTITIES
    from kd_plugins.core.quantities import Quantity as Quantity
    from kd_plugins.core.reduction import masked_mean as masked_mean
    from kd_plugins.core.schedules import SCHEDULES as SCHEDULES
    from kd_plugins.core.schedules import Constant as Constant
    from kd_plugins.core.schedules import Cosine as Cosine
    from kd_plugins.core.schedules import Linear as Linear
    from kd_plugins.core.schedules import Piecewise as Piecewise
    from kd_plugins.core.targets import TeacherTargets as TeacherTargets
    from kd_plugins.core.terms import CrackTerm as CrackTerm
    from kd_plugins.core.terms import Degrees as Degrees
    from kd_plugins.core.terms import DistanceTerm as DistanceTerm
    from kd_plugins.core.terms import DistillationLoss as DistillationLoss
    from kd_plugins.core.terms import InstanceTerm as InstanceTerm
    from kd_plugins.core.terms import LossInputs as LossInputs
    from kd_plugins.core.terms import LossReport as LossReport
    from kd_plugins.core.terms import TermReport as TermReport

_HOMES = {
    "SampledNegatives": "kd_plugins.core.negatives",
    "ContrastiveResult": "kd_plugins.core.contrastive",
    "Crack": "kd_plugins.core.contrastive",
    "Instance": "kd_plugins.core.contrastive",
    "crack_loss": "kd_plugins.core.contrastive",
    "info_nce": "kd_plugins.core.contrastive",
    "instance_loss": "kd_plugins.core.contrastive",
    "force_derivative": "kd_plugins.core.curvature",
    "random_directions": "kd_plugins.core.curvature",
    "DISTANCES": "kd_plugins.core.distances",
    "Huber": "kd_plugins.core.distances",
    "absolute_mean": "kd_plugins.core.distances",
    "absolute_sum": "kd_plugins.core.distances",
    "cosine_similarity": "kd_plugins.core.distances",
    "norm": "kd_plugins.core.distances",
    "squared_mean": "kd_plugins.core.distances",
    "squared_sum": "kd_plugins.core.distances",
    "Projection": "kd_plugins.core.projection",
    "QUANTITIES": "kd_plugins.core.quantities",
    "Quantity": "kd_plugins.core.quantities",
    "masked_mean": "kd_plugins.core.reduction",
    "SCHEDULES": "kd_plugins.core.schedules",
    "Constant": "kd_plugins.core.schedules",
    "Cosine": "kd_plugins.core.schedules",
    "Linear": "kd_plugins.core.schedules",
    "Piecewise": "kd_plugins.core.schedules",
    "TeacherTargets": "kd_plugins.core.targets",
    "CrackTerm": "kd_plugins.core.terms",
    "Degrees": "kd_plugins.core.terms",
    "DistanceTerm": "kd_plugins.core.terms",
    "DistillationLoss": "kd_plugins.core.terms",
    "InstanceTerm": "kd_plugins.core.terms",
    "LossInputs": "kd_plugins.core.terms",
    "LossReport": "kd_plugins.core.terms",
    "TermReport": "kd_plugins.core.terms",
}
_MOVED = {
    name: f"kd_plugins.store.{name}"
    for name in ("Manifest", "Record", "StoreError", "Structure", "TargetStore")
} | {"Comparison": "kd_plugins.core.contrastive.ContrastiveResult"}
__getattr__, __dir__ = lazy_names(__name__, _HOMES, _MOVED)
