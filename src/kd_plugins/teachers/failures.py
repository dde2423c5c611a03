"""Which structures a teacher could not label, and why."""

from __future__ import annotations

import json
import os
from pathlib import Path

from kd_plugins.core.store import TargetStore

FAILURES = "failures.jsonl"


class FailureLog:
    """Appends to ``failures.jsonl`` in a store's folder; a line torn by a kill does no harm.

    Args:
        folder: of the store.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FAILURES
        self._known = _read(self.path)
        self._torn = self.path.exists() and not self.path.read_text().endswith("\n")

    def add(self, reasons: dict[str, str]) -> None:
        """Write structure id to reason durably, but for what stands there already."""
        new = {name: why for name, why in reasons.items() if self._known.get(name) != why}
        if not new:
            return
        lines = [json.dumps({"structure_id": name, "reason": why}) for name, why in new.items()]
        with self.path.open("a") as file:
            file.write("\n" * self._torn + "\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._torn = False
        self._known.update(new)


def failures(store: TargetStore) -> dict[str, str]:
    """Return structure id to reason, of those that failed and have not been labelled since."""
    return {name: why for name, why in _read(store.folder / FAILURES).items() if name not in store}


def _read(path: Path) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:  # torn by a kill
            continue
        reasons[entry["structure_id"]] = entry["reason"]
    return reasons
