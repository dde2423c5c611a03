"""Whether a shard is as its last writer left it, found out without touching what may be damaged."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kd_plugins.store import walk as walk_script
from kd_plugins.store.environment import StoreError, has_room_for_lock
from kd_plugins.store.written import SUFFIX, Entry, Look, Total, WrittenLog

SMALLEST = 8192
"""Bytes of the two pages that make a file a shard."""
START = "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop(1)); runpy.run_path("


@dataclass(frozen=True)
class Walk:
    """What reading a shard from end to end has found.

    Args:
        total: of all its records.
        damaged: ids of records whose checksum does not fit, a thousand at most.
        fault: what is wrong with the shard as a whole, if anything.
    """

    total: Total
    damaged: tuple[str, ...] = ()
    fault: str | None = None


def is_unborn(path: Path, entry: Entry | None) -> bool:
    """Return whether a shard was never more than begun, so that nothing was in it."""
    empty = entry is not None and entry.after.records == 0
    return empty and (not path.exists() or (path.is_file() and path.stat().st_size < SMALLEST))


def check(path: Path, form: int) -> Walk | None:
    """Refuse a shard that is not what its last writer left.

    If its file looks as it did then, that is all; otherwise, as in a copy, its ids are read from
    end to end in a process of its own, and counted. A shard whose writer is at work or was killed
    can look like anything, and LMDB knows how to deal with it. Records that are damaged by
    themselves are let pass: they say so when they are read.

    Args:
        path: of the shard.
        form: format of its store.

    Returns:
        what was found if it was read.

    Raises:
        StoreError: naming the damage.
    """
    entry = WrittenLog(path).read()
    fault = _at_first_sight(path, entry)
    if fault is not None:
        raise StoreError(fault)
    if is_unborn(path, entry) or (entry is not None and entry.look in (None, Look.at(path))):
        return None

    found, faults = _examine(path, form, ids_only=True)
    for fault in faults:
        raise StoreError(fault)
    return found


def shard_faults(path: Path, form: int) -> list[str]:
    """Read all of a shard; return what is wrong with it as a whole.

    Args:
        path: of the shard.
        form: format of its store.
    """
    try:
        entry = WrittenLog(path).read()
    except StoreError as error:
        return [str(error)]
    fault = _at_first_sight(path, entry)
    if fault is not None:
        return [fault]
    if is_unborn(path, entry):
        return []
    faults = list(_examine(path, form, ids_only=False)[1])
    if entry is None and form > 1:
        faults.append(
            f"{path.name}{SUFFIX} is missing, so that nobody knows how many records {path.name} "
            "should hold; restore it from a copy, or copy what is there into another store "
            "(kd-plugins merge STORE --into NEW)"
        )
    return faults


def _at_first_sight(path: Path, entry: Entry | None) -> str | None:
    """Return what is wrong with the file, before LMDB sees it."""
    log = f"{path.name}{SUFFIX}"
    held = "its records are lost" if entry is None else _count(entry.after) + " lost"
    if not path.exists():
        if entry is None or entry.after.records == 0:
            return None
        return (
            f"{path.name} is missing and {held}; restore it from a copy, or remove {log}, too, and "
            "label its structures again"
        )
    if not path.is_file():
        return f"{path.name} is no file, and {held}; restore it from a copy"
    size = path.stat().st_size
    if size < SMALLEST and not is_unborn(path, entry):
        return (
            f"{path.name} is cut short: {size} bytes, where the smallest shard has {SMALLEST}, and "
            f"{held}; restore it from a copy, or remove it (and {log}) and label its structures "
            "again"
        )
    return None


def _examine(path: Path, form: int, *, ids_only: bool) -> tuple[Walk, Iterator[str]]:
    log = WrittenLog(path)
    before = log.read()
    found = walk(path, form, ids_only=ids_only)
    if ids_only and before is not None:  # what the records hold is seen when they are read
        counts = {before.before.records: before.before, before.after.records: before.after}
        found = replace(found, total=counts.get(found.total.records, found.total))
    looks = Look.at(path)
    still = log.read() == before  # if not, somebody writes, and what we read is of several states
    return found, _faults(path, found, before if still else None, looks)


def _faults(path: Path, found: Walk, entry: Entry | None, looks: Look) -> Iterator[str]:
    """Yield what is wrong with a shard as a whole, the worst first."""
    remedy = (
        f"restore it from a copy, or remove it (and {path.name}{SUFFIX}) and label its structures "
        "again"
    )
    if found.fault is not None:
        yield f"{path.name} is damaged: {found.fault}; {remedy}"
        return
    if entry is None or entry.admits(found.total):
        if entry is not None and entry.look is not None and entry.look.head != looks.head:
            yield f"{path.name} is damaged: its first pages are not what was written; {remedy}"
        return

    here, written = found.total.records, entry.after.records
    salvage = (
        f"restore it from a copy; to keep what is left, remove {path.name}{SUFFIX} and copy it "
        "into another store (kd-plugins merge STORE --into NEW)"
    )
    if here < written:
        yield (
            f"{path.name} has lost records: it holds {here} of {written} that were written, "
            f"{written - here} missing; {salvage}"
        )
    elif here > written:
        yield (
            f"{path.name} holds {here} records, but {written} were written; it and "
            f"{path.name}{SUFFIX} are not of one time: {salvage}"
        )
    elif not found.damaged:  # which are named one by one
        yield f"{path.name} holds other records than those that were written; {salvage}"


def walk(path: Path, form: int, *, ids_only: bool = False) -> Walk:
    """Read a shard from end to end in a process of its own, which damage may end.

    Args:
        path: of the shard.
        form: format of its store.
        ids_only: leave the records unread, which may be all but little of the file.

    Raises:
        StoreError: if there is no such process to be had.
    """
    locked = "locked" if has_room_for_lock(path, write=False) else "unlocked"
    start = f"{START}{walk_script.__file__!r}, run_name='__main__')"
    # Without the site's start-up and what an environment variable may bring in.
    words = [sys.executable, "-ISc", start, json.dumps(sys.path), str(path), str(form), locked]
    words.append("ids" if ids_only else "all")
    try:
        done = subprocess.run(words, capture_output=True, check=False)
    except OSError as error:
        raise StoreError(
            f"{path.name} cannot be examined, since {sys.executable} cannot be started: {error}"
        ) from error
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    if done.returncode == 0 and lines and lines[-1].startswith("{"):
        found = json.loads(lines[-1])
        total = Total(found["records"], int(found["total"], 16))
        return Walk(total, tuple(found["damaged"]), found["fault"])

    read = next((int(line) for line in reversed(lines) if line.isdecimal()), 0)
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    how = f"code {done.returncode}"
    if done.returncode < 0:
        how = signal.Signals(-done.returncode).name
    why = f" ({said[-1]})" if said else ""
    return Walk(Total(read), (), f"reading it ended a process by {how}{why}, after {read} records")


def _count(total: Total) -> str:
    return "its one record is" if total.records == 1 else f"its {total.records} records are"
