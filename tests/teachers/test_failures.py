"""The failure log keeps structures with their reasons, also after a kill."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from kd_plugins.store.manifest import Manifest
from kd_plugins.store.record import Record
from kd_plugins.store.store import TargetStore
from kd_plugins.store.structure import Structure
from kd_plugins.teachers.failure_log import FAILURES, FailureLog, failures

AWKWARD = {
    "mp-1/0": "ValueError: two\nlines",
    "分子 é ü": 'reason with “quotes” and \\ and "',
    "line\u2028separator\x85\x1c": "\u2029\x0b\x0c\r",
    " ": "",
    "x" * 5000: "y" * 5000,
    "\x00": "a null",
    "{}": "looks like JSON",
}


@pytest.fixture
def store(tmp_path: Path) -> TargetStore:
    """An empty store of energies."""
    return TargetStore.create(tmp_path / "store", Manifest("EMT", "emt", {"energy": "float64"}))


def lines(store: TargetStore) -> int:
    """Return how many lines the file has."""
    return len((store.folder / FAILURES).read_text().splitlines())


def test_reasons_are_read_back(store: TargetStore) -> None:
    """Whatever stands in ids and reasons, a line each, and by another log as well."""
    fitting = {name: why for name, why in AWKWARD.items() if len(name) < 500}
    FailureLog(store.folder).add(fitting)
    assert failures(store) == fitting
    assert lines(store) == len(fitting)
    assert (store.folder / FAILURES).read_bytes().isascii()


def test_store_without_failures_has_no_file(store: TargetStore) -> None:
    """Has no file of them, also after nothing was added."""
    FailureLog(store.folder).add({})
    assert failures(store) == {}
    assert not (store.folder / FAILURES).exists()


def test_last_reason_of_a_structure_is_returned(store: TargetStore) -> None:
    """And the same one is not written twice, by this log or the next."""
    log = FailureLog(store.folder)
    for reason in ("first", "second", "second", "first"):
        log.add({"a": reason, "b": "same"})
    FailureLog(store.folder).add({"a": "first", "b": "same"})
    assert failures(store) == {"a": "first", "b": "same"}
    assert lines(store) == 4


def test_structure_labelled_since_is_left_out(store: TargetStore) -> None:
    FailureLog(store.folder).add({"a": "once", "b": "still"})
    structure = Structure([1], [[0.0, 0.0, 0.0]], np.zeros((3, 3)), [False] * 3)
    store.append([Record("a", structure, {"energy": torch.tensor(1.0)})])
    assert failures(store) == {"b": "still"}
    assert lines(store) == 2


@pytest.mark.parametrize("seed", range(5))
def test_kill_at_any_byte_loses_only_the_line_being_written(store: TargetStore, seed: int) -> None:
    """What stood before stays, and what the next log adds is whole."""
    FailureLog(store.folder).add(before := {f"old {index}": "why" for index in range(3)})
    path = store.folder / FAILURES
    whole = path.stat().st_size
    FailureLog(store.folder).add({"torn": "é" * 30, "also": "torn"})
    cut = random.Random(seed).randrange(whole, path.stat().st_size)
    path.write_bytes(path.read_bytes()[:cut])
    survived = failures(store)
    assert (
        before.items() <= survived.items() <= {**before, "torn": "é" * 30, "also": "torn"}.items()
    )
    log = FailureLog(store.folder)
    log.add({"new": "1"})
    log.add({"newer": "2"})
    assert failures(store) == {**survived, "new": "1", "newer": "2"}


def test_file_is_one_json_object_a_line(store: TargetStore) -> None:
    """A JSON a line, of two texts."""
    FailureLog(store.folder).add({"a": "why"})
    (line,) = (store.folder / FAILURES).read_text().splitlines()
    assert json.loads(line) == {"structure_id": "a", "reason": "why"}
