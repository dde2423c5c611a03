"""The log of structures that a teacher could not label, with the reasons: failures.jsonl."""

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
"""First bytes of every line: they distinguish a line cut off by a kill from another file."""


class FailureLog:
    """Appends to ``failures.jsonl`` in a store's folder; a last line cut off by a kill is ignored.

    Args:
        folder: of the store.

    Raises:
        StoreError: if the file holds something else, or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FAILURES
        self._known = _read_log(self.path)
        self._is_cut_off = self.path.exists() and not self.path.read_bytes().endswith(b"\n")

    def add(self, reasons: dict[str, str]) -> None:
        """Append structures with their reasons, and sync the file; known ones are left out.

        Raises:
            StoreError: naming the file, if it cannot be written.
        """
        new = {name: why for name, why in reasons.items() if self._known.get(name) != why}
        if not new:
            return

        lines = [json.dumps({"structure_id": name, "reason": why}) for name, why in new.items()]
        if self._is_cut_off:
            lines.insert(0, "")  # ends the line that a kill cut off
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(
                f"{self.path}: why {next(iter(new))!r} failed could not be written "
                f"({error.strerror}); what was labelled is kept: make room and go on"
            ) from error
        self._is_cut_off = False
        self._known.update(new)


def failures(store: TargetStore) -> dict[str, str]:
    """Return structure id to reason of the structures that failed and are still not labelled.

    Raises:
        StoreError: if the file holds something else, or cannot be read.
    """
    if not isinstance(store, TargetStore):
        raise ValueError(
            f"store: expected a TargetStore, got {shown(store)}; open it with TargetStore.open"
        )
    logged = _read_log(store.folder / FAILURES)
    return {name: why for name, why in logged.items() if name not in store}


def _read_log(path: Path) -> dict[str, str]:
    """Return structure id to its last reason.

    Raises:
        StoreError: naming the line, if it is not one of ours.
    """
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error

    reasons: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        entry = _parse_line(line)
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


def _parse_line(line: bytes) -> Mapping[str, object] | None:
    """Return the object of a line: None if a kill cut the line off, empty if it is not ours."""
    try:
        entry = json.loads(line)
    except RecursionError:
        return {}
    except ValueError:
        rest = line.rstrip(b"\0")  # zeros are left where a power cut came before the data
        is_beginning = rest.startswith(BEGINNING) or BEGINNING.startswith(rest)
        is_cut_off = is_beginning and rest.isascii() and not rest.endswith(b"}")
        return None if is_cut_off else {}
    return entry if isinstance(entry, Mapping) else {}
