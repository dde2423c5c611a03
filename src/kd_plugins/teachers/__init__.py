"""Teachers: any potential labels structures into a `kd_plugins.TargetStore`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kd_plugins.names import lazy_names

if TYPE_CHECKING:
    from kd_plugins.teachers.calculator import CalculatorTeacher as CalculatorTeacher
    from kd_plugins.teachers.calculator import as_teacher as as_teacher
    from kd_plugins.teachers.ensemble import Ensemble as Ensemble
    from kd_plugins.teachers.failure_log import failures as failures
    from kd_plugins.teachers.labelling import LabelReport as LabelReport
    from kd_plugins.teachers.labelling import label as label
    from kd_plugins.teachers.registry import load_teacher as load_teacher
    from kd_plugins.teachers.teacher import Teacher as Teacher
    from kd_plugins.teachers.teacher import TeacherError as TeacherError

_HOMES = {
    "CalculatorTeacher": "kd_plugins.teachers.calculator",
    "as_teacher": "kd_plugins.teachers.calculator",
    "Ensemble": "kd_plugins.teachers.ensemble",
    "failures": "kd_plugins.teachers.failure_log",
    "LabelReport": "kd_plugins.teachers.labelling",
    "label": "kd_plugins.teachers.labelling",
    "load_teacher": "kd_plugins.teachers.registry",
    "Teacher": "kd_plugins.teachers.teacher",
    "TeacherError": "kd_plugins.teachers.teacher",
}
_MOVED = {
    "Frame": "kd_plugins.structures.LabelledStructure",
    "export_extxyz": "kd_plugins.structures.export_extxyz",
    "import_labels": "kd_plugins.structures.import_labels",
    "read_structures": "kd_plugins.structures.read_structures",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES, _MOVED)
