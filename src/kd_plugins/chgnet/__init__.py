"""CHGNet: a student whose readout learns from a teacher, and a teacher of other students.

Nothing of CHGNet is imported before something is asked for.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

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
    from kd_plugins.chgnet.student import freeze_except as freeze_except
    from kd_plugins.chgnet.trainer import DistillTrainer as DistillTrainer

if find_spec("chgnet") is None:
    _missing = "CHGNet is not installed: pip install 'kd_plugins[chgnet]'"
    # `python -m` imports this before anything of ours can make a sentence of an error
    if sys.argv[:1] == ["-m"]:
        print(f"error: {_missing}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(_missing)

_ROOMS = {
    "CachedData": "frozen_trunk",
    "DataError": "data",
    "DistillData": "data",
    "DistillLoss": "loss",
    "DistillTrainer": "trainer",
    "Distilled": "distilling",
    "FitSettings": "fitting",
    "Fitted": "fitting",
    "FrozenTrunk": "frozen_trunk",
    "Ratios": "loss",
    "align_references": "student",
    "distill": "distilling",
    "fit": "fitting",
    "freeze_except": "student",
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
    "distill",
    "fit",
    "freeze_except",
]


def __getattr__(name: str) -> Any:
    """Import a part when it is first asked for (PEP 562).

    So ``python -m kd_plugins.chgnet`` answers Ctrl-C, which it could not while it imports CHGNet.

    Raises:
        AttributeError: for a name that is not in ``__all__``.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
