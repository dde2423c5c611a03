"""hippynn: a teacher's atomic energies as further targets of a HIPNN student."""

try:
    import hippynn as _hippynn  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"hippynn is not installed ({error}): pip install 'kd_plugins[hippynn]'"
    ) from error

from kd_plugins.hippynn.arrays import ArrayNames as ArrayNames
from kd_plugins.hippynn.arrays import DataError as DataError
from kd_plugins.hippynn.arrays import structure_keys as structure_keys
from kd_plugins.hippynn.arrays import to_arrays as to_arrays
from kd_plugins.hippynn.curves import write_curves as write_curves
from kd_plugins.hippynn.export import export_student as export_student
from kd_plugins.hippynn.loss import DistillationLoss as DistillationLoss
from kd_plugins.hippynn.loss import distillation_loss as distillation_loss
from kd_plugins.hippynn.pair_cache import cache_pairs as cache_pairs
from kd_plugins.hippynn.paper import BORN_AGAIN as BORN_AGAIN
from kd_plugins.hippynn.paper import CONTROL as CONTROL
from kd_plugins.hippynn.paper import STUDENT as STUDENT
from kd_plugins.hippynn.schedule import LossSchedule as LossSchedule
from kd_plugins.hippynn.targets import TargetsReport as TargetsReport
from kd_plugins.hippynn.targets import add_teacher_targets as add_teacher_targets
from kd_plugins.hippynn.teacher import HippynnTeacher as HippynnTeacher
