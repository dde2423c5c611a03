"""Structures with their labels, read from any file and written as extended xyz."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kd_plugins.names import lazy_names

if TYPE_CHECKING:
    from kd_plugins.structures.export import export_extxyz as export_extxyz
    from kd_plugins.structures.imported import import_labels as import_labels
    from kd_plugins.structures.readers import LabelledStructure as LabelledStructure
    from kd_plugins.structures.readers import read_structures as read_structures

_HOMES = {
    "LabelledStructure": "kd_plugins.structures.readers",
    "export_extxyz": "kd_plugins.structures.export",
    "import_labels": "kd_plugins.structures.imported",
    "read_structures": "kd_plugins.structures.readers",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
