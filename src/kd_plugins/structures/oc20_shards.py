"""Shards of a preparation of OC20: the wanted frames of one file, there whole or not at all.

A shard is an SQLite file with ASE's own tables and one more, ``frames``, with a row a frame. Shards
are appended to the data sets in the order of the files, so neither the number of processes nor an
interruption changes the result. Energies are as in the file until then, since the references of
``elements`` are known only when all frames are.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.db.row import AtomsRow

from kd_plugins.processes import worker_pool
from kd_plugins.structures.oc20_frames import Chunk, Frame, check_frame, read_frames

SPLITS = ("train", "val")
_FRAMES = """
    split TEXT, position INTEGER, sid TEXT, fid INTEGER, number INTEGER, natoms INTEGER,
    composition TEXT, energy REAL, reference REAL, square_sum REAL, n_components INTEGER,
    zeroed INTEGER"""
Reference = Callable[[float | None, str], float]
"""From a frame's own reference energy in eV and its composition to what is subtracted."""


@dataclass(frozen=True)
class Rules:
    """How frames become rows.

    Args:
        reference: see `kd_plugins.structures.oc20.Settings`, as all of these.
        val_fraction: share of what is split off.
        split_by: ``frame`` or ``system``.
        seed: of the split.
        wanted: ids of the systems to keep.
    """

    reference: str
    val_fraction: float
    split_by: str
    seed: int
    wanted: Collection[str] | None


@dataclass(frozen=True)
class Task:
    """One file to read into one shard; ``split`` is None where frames are split by their ids."""

    chunk: Chunk
    split: str | None
    shard: Path


def write_shards(tasks: Sequence[Task], rules: Rules, n_workers: int) -> Iterator[None]:
    """Write the shards that are not there yet, in any order; yield after each.

    Raises:
        ValueError: of a frame that cannot be used; finished shards stay.
    """
    if n_workers == 1 or len(tasks) < 2:
        for task in tasks:
            write_shard(task, rules)
            yield
        return

    with worker_pool(min(n_workers, len(tasks)), "read", _start_worker, rules) as pool:
        for future in as_completed([pool.submit(_work, task) for task in tasks]):
            future.result()
            yield


_rules: list[Rules] = []
"""Of a worker's process: the wanted systems are sent once, and not with each task."""


def _start_worker(rules: Rules) -> None:
    _rules.append(rules)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it, too, and cancels


def _work(task: Task) -> None:
    write_shard(task, _rules[0])


def write_shard(task: Task, rules: Rules) -> None:
    """Read one file and write its shard."""
    partial = task.shard.with_name(f"{task.shard.name}.{os.getpid()}.partial")
    try:
        with closing(sqlite3.connect(partial)) as connection:
            connection.execute(f"CREATE TABLE frames (id INTEGER PRIMARY KEY, {_FRAMES})")
            connection.execute("CREATE UNIQUE INDEX identity ON frames (sid, fid)")
            connection.execute("CREATE TABLE source (sizes TEXT)")
            connection.execute(
                "INSERT INTO source VALUES (?)", [json.dumps(task.chunk.sizes, sort_keys=True)]
            )
            connection.commit()
        _fill(partial, task, rules)
        os.replace(partial, task.shard)
    finally:
        for leftover in (partial, partial.with_name(f"{partial.name}-journal")):
            leftover.unlink(missing_ok=True)


def _fill(shard: Path, task: Task, rules: Rules) -> None:
    counts: Counter[str] = Counter()
    # One transaction for all, and no lock file for each row: nobody else knows of the file.
    database: Any = connect(shard, type="db", use_lock_file=False, create_indices=False)
    with database:
        for row_id, frame in enumerate(read_frames(task.chunk, rules.wanted), start=1):
            check_frame(frame)
            split = task.split or draw_split(frame.sid, frame.fid, rules)
            counts[split] += 1

            values = (row_id, split, counts[split], *_describe(frame, rules.reference))
            holes = ", ".join("?" * len(values))
            try:
                database.connection.execute(f"INSERT INTO frames VALUES ({holes})", values)
            except sqlite3.IntegrityError:
                raise _twice(frame.where, frame.sid, frame.fid) from None
            database.write(_row(frame), data={"sid": frame.sid, "fid": frame.fid})


def _row(frame: Frame) -> AtomsRow:
    """Return what ASE stores, with nothing in it that differs from run to run."""
    atoms = frame.atoms.copy()
    atoms.info = {}
    atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces)
    row: Any = AtomsRow(atoms)
    identity = f"{frame.sid}/{frame.fid}".encode()
    row.unique_id = hashlib.blake2b(identity, digest_size=16).hexdigest()
    row.ctime, row.user = 0.0, None
    return row


def _describe(frame: Frame, reference: str) -> tuple[Any, ...]:
    """Return the columns of ``frames`` from ``sid`` on."""
    numbers, counts = np.unique(frame.atoms.numbers, return_counts=True)
    composition = json.dumps(
        {int(number): int(n) for number, n in zip(numbers, counts, strict=True)}
    )
    fixed = frame.fixed
    free = frame.forces[~fixed]
    zeroed = bool(fixed.any() and not frame.forces[fixed].any())
    identity = frame.sid, frame.fid, frame.number, len(frame.atoms), composition
    energies = frame.energy, _reference(frame, reference)
    return *identity, *energies, float(np.square(free).sum()), free.size, zeroed


def _reference(frame: Frame, kind: str) -> float | None:
    """Return the frame's own reference energy in eV; None where elements give it."""
    if kind == "official":
        if frame.reference is None:
            raise ValueError(
                f"{frame.where}: no reference energy; --reference official needs OC20's *.txt files"
            )
        return frame.reference
    if kind == "last-frame":
        if "E_last" not in frame.atoms.info:
            raise ValueError(f"{frame.where}: no E_last among its info, as last-frame needs")
        return float(frame.atoms.info["E_last"])
    return 0.0 if kind == "none" else None


def draw_split(sid: str, fid: int, rules: Rules) -> str:
    """Draw a split by hashing the frame's identity: neither order nor new frames change it."""
    drawn = sid if rules.split_by == "system" else f"{sid}/{fid}"
    digest = hashlib.blake2b(f"{rules.seed}/{drawn}".encode(), digest_size=8).digest()
    return "val" if int.from_bytes(digest, "big") / 2**64 < rules.val_fraction else "train"


def is_finished(task: Task) -> bool:
    """Return whether the shard is there, of the file as it is now."""
    if not task.shard.is_file():
        return False
    with closing(sqlite3.connect(task.shard)) as connection:
        (sizes,) = connection.execute("SELECT sizes FROM source").fetchone()
    return json.loads(sizes) == task.chunk.sizes


def read_compositions(tasks: Sequence[Task]) -> Iterator[tuple[str, float, str, str]]:
    """Yield split, energy in eV, composition and place of each frame, in the order of files."""
    for task in tasks:
        with closing(sqlite3.connect(task.shard)) as connection:
            for split, energy, composition, number in connection.execute(
                "SELECT split, energy, composition, number FROM frames ORDER BY id"
            ):
                yield split, energy, composition, f"{task.chunk.structures.name}, frame {number}"


def append_index(path: Path, tasks: Sequence[Task], reference: Reference) -> Iterator[None]:
    """Write one table of all frames, with energies less their reference; yield after each shard.

    Raises:
        ValueError: for a structure that is there twice.
    """
    with _database(path, reference) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS frames (split TEXT, position INTEGER, sid TEXT,"
            " fid INTEGER, natoms INTEGER, energy REAL, square_sum REAL, n_components INTEGER,"
            " zeroed INTEGER, PRIMARY KEY (sid, fid)) WITHOUT ROWID"
        )
        connection.execute("CREATE TABLE IF NOT EXISTS counts (split TEXT PRIMARY KEY, n INTEGER)")
        for task in _each(connection, tasks):
            try:
                connection.execute(
                    "INSERT INTO frames SELECT f.split, f.position + COALESCE(c.n, 0), f.sid,"
                    " f.fid, f.natoms, f.energy - subtracted(f.reference, f.composition),"
                    " f.square_sum, f.n_components, f.zeroed"
                    " FROM shard.frames f LEFT JOIN counts c ON c.split = f.split"
                )
            except sqlite3.IntegrityError:
                number, sid, fid = connection.execute(
                    "SELECT f.number, f.sid, f.fid FROM shard.frames f JOIN main.frames USING"
                    " (sid, fid) ORDER BY f.number"
                ).fetchone()
                where = f"{task.chunk.structures.name}, frame {number}"
                raise _twice(where, sid, fid) from None
            connection.execute(
                "INSERT INTO counts SELECT split, COUNT(*) FROM shard.frames WHERE true GROUP BY"
                " split ON CONFLICT (split) DO UPDATE SET n = n + excluded.n"
            )
            yield


def append_structures(
    path: Path, split: str, tasks: Sequence[Task], reference: Reference
) -> Iterator[None]:
    """Write a split's ASE database, with energies less their reference; yield after each shard."""
    path.parent.mkdir(exist_ok=True)
    connect(path).count()  # makes ASE's tables
    with _database(path, reference) as connection:
        for _ in _each(connection, tasks):
            (is_empty,) = connection.execute(
                "SELECT COUNT(*) = 0 FROM shard.sqlite_master WHERE name = 'systems'"
            ).fetchone()
            if not is_empty:
                _append_rows(connection, split)
            yield


def _append_rows(connection: sqlite3.Connection, split: str) -> None:
    columns = [name for _, name, *_ in connection.execute("PRAGMA main.table_info(systems)")]
    (last,) = connection.execute("SELECT COALESCE(MAX(id), 0) FROM main.systems").fetchone()

    new = {name: f"s.{name}" for name in columns} | {
        "id": f"f.position + {last}",
        "mtime": "0.0",  # when it was prepared is no part of the data
        "energy": "s.energy - subtracted(f.reference, f.composition)",
    }
    connection.execute(
        f"INSERT INTO main.systems SELECT {', '.join(new.values())} FROM shard.systems s"
        " JOIN shard.frames f ON f.id = s.id WHERE f.split = ? ORDER BY f.position",
        [split],
    )
    connection.execute(
        f"INSERT INTO main.species SELECT z.Z, z.n, f.position + {last} FROM shard.species z"
        " JOIN shard.frames f ON f.id = z.id WHERE f.split = ? ORDER BY f.position, z.rowid",
        [split],
    )


@contextmanager
def _database(path: Path, reference: Reference) -> Iterator[sqlite3.Connection]:
    # Transactions are ours. What a killed process has written is not lost; a power failure may
    # lose it, so the files are synchronized once they are whole.
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.create_function("subtracted", 2, reference, deterministic=True)
        yield connection


def _each(connection: sqlite3.Connection, tasks: Sequence[Task]) -> Iterator[Task]:
    """Attach each shard that the database lacks, in a transaction that also counts it."""
    (done,) = connection.execute("PRAGMA user_version").fetchone()
    for index, task in enumerate(tasks[done:], start=done + 1):
        connection.execute("ATTACH ? AS shard", [str(task.shard)])
        connection.execute("BEGIN")
        yield task
        connection.execute(f"PRAGMA user_version = {index}")
        connection.execute("COMMIT")
        connection.execute("DETACH shard")


def _twice(where: str, sid: str, fid: int) -> ValueError:
    return ValueError(f"{where}: sid {sid}, fid {fid} was there before")
