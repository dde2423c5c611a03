"""The command ``kd-plugins``: sample, label, check, compare, report."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd_plugins.exit_codes import run_command, use_utf_8

DESCRIPTION = "Knowledge distillation of interatomic potentials: teacher targets and evaluation."
DEBUG = "--debug"


def main(words: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        words: of the command line after ``kd-plugins``; those of this process if left out.

    Returns:
        0 if all is well, 1 if faults were found, 2 for an error, 130 for Ctrl-C.
    """
    if words is None:
        use_utf_8()
        words = sys.argv[1:]

    without_debug = [word for word in words if word != DEBUG]
    return run_command(lambda: _run(without_debug), debug=DEBUG in words)


def _run(words: Sequence[str]) -> int:
    # Last on the path, so that a file of this folder cannot replace a package that we import.
    sys.path.append(os.getcwd())
    # torch's profiler, which measures memory, logs every start otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")

    arguments = _parser().parse_args(words)
    for name, value in vars(arguments).items():
        setattr(arguments, name, _expand_home(value))
    arguments.typed = shlex.join(["kd-plugins", *words])
    return arguments.run(arguments)


def _expand_home(value: Any) -> Any:
    """Expand ``~`` in an argument: a shell does not where it follows ``=``, as in ``--out=~/x``."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_expand_home, value))
    if isinstance(value, (str, Path)) and str(value).startswith("~"):
        return type(value)(os.path.expanduser(value))
    return value


def _parser() -> argparse.ArgumentParser:
    from kd_plugins.commands import evaluation, oc20, sampling, targets

    parser = argparse.ArgumentParser("kd-plugins", description=DESCRIPTION)
    parser.add_argument(DEBUG, action="store_true", help="show the whole traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sampling.add(commands)
    targets.add(commands)
    evaluation.add(commands)
    oc20.add(commands)
    return parser
