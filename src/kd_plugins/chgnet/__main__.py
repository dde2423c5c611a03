"""``python -m kd_plugins.chgnet TRAINING.yml [optim.seed=3 ...]``: one student from one YAML."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(words: Sequence[str] | None = None) -> int:
    """Train, and return 0, or 2 if that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m kd_plugins.chgnet", description=__doc__)
    parser.add_argument("config", help="YAML of the training; see configs/chgnet")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="such as optim.seed=3")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    arguments = parser.parse_args(words)

    try:
        return _trained(arguments)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130


def _trained(arguments: argparse.Namespace) -> int:
    # Imported here, as that takes seconds, in which Ctrl-C shall be no traceback either.
    from kd_plugins.chgnet.command import run
    from kd_plugins.chgnet.settings import read_training
    from kd_plugins.core.shard import StoreError

    try:
        run(read_training(arguments.config, tuple(arguments.changes)))
    except (ValueError, KeyError, OSError, StoreError, FloatingPointError) as error:
        if arguments.debug:
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"error: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
