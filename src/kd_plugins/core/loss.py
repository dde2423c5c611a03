"""The old name of `kd_plugins.core.terms`."""

from kd_plugins.core.terms import CrackTerm as CrackTerm  # until fairchem follows
from kd_plugins.core.terms import DistanceTerm as DistanceTerm
from kd_plugins.core.terms import DistillationLoss as DistillationLoss
from kd_plugins.core.terms import InstanceTerm as InstanceTerm
from kd_plugins.core.terms import LossInputs as LossInputs
from kd_plugins.core.terms import LossReport as LossReport
from kd_plugins.core.terms import Term as Term
