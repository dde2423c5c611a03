"""On-policy rounds: the student samples structures, the teacher labels them, it trains again.

``python -m kd_plugins.compare.rounds FOLDER`` is the process that makes the structures of a round.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kd_plugins.config import read_config
from kd_plugins.files import read_json, write_json
from kd_plugins.numbers import check_whole, shown
from kd_plugins.sampling.settings import Sampling

ROUNDS = "rounds"
"""Key of an arm."""
CALL, GROWN = "grow.json", "grown.json"
"""Files in the folder of a round: what is to be sampled, and the settings of the next training."""


@dataclass(frozen=True)
class Rounds:
    """An arm's ``rounds``: how often its student is trained again on structures that it visited.

    The script reads its training structures from the setting ``structures``, a list of files, and
    the teacher's targets from ``store``. After each round both have grown.

    Args:
        count: of rounds, each before a further training.
        seeds: files of the structures from which the student starts in each round.
        sample: what is sampled in each round, see `kd_plugins.sampling.Sampling`.
    """

    count: int
    seeds: tuple[str, ...]
    sample: Sampling

    def __post_init__(self) -> None:
        check_whole("count", self.count, least=1)
        for name in self.seeds:
            if not Path(name).is_file():
                raise ValueError(f"seeds: {name}: no such file")
        if not self.seeds:
            raise ValueError("seeds: expected a list of files, got none")


def take_rounds(settings: dict[str, Any], host: str, teacher: str | None) -> Rounds | None:
    """Take ``rounds`` out of an arm's settings; None for an arm without.

    Raises:
        ValueError: if they cannot be read, or the arm cannot have any.
    """
    if ROUNDS not in settings:
        return None
    if host != "script":
        raise ValueError(f"{ROUNDS}: expected the host script, whose structures grow, got {host}")
    rounds = read_config(Rounds, settings.pop(ROUNDS), ROUNDS)
    if teacher is None:
        raise ValueError(f"{ROUNDS}: expected an experiment with a teacher, which labels, got none")
    structures, store = settings.get("structures"), settings.get("store")
    if not isinstance(structures, list) or not isinstance(store, str):
        raise ValueError(
            f"{ROUNDS}: expected the settings structures, a list of files, and store, a folder, "
            f"which grow; got {shown(structures)} and {shown(store)}"
        )
    return rounds


def write_call(
    folder: Path,
    rounds: Rounds,
    number: int,
    seed: int,
    settings: Mapping[str, Any],
    student: str,
    teacher: str,
) -> list[str]:
    """Write what a round is to sample into its folder; return the command line that does it.

    Args:
        folder: of the round, in which its student was trained.
        rounds: of the arm.
        number: of this round, from 1.
        seed: of the run, and so of the sampling.
        settings: that the student was trained with.
        student: the potential that moves the atoms.
        teacher: the potential that labels.
    """
    call = {
        "seeds": list(rounds.seeds),
        "sample": asdict(rounds.sample),
        "number": number,
        "seed": seed,
        "structures": settings["structures"],
        "store": settings["store"],
        "student": student,
        "teacher": teacher,
    }
    write_json(folder / CALL, call)
    return [sys.executable, "-m", __name__, str(folder)]


def read_grown(folder: Path) -> dict[str, Any]:
    """Return ``structures`` and ``store`` of the next training; empty if they are not made yet."""
    path = folder / GROWN
    return dict(read_json(path)) if path.exists() else {}


def grow(folder: Path) -> None:
    """Sample with a round's student and label with the teacher; stopped, the same call goes on.

    Raises:
        ValueError: if student or teacher cannot be opened, or the store has another teacher.
    """
    from kd_plugins.sampling.pool import write_pool
    from kd_plugins.store.store import TargetStore
    from kd_plugins.structures.readers import read_structures
    from kd_plugins.teachers.labelling import label

    call: dict[str, Any] = dict(read_json(folder / CALL))
    # Each round starts from the same structures, whose samples would have the same ids.
    seeds = [
        replace(one, structure_id=f"round{call['number']}/{one.structure_id}")
        for one in read_structures(call["seeds"])
    ]
    pool, settings = folder / "pool.extxyz", read_config(Sampling, call["sample"], "sample")
    write_pool(seeds, pool, settings, call["seed"], call["student"])

    before = TargetStore.open(call["store"])
    targets = TargetStore.create(folder / "targets", before.manifest)
    targets.merge([before])
    report = label(read_structures([str(pool)]), call["teacher"], targets.folder)
    if report.failed:
        raise ValueError(f"{call['teacher']} fails on {len(report.failed)} structures of {pool}")

    grown = {"structures": [*call["structures"], str(pool)], "store": str(targets.folder)}
    write_json(folder / GROWN, grown)


if __name__ == "__main__":
    from kd_plugins.exit_codes import run_command

    def _run() -> int:
        grow(Path(sys.argv[1]))
        return 0

    sys.exit(run_command(_run))
