"""The commands that make and choose structures: sample, select."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_plugins.commands.targets import IDS

if TYPE_CHECKING:
    from kd_plugins.sampling.settings import Sampling

COUNTS = {
    "strain": "strained cells, shear too, their atoms slightly rattled",
    "rattle": "cells with displaced atoms",
    "md": "snapshots of molecular dynamics by --potential",
    "molecules": "crystals of rigid molecules: strained, rotated, rattled",
    "vacancy": "cells with missing atoms",
    "surface": "slabs with vacuum",
}
"""Method to its help, in the order of the pool."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``sample``."""
    command = commands.add_parser(
        "sample",
        help="make structures to label from seed structures",
        description="Make new structures from seed structures. Run it again to go on after a stop; "
        "the same seed gives the same structures.",
        epilog="Ranges of the methods stand in a YAML for --settings; docs/sampling.md lists them.",
    )
    command.add_argument("structures", nargs="+", help="seeds: any file ASE reads")
    command.add_argument("--out", required=True, type=Path, metavar="POOL.extxyz")
    command.add_argument("--ids", default="auto", help=IDS)
    command.add_argument(
        "--atoms", type=int, metavar="N", help="repeat each seed to N atoms or more, nearly cubic"
    )
    for method, text in COUNTS.items():
        text = f"of each seed, {text}"
        command.add_argument(f"--{method}", type=int, metavar="N", help=text)
    command.add_argument(
        "--potential",
        nargs="+",
        metavar=("NAME", "KEY=VALUE"),
        help="of --md and --max-force, as label's --teacher: emt, chgnet, hippynn folder=DIR, ...",
    )
    command.add_argument(
        "--temperatures",
        type=float,
        nargs="+",
        metavar="K",
        help="of --md, from the first to the last snapshot: 2500 1000 melts and cools",
    )
    command.add_argument(
        "--min-distance", type=float, metavar="Å", help="the least (0.6 x the covalent radii)"
    )
    command.add_argument(
        "--max-force", type=float, metavar="eV/Å", help="the largest, by --potential (30)"
    )
    command.add_argument("--settings", metavar="YAML", help="these and the ranges of each method")
    command.add_argument("--seed", type=int, default=0, help="of all random numbers (0)")
    command.add_argument("--device", default="auto", help="see label --help")
    command.set_defaults(run=_sample)


def _sample(arguments: argparse.Namespace) -> int:
    from kd_plugins.sampling.pool import write_pool
    from kd_plugins.structures import read_structures
    from kd_plugins.teachers.registry import parse_teachers, teacher_name

    settings = _settings(arguments)
    potential = arguments.potential and teacher_name(parse_teachers(arguments.potential))
    if arguments.max_force is not None and potential is None:
        raise ValueError("--max-force needs --potential, whose forces they are")

    seeds = read_structures(arguments.structures, arguments.ids)
    record = write_pool(seeds, arguments.out, settings, arguments.seed, potential, arguments.device)
    _print_record(arguments.out, record)
    return 0


def _settings(arguments: argparse.Namespace) -> Sampling:
    """Return the YAML's settings, over which those of the command line go."""
    from kd_plugins.config import read_config, read_yaml, set_dotted
    from kd_plugins.sampling.settings import Sampling

    raw: dict[str, Any] = read_yaml(arguments.settings) if arguments.settings else {}
    given = {
        "atoms": arguments.atoms,
        "min_distance": arguments.min_distance,
        "max_force": arguments.max_force,
        "md.temperatures": arguments.temperatures,
        **{f"{method}.count": getattr(arguments, method) for method in COUNTS},
    }
    for name, value in given.items():
        if value is not None:
            set_dotted(raw, name, value)
    return read_config(Sampling, raw, arguments.settings or "sample")


def _print_record(path: Path, record: Mapping[str, Any]) -> None:
    rejected = record["rejected"]
    words = [f"{count} by {guard}" for guard, count in sorted(rejected.items())]
    total = sum(rejected.values())
    text = f"; {total} draws were rejected and drawn again ({', '.join(words)})" if words else ""
    print(f"{path} holds {record['structures']} structures{text}")
