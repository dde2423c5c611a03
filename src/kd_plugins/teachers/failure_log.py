"""Which structures a teacher could not label, and why."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from kd_plugins.numbers import shown
from kd_plugins.store import StoreError
from kd_plugins.store.store import TargetStore

FAILURES = "failures.jsonl"
BEGINNING = b'{"structure_id": "'


class FailureLog:
    """Appends to ``failures.jsonl`` in a store's folder; a line torn by a kill does no harm.

    Args:
        folder: of the store.

    Raises:
        StoreError: if the file holds something else, or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FAILURES
        self._known = _read(self.path)
        self._torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")

    def add(self, reasons: dict[str, str]) -> None:
        """Write structure id to reason durably, but for what stands there already.

        Raises:
            StoreError: naming the file, if it cannot be written.
        """
        new = {name: why for name, why in reasons.items() if self._known.get(name) != why}
        if not new:
            return
        lines = [json.dumps({"structure_id": name, "reason": why}) for name, why in new.items()]
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" * self._torn + "\n".join(lines) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(
                f"{self.path}: why {next(iter(new))!r} failed could not be written "
                f"({error.strerror}); what was labelled is kept: make room and go on"
            ) from error
        self._torn = False
        self._known.update(new)


def failures(store: TargetStore) -> dict[str, str]:
    """Return structure id to reason, of those that failed and have not been labelled since.

    Raises:
        StoreError: if the file holds something else, or cannot be read.
    """
    if not isinstance(store, TargetStore):
        raise ValueError(
            f"store: expected a TargetStore, got {shown(store)}; open it with TargetStore.open"
        )
    return {name: why for name, why in _read(store.folder / FAILURES).items() if name not in store}


def _read(path: Path) -> dict[str, str]:
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error

    reasons: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        entry = _parsed(line)
        if entry is None:
            continue
        name, why = entry.get("structure_id"), entry.get("reason")
        if not isinstance(name, str) or not isinstance(why, str):
            raise StoreError(
                f"{path}, line {number}: expected structure_id and reason, both text, got "
                f"{line[:60]!r}; remove that line, or the file: it only says why structures failed"
            )
        reasons[name] = why
    return reasons


def _parsed(line: bytes) -> Mapping[str, object] | None:
    """Return what a line holds, nothing of it if it is none of ours, None if a kill has torn it."""
    try:
        entry = json.loads(line)
    except RecursionError:
        return {}
    except ValueError:
        torn = line.rstrip(b"\0")  # which a power cut can leave
        is_beginning = torn.startswith(BEGINNING) or BEGINNING.startswith(torn)
        return None if is_beginning and torn.isascii() and not torn.endswith(b"}") else {}
    return entry if isinstance(entry, Mapping) else {}
