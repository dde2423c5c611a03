"""CHGNet: a student whose readout learns from a teacher, and a teacher of other students."""

try:
    import chgnet as _chgnet  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"CHGNet is not installed ({error}): pip install 'kd_plugins[chgnet]'"
    ) from error

from kd_plugins.chgnet.alignment import align_references as align_references
from kd_plugins.chgnet.data import DataError as DataError
from kd_plugins.chgnet.data import DistillData as DistillData
from kd_plugins.chgnet.distill import Distilled as Distilled
from kd_plugins.chgnet.distill import distill as distill
from kd_plugins.chgnet.fit import Fitted as Fitted
from kd_plugins.chgnet.fit import fit as fit
from kd_plugins.chgnet.freezing import freeze_except as freeze_except
from kd_plugins.chgnet.loss import DistillLoss as DistillLoss
from kd_plugins.chgnet.schedule import FitSettings as FitSettings
from kd_plugins.chgnet.trainer import DistillTrainer as DistillTrainer
from kd_plugins.chgnet.trunk import FrozenTrunk as FrozenTrunk
from kd_plugins.chgnet.trunk_cache import CachedData as CachedData
from kd_plugins.chgnet.weights import Ratios as Ratios
