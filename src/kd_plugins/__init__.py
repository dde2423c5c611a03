"""Knowledge distillation of machine-learned interatomic potentials, inside the host's trainer.

Nothing is imported before it is asked for, so that a command answers Ctrl-C from its start.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
__all__ = [
    "Crack",
    "CrackTerm",
    "DistanceTerm",
    "DistillationLoss",
    "Instance",
    "InstanceTerm",
    "TargetStore",
    "TeacherTargets",
    "crack_loss",
    "instance_loss",
    "masked_mean",
]


def __getattr__(name: str) -> Any:
    """Import a part when it is first asked for (PEP 562).

    Raises:
        AttributeError: for a name that is not in ``__all__``.
    """
    if name == "core":
        return import_module("kd_plugins.core")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = "kd_plugins.store" if name == "TargetStore" else "kd_plugins.core"
    return getattr(import_module(room), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
