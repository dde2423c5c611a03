"""The command that prepares OC20 for fairchem: oc20."""

from __future__ import annotations

import argparse
from pathlib import Path


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``oc20``."""
    command = commands.add_parser(
        "oc20",
        help="prepare OC20's S2EF structures for fairchem",
        description="Write the ASE databases that fairchem trains from, and a manifest that says "
        "what was done. Structures of other systems are skipped before they are read. Run it again "
        "to go on after a stop.",
    )
    command.add_argument("source", help="S2EF folder of OC20, or an extended xyz file (.xz too)")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--val", metavar="SOURCE", help="source of the validation structures")
    command.add_argument(
        "--reference",
        choices=("official", "last-frame", "elements", "none"),
        required=True,
        help="taken off each energy: official: the third column of the *.txt, which gives "
        "adsorption energies; last-frame: E_last of the frame; elements: fitted to train",
    )
    command.add_argument(
        "--mapping", metavar="PKL", help="oc20_data_mapping.pkl; no code in it is run"
    )
    command.add_argument("--adsorbate", metavar="NAME", help="keep one adsorbate, such as '*O'")
    command.add_argument("--systems", metavar="FILE", help="system ids to keep, one a line")
    command.add_argument(
        "--val-fraction", type=float, default=0.2, metavar="X", help="without --val (0.2)"
    )
    command.add_argument("--split-by", choices=("frame", "system"), default="frame")
    command.add_argument("--seed", type=int, default=0, help="of the split (0)")
    command.add_argument("--workers", type=int, default=1, metavar="N", help="processes (1)")
    command.add_argument(
        "--expect",
        choices=("ostar", "200k"),
        help="compare the numbers with Table 5 of the paper of CRACK; exit code 1 if they differ",
    )
    command.set_defaults(run=_prepare)


def _prepare(arguments: argparse.Namespace) -> int:
    from kd_plugins.numbers import check_whole
    from kd_plugins.structures.oc20 import Settings, compare_with_table_5, prepare

    check_whole("--workers", arguments.workers, least=1)
    names = Settings.__dataclass_fields__
    settings = Settings(**{name: getattr(arguments, name) for name in names})
    manifest = prepare(settings, arguments.out, arguments.workers)

    for split, report in manifest["splits"].items():
        folder = arguments.out / split
        print(f"{folder}: {report['structures']} structures of {report['systems']} systems")
        if zeroed := report["structures_with_zero_force_on_every_fixed_atom"]:
            print(f"  {zeroed} have no force on any fixed atom: stored with constraints applied?")
    for name, count in manifest.get("statistics", {}).items():
        print(f"{name.replace('_', ' ')}: {count}")

    differences = compare_with_table_5(manifest, arguments.expect) if arguments.expect else []
    for difference in differences:
        print(f"not the paper's {arguments.expect}: {difference}")
    return 1 if differences else 0
