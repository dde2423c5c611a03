"""Structures with their labels, from any file and into one."""

from kd_plugins.structures.export import export_extxyz as export_extxyz
from kd_plugins.structures.imported import import_labels as import_labels
from kd_plugins.structures.readers import LabelledStructure as LabelledStructure
from kd_plugins.structures.readers import read_structures as read_structures
