"""CHGNet: a student whose readout learns from a teacher, and a teacher of other students."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from kd_plugins.names import lazy_names

if TYPE_CHECKING:
    from kd_plugins.chgnet.data import DataError as DataError
    from kd_plugins.chgnet.data import DistillData as DistillData
    from kd_plugins.chgnet.distilling import Distilled as Distilled
    from kd_plugins.chgnet.distilling import distill as distill
    from kd_plugins.chgnet.fitting import FitSettings as FitSettings
    from kd_plugins.chgnet.fitting import Fitted as Fitted
    from kd_plugins.chgnet.fitting import fit as fit
    from kd_plugins.chgnet.frozen_trunk import CachedData as CachedData
    from kd_plugins.chgnet.frozen_trunk import FrozenTrunk as FrozenTrunk
    from kd_plugins.chgnet.loss import DistillLoss as DistillLoss
    from kd_plugins.chgnet.loss import Ratios as Ratios
    from kd_plugins.chgnet.student import align_references as align_references
    from kd_plugins.chgnet.student import align_targets as align_targets
    from kd_plugins.chgnet.student import freeze_except as freeze_except
    from kd_plugins.chgnet.trainer import DistillTrainer as DistillTrainer

if find_spec("chgnet") is None:
    _missing = "CHGNet is not installed: pip install 'kd_plugins[chgnet]'"
    # `python -m` imports this package before `__main__` could turn an error into a sentence.
    if sys.argv[:1] == ["-m"]:
        print(f"error: {_missing}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(_missing)

# Imported when they are first used, so that ``python -m kd_plugins.chgnet`` answers Ctrl-C while it
# imports CHGNet. So no module here may be called like a public function.
_HOMES = {
    "CachedData": "kd_plugins.chgnet.frozen_trunk",
    "DataError": "kd_plugins.chgnet.data",
    "DistillData": "kd_plugins.chgnet.data",
    "DistillLoss": "kd_plugins.chgnet.loss",
    "DistillTrainer": "kd_plugins.chgnet.trainer",
    "Distilled": "kd_plugins.chgnet.distilling",
    "FitSettings": "kd_plugins.chgnet.fitting",
    "Fitted": "kd_plugins.chgnet.fitting",
    "FrozenTrunk": "kd_plugins.chgnet.frozen_trunk",
    "Ratios": "kd_plugins.chgnet.loss",
    "align_references": "kd_plugins.chgnet.student",
    "align_targets": "kd_plugins.chgnet.student",
    "distill": "kd_plugins.chgnet.distilling",
    "fit": "kd_plugins.chgnet.fitting",
    "freeze_except": "kd_plugins.chgnet.student",
}
__all__ = [
    "CachedData",
    "DataError",
    "DistillData",
    "DistillLoss",
    "DistillTrainer",
    "Distilled",
    "FitSettings",
    "Fitted",
    "FrozenTrunk",
    "Ratios",
    "align_references",
    "align_targets",
    "distill",
    "fit",
    "freeze_except",
]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
