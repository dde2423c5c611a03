"""``python -m kd_plugins.chgnet TRAINING.yml [optim.seed=3 ...]``: train one student of a YAML."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from kd_plugins.exit_codes import run_command


def main(words: Sequence[str] | None = None) -> int:
    """Train, and return 0, or 2 if that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m kd_plugins.chgnet", description=__doc__)
    parser.add_argument("config", help="YAML of the training; see configs/chgnet")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="such as optim.seed=3")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    arguments = parser.parse_args(words)
    return run_command(lambda: _run(arguments), debug=arguments.debug)


def _run(arguments: argparse.Namespace) -> int:
    # Imported here, since that takes seconds, and Ctrl-C must be answered in them as well.
    from kd_plugins.chgnet.command import run
    from kd_plugins.chgnet.settings import read_training

    run(read_training(arguments.config, tuple(arguments.changes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
