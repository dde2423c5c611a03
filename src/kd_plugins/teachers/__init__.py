"""Teacher targets: any ASE calculator labels structures into a `kd_plugins.TargetStore`."""

import warnings
from importlib import import_module
from typing import Any

from kd_plugins.teachers.calculator import CalculatorTeacher as CalculatorTeacher
from kd_plugins.teachers.calculator import as_teacher as as_teacher
from kd_plugins.teachers.ensemble import Ensemble as Ensemble
from kd_plugins.teachers.failure_log import failures as failures
from kd_plugins.teachers.labelling import LabelReport as LabelReport
from kd_plugins.teachers.labelling import label as label
from kd_plugins.teachers.registry import load_teacher as load_teacher
from kd_plugins.teachers.teacher import Teacher as Teacher
from kd_plugins.teachers.teacher import TeacherError as TeacherError

_MOVED = {
    "Frame": "LabelledStructure",
    "export_extxyz": "export_extxyz",
    "import_labels": "import_labels",
    "read_structures": "read_structures",
}


def __getattr__(name: str) -> Any:
    """Return a name that has moved to `kd_plugins.structures`, for one version more.

    Raises:
        AttributeError: for any other name.
    """
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"{__name__}.{name} is kd_plugins.structures.{_MOVED[name]} now",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(import_module("kd_plugins.structures"), _MOVED[name])
