"""hippynn: a teacher's atomic energies as further targets of a HIPNN student."""

try:
    import hippynn as _hippynn  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"hippynn is not installed ({error}): pip install 'kd_plugins[hippynn]'"
    ) from error

from kd_plugins.hippynn.checkpoints import load_last_checkpoint
from kd_plugins.hippynn.convert import ArrayNames, DataError, structure_keys, to_arrays
from kd_plugins.hippynn.export import export_student, write_curves
from kd_plugins.hippynn.initial_energies import initialize_energies
from kd_plugins.hippynn.loss import (
    BORN_AGAIN,
    CONTROL,
    STUDENT,
    DistillationLoss,
    distillation_loss,
)
from kd_plugins.hippynn.pair_cache import cache_pairs
from kd_plugins.hippynn.preflight import check_database
from kd_plugins.hippynn.schedule import LossSchedule
from kd_plugins.hippynn.targets import TargetsReport, add_teacher_targets
from kd_plugins.hippynn.teacher import HippynnTeacher

# Without it, a star import would put our modules targets, loss and so on over hippynn's own.
__all__ = [
    "BORN_AGAIN",
    "CONTROL",
    "STUDENT",
    "ArrayNames",
    "DataError",
    "DistillationLoss",
    "HippynnTeacher",
    "LossSchedule",
    "TargetsReport",
    "add_teacher_targets",
    "cache_pairs",
    "check_database",
    "distillation_loss",
    "export_student",
    "initialize_energies",
    "load_last_checkpoint",
    "structure_keys",
    "to_arrays",
    "write_curves",
]
