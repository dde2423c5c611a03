"""Distillation inside fairchem-core's own trainers: name one of these as the ``trainer`` of a YAML.

Nothing of fairchem-core is imported, and no stand-in installed, before a trainer is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kd_plugins.fairchem.batch_teacher import eqv2 as eqv2
    from kd_plugins.fairchem.calculator import fairchem as fairchem
    from kd_plugins.fairchem.label_datasets import read_datasets as read_datasets
    from kd_plugins.fairchem.trainer import DistillTrainer as DistillTrainer
    from kd_plugins.fairchem.trainer import EqV2DistillTrainer as EqV2DistillTrainer

_ROOMS = {
    "DistillTrainer": "trainer",
    "EqV2DistillTrainer": "trainer",
    "eqv2": "batch_teacher",
    "fairchem": "calculator",
    "read_datasets": "label_datasets",
}
__all__ = ["DistillTrainer", "EqV2DistillTrainer", "eqv2", "fairchem", "read_datasets"]


def __getattr__(name: str) -> Any:
    """Import a trainer or a potential when it is first asked for (PEP 562).

    Raises:
        AttributeError: for a name that is not in ``__all__``.
        ImportError: naming the extra to install, if fairchem-core is missing.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kd_plugins.fairchem import compat

    compat.require_fairchem()
    compat.install()
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
