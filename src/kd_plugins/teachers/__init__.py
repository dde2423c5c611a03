"""Teacher targets: any ASE calculator labels structures into a `kd_plugins.TargetStore`."""

from kd_plugins.teachers.calculator import CalculatorTeacher as CalculatorTeacher
from kd_plugins.teachers.ensemble import Ensemble as Ensemble
from kd_plugins.teachers.export import export_extxyz as export_extxyz
from kd_plugins.teachers.failures import failures as failures
from kd_plugins.teachers.imported import import_labels as import_labels
from kd_plugins.teachers.label_run import LabelReport as LabelReport
from kd_plugins.teachers.labelling import label as label
from kd_plugins.teachers.spec import load_teacher as load_teacher
from kd_plugins.teachers.structures import Frame as Frame
from kd_plugins.teachers.structures import read_structures as read_structures
from kd_plugins.teachers.teacher import Teacher as Teacher
from kd_plugins.teachers.teacher import TeacherError as TeacherError
