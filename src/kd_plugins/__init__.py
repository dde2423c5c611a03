"""Knowledge distillation of machine-learned interatomic potentials, inside the host's trainer."""

from kd_plugins.core import Crack as Crack
from kd_plugins.core import CrackTerm as CrackTerm
from kd_plugins.core import DistanceTerm as DistanceTerm
from kd_plugins.core import DistillationLoss as DistillationLoss
from kd_plugins.core import Instance as Instance
from kd_plugins.core import InstanceTerm as InstanceTerm
from kd_plugins.core import TargetStore as TargetStore
from kd_plugins.core import TeacherTargets as TeacherTargets
from kd_plugins.core import crack_loss as crack_loss
from kd_plugins.core import instance_loss as instance_loss
from kd_plugins.core import masked_mean as masked_mean

__version__ = "0.1.0"
