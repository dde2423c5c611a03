"""Where a measurement comes from: potentials, structures, versions."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from kd_plugins.evaluate.settings import Measure
from kd_plugins.files import file_hash

PACKAGES = ("kd_plugins", "torch", "ase", "numpy", "fairchem-core", "hippynn", "chgnet")


def provenance(
    settings: Measure, teacher: str | None, fingerprint: str | None, command: str | None
) -> dict[str, Any]:
    """Return what a page tells about the origin of its numbers.

    Args:
        settings: what was measured, with the structures' files.
        teacher: by name.
        fingerprint: the teacher's, if it is known.
        command: that measured.
    """
    said = {"command": command, "teacher": teacher or "none", "teacher fingerprint": fingerprint}
    files = {name: file_hash(Path(name)) for name in settings.files}
    found = {**said, "structures (SHA-256)": files, "versions": dict(_versions())}
    return {name: value for name, value in found.items() if value is not None}


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
