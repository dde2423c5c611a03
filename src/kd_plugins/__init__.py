"""Knowledge distillation of machine-learned interatomic potentials, inside the host's trainer.

Nothing is imported before it is asked for, so that a command answers Ctrl-C from its start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kd_plugins.names import lazy_names

if TYPE_CHECKING:
    from kd_plugins.core import Crack as Crack
    from kd_plugins.core import CrackTerm as CrackTerm
    from kd_plugins.core import DistanceTerm as DistanceTerm
    from kd_plugins.core import DistillationLoss as DistillationLoss
    from kd_plugins.core import Instance as Instance
    from kd_plugins.core import InstanceTerm as InstanceTerm
    from kd_plugins.core import TeacherTargets as TeacherTargets
    from kd_plugins.core import crack_loss as crack_loss
    from kd_plugins.core import instance_loss as instance_loss
    from kd_plugins.core import masked_mean as masked_mean
    from kd_plugins.store import TargetStore as TargetStore

__version__ = "0.1.0"

_HOMES = {
    "Crack": "kd_plugins.core",
    "CrackTerm": "kd_plugins.core",
    "DistanceTerm": "kd_plugins.core",
    "DistillationLoss": "kd_plugins.core",
    "Instance": "kd_plugins.core",
    "InstanceTerm": "kd_plugins.core",
    "TargetStore": "kd_plugins.store",
    "TeacherTargets": "kd_plugins.core",
    "core": "kd_plugins.core",
    "crack_loss": "kd_plugins.core",
    "instance_loss": "kd_plugins.core",
    "masked_mean": "kd_plugins.core",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
