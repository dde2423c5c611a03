"""The command ``kd-plugins``: from a teacher's targets to whether they helped."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from kd_plugins.commands import proof, targets
from kd_plugins.core.shard import StoreError

DESCRIPTION = "Knowledge distillation of interatomic potentials: its targets, and what came of it."


def main(words: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 fine, 1 faults were found, 2 it could not run."""
    sys.path.append(os.getcwd())  # last, lest a file here passes for a package that we import
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler, which measures memory
    words = sys.argv[1:] if words is None else words
    arguments = _parser().parse_args(words)
    arguments.typed = shlex.join(["kd-plugins", *words])
    try:
        return arguments.run(arguments)
    except (StoreError, ValueError, KeyError, OSError) as error:
        print(f"error: {_text(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was written is kept, the same command goes on", file=sys.stderr)
        return 130


def _text(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("kd-plugins", description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    targets.add(commands)
    proof.add(commands)
    return parser
