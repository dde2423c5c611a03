"""The command ``kd-plugins``: from a teacher's targets to whether they helped."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_plugins.ending import ended, speak_utf_8

DESCRIPTION = "Knowledge distillation of interatomic potentials: its targets, and what came of it."
DEBUG = "--debug"


def main(words: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 fine, 1 faults were found, 2 it could not run."""
    if words is None:
        speak_utf_8()
        words = sys.argv[1:]
    given = [word for word in words if word != DEBUG]
    return ended(lambda: _run(given), debug=DEBUG in words)


def _run(words: Sequence[str]) -> int:
    sys.path.append(os.getcwd())  # last, lest a file here passes for a package that we import
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler, which measures memory
    arguments = _parser().parse_args(words)
    for name, value in vars(arguments).items():
        setattr(arguments, name, _at_home(value))
    arguments.typed = shlex.join(["kd-plugins", *words])
    return arguments.run(arguments)


def _at_home(value: Any) -> Any:
    """Return an argument with ``~`` expanded, which a shell leaves alone in ``--out=~/x``."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_at_home, value))
    if isinstance(value, (str, Path)) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))
    return value


def _parser() -> argparse.ArgumentParser:
    from kd_plugins.commands import proof, targets

    parser = argparse.ArgumentParser("kd-plugins", description=DESCRIPTION)
    parser.add_argument(DEBUG, action="store_true", help="show the whole traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    targets.add(commands)
    proof.add(commands)
    return parser
