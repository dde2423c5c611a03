"""The commands that make and choose structures: sample, select, mptrj."""

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
    "packing": "crystals of copies of the seed, one molecule, packed at random",
    "vacancy": "cells with missing atoms",
    "surface": "slabs with vacuum",
}
"""Method to its help, in the order of the pool."""


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``sample``, ``select`` and ``mptrj``."""
    _add_sample(commands)
    _add_select(commands)
    command = commands.add_parser(
        "mptrj",
        help="take the crystals of one kind out of MPtrj's JSON",
        description="Write the frames of one kind of crystal as a JSON of the same layout, and "
        "count all kinds into <out>_kinds.json. The file is read once, a material at a time.",
    )
    command.add_argument("source", type=Path, metavar="MPtrj.json", help="plain or compressed")
    command.add_argument(
        "--kind", required=True, help="organic, complex or inorganic (Taniguchi 2024)"
    )
    command.add_argument("--out", required=True, type=Path, metavar="FILE.json")
    command.set_defaults(run=_mptrj)


def _add_sample(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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
        help="of --md, from the first to the last snapshot: 5000 1500 starts hot and cools",
    )
    command.add_argument(
        "--length-scales",
        type=float,
        nargs="+",
        metavar="X",
        help="of the cell of --md, likewise (1): 1.05 1.02 gives a melt room",
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


def _add_select(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "select",
        help="choose structures of a pool to label",
        description="Choose structures that are far from each other, or on which the teachers of "
        "an ensemble disagree most. The order of the pool changes nothing.",
    )
    command.add_argument("pool", nargs="+", help="structures to choose from")
    command.add_argument("--count", required=True, type=int, metavar="N")
    command.add_argument("--out", required=True, type=Path, metavar="CHOSEN.extxyz")
    command.add_argument(
        "--by",
        choices=("distance", "spread", "random"),
        default="distance",
        help="distance: farthest points of --store's node embeddings, or of SOAP without a store; "
        "spread: where the ensemble of --store disagrees most; random",
    )
    command.add_argument("--store", metavar="DIR", help="targets of the pool")
    command.add_argument(
        "--beside",
        nargs="+",
        default=(),
        metavar="FILE",
        help="structures that are labelled already, to be far from",
    )
    command.add_argument("--seed", type=int, help="of --by random (0)")
    command.add_argument("--ids", default="auto", help=IDS)
    command.set_defaults(run=_select)


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


def _mptrj(arguments: argparse.Namespace) -> int:
    from kd_plugins.sampling.mptrj_kinds import take_kind
    from kd_plugins.structures.readers import check_file

    check_file(arguments.source)
    found = take_kind(arguments.source, arguments.kind, arguments.out)["kinds"]
    for name, one in found.items():
        mean = one["mean_energy_per_atom"]
        energy = "" if mean is None else f", mean energy {mean:.2f} eV/atom"
        print(
            f"{name}: {one['frames']} structures ({one['percent']:.1f} %) of {one['materials']} "
            f"materials{energy}"
        )
    print(f"{arguments.out} holds the {arguments.kind} ones")
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
        "md.length_scales": arguments.length_scales,
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


def _select(arguments: argparse.Namespace) -> int:
    from kd_plugins import TargetStore
    from kd_plugins.files import whole_file
    from kd_plugins.sampling.selection import select
    from kd_plugins.structures import read_structures
    from kd_plugins.structures.export import check_suffix, to_extxyz

    if arguments.seed is not None and arguments.by != "random":
        raise ValueError("--seed is for --by random; nothing else is drawn")
    if arguments.store is not None and arguments.by == "random":
        raise ValueError("--store is for --by distance and --by spread; leave it out")
    inputs = [*arguments.pool, *arguments.beside]
    check_suffix(arguments.out)
    if arguments.out.exists() and any(arguments.out.samefile(one) for one in inputs):
        raise ValueError(f"--out: {arguments.out} is one of the files to read; choose another name")

    pool = list(read_structures(arguments.pool, arguments.ids))
    beside = list(read_structures(arguments.beside, arguments.ids)) if arguments.beside else []
    store = TargetStore.open(arguments.store) if arguments.store else None
    chosen = select(pool, arguments.count, arguments.by, store, beside, arguments.seed or 0)

    with whole_file(arguments.out) as file:
        for one in chosen.structures:
            file.write(to_extxyz(one.structure_id, one.atoms, one.labels))
    print(f"{arguments.out} holds {len(chosen.structures)} of {len(pool)} structures")
    if chosen.covering_radius is not None:
        print(
            f"every other structure is within {chosen.covering_radius:.4g} of one of them"
            f"{' or of --beside' if beside else ''}; the last was {chosen.scores[-1]:.4g} away"
        )
    if arguments.by == "spread":
        first, last = chosen.scores[0], chosen.scores[-1]
        print(f"{chosen.quantity} from {first:.4g} to {last:.4g}")
    return 0
