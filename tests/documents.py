"""What the pages show, checked as far as it can be without weights, data and hours.

A command goes through the real parser of its program, its YAML files through their host's reader,
its teachers through `TeacherSpec.check`, its bars through `Requirement.parse`. Python is compiled,
its imports are made, and every other name must come from the page. What no check here knows is a
fault. Blocks that can be run as they stand are run by `tests.test_readme`.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import contextlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from kd_plugins.compare.experiment import Experiment, read_experiment
from kd_plugins.config import read_config
from kd_plugins.evaluate.requirements import Requirement
from kd_plugins.fairchem.settings import DistillSettings
from kd_plugins.names import suggestion
from kd_plugins.sampling import Sampling
from kd_plugins.teachers.registry import GROUP, TeacherSpec
from tests.hosts import HOSTS, is_installed
from tests.house import ROOT

GIVEN = {"atoms"}
"""What Python on a page may use without saying where it comes from."""
PLACEHOLDERS = {"package.module:factory"}
"""Teachers that stand for one of the reader's own."""
HOST_OF = {"recipes/crack_oc20": "fairchem", "recipes/chgnet_organic": "chgnet"}
HOST_OF |= {"recipes/hippynn_metals": "hippynn", "benchmarks/chgnet_frozen_trunk.py": "chgnet"}
"""Scripts by how their path begins, and the host that they import."""

PARTS = {"sweep", "best_over", "published"}
"""Keys of an experiment that a page may show without the rest of it."""
REST: Mapping[str, Any] = {
    "title": "a part",
    "host": "script",
    "base": "train.py",
    "model": "emt",
    "arms": {"control": None, "student": None},
    "control": "control",
    "seeds": [0],
    "measure": {"structures": ["a.xyz"]},
}
"""What stands for that rest."""


@dataclass(frozen=True)
class Block:
    """A piece of a page that is set as code.

    Args:
        page: from the project's folder.
        line: of the page where it begins.
        language: ``python``, ``yaml``, ``bash``, empty for a bare fence or an indented block.
        text: without fence and indent.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"{self.page}:{self.line}"


class Absent(Exception):
    """A host is not installed here, so that the check is for another environment."""


class _Parsed(BaseException):
    """What a program's own parser made of its words."""


def blocks(text: str, page: str) -> list[Block]:
    """Return the fenced and the indented blocks of a page, in order."""
    found: list[Block] = []
    lines, place = text.splitlines(), 0
    while place < len(lines):
        fence = re.match(r"```(\w*)\s*$", lines[place])
        indented = lines[place].startswith("    ") and (place == 0 or not lines[place - 1].strip())
        end = place + 1
        if fence:
            while end < len(lines) and not lines[end].startswith("```"):
                end += 1
            content = "\n".join(lines[place + 1 : end])
            found.append(Block(page, place + 1, fence[1], content))
            end += 1
        elif indented:
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            content = "\n".join(line[4:] for line in lines[place:end])
            found.append(Block(page, place + 1, "", content.strip("\n")))
        place = end
    return found


def commands(text: str) -> list[str]:
    """Return the command lines of a block, each on one line and without comments."""
    joined = text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if shlex.split(line, comments=True)]


def faults(block: Block, defined: Sequence[str] = ()) -> list[str]:
    """Return what is wrong with a block, a line each.

    Args:
        block: of a page.
        defined: names that Python further up on the page has defined.

    Raises:
        Absent: if a host is needed that is not installed.
    """
    if block.language == "mermaid":
        return []  # tests.architecture makes it
    if block.language == "python":
        return [f"{block.place}: {fault}" for fault in python_faults(block.text, defined)]
    if block.language == "yaml":
        return [f"{block.place}: {fault}" for fault in yaml_faults(block.text)]
    if block.language not in ("", "bash"):
        return [f"{block.place}: no check for a block of {block.language!r}"]
    found: list[str] = []
    for line in commands(block.text):
        found += [f"{block.place}: {line}: {fault}" for fault in command_faults(line)]
    return found


def python_faults(text: str, defined: Sequence[str] = ()) -> list[str]:
    """Return what keeps Python from running: syntax, imports, names from nowhere."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        return [f"line {error.lineno}: {error.msg}"]
    found = [
        fault
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for fault in _import_faults(node)
    ]
    known = {*names_of(text), *defined, *dir(builtins), *GIVEN}
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    strange = sorted({node.id for node in used if node.id not in known})
    return found + [f"{name} comes from nowhere on this page" for name in strange]


def names_of(text: str) -> list[str]:
    """Return the names that Python defines: imports, assignments, functions, arguments."""
    found: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found += [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.append(node.name)
        elif isinstance(node, ast.arg):
            found.append(node.arg)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.append(node.id)
    return found


def _import_faults(node: ast.Import | ast.ImportFrom) -> list[str]:
    modules = [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        modules = [node.module or ""]
    for module in modules:
        _require(module.partition(".")[0], module)
    try:
        found = [import_module(module) for module in modules]
    except ImportError as error:
        return [str(error)]
    if isinstance(node, ast.Import):
        return []
    names = [alias.name for alias in node.names if alias.name != "*"]
    return [f"{modules[0]} has no {name}" for name in names if not hasattr(found[0], name)]


def _require(package: str, module: str = "") -> None:
    """Raise `Absent` for a module of a host that is not installed, ours for it included."""
    ours = module.split(".")[1:2] if package == "kd_plugins" else []
    for host in (package, *ours):
        if host in HOSTS and not is_installed(HOSTS[host]):
            raise Absent(HOSTS[host])


def yaml_faults(text: str) -> list[str]:
    """Return what the strict reader of its host says of a YAML."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"no YAML: {error}"]
    if not isinstance(raw, Mapping):
        return ["no mapping"]
    try:
        if "distill" in (raw.get("task") or {}):
            read_config(DistillSettings, raw["task"]["distill"], "task.distill")
            return _trainer_faults(raw)
        if "arms" in raw or set(raw) <= PARTS:
            read_config(Experiment, raw if "arms" in raw else {**REST, **raw}, "experiment")
            return []
        if set(raw) & {"md", "strain"}:
            read_config(Sampling, raw, "sample")
            return []
        if raw and set(raw) <= {"train", "validation"}:
            _check_sources(raw)
            return []
    except (ValueError, KeyError) as error:
        return [str(error.args[0])]
    return [f"no check for a YAML with the key {next(iter(raw))!r}"] if raw else []


def _check_sources(raw: Mapping[str, Any]) -> None:
    """Read the sources of a CHGNet training, a part that a page shows without the rest."""
    _require("chgnet")
    from kd_plugins.chgnet.settings import DataSettings

    for part, given in raw.items():
        for place, one in enumerate(given if isinstance(given, list) else [given]):
            read_config(DataSettings, one, f"{part}[{place}]")


def _trainer_faults(raw: Mapping[str, Any]) -> list[str]:
    from kd_plugins import fairchem

    if "trainer" not in raw:
        return []
    module, _, name = str(raw["trainer"]).rpartition(".")
    if module != "kd_plugins.fairchem" or name not in fairchem.__all__:
        return [f"trainer: {raw['trainer']!r} is none of ours"]
    return []


def command_faults(line: str) -> list[str]:
    """Return what is wrong with a command line.

    Raises:
        Absent: if it needs a host that is not installed.
    """
    words = shlex.split(line, comments=True)
    first = words[0]
    if first == "python" and words[1:2] == ["-m"]:
        first, words = f"python -m {words[2]}", words[2:]
    elif first == "python":
        return _script_faults(words[1], words[2:])
    check = PROGRAMS.get(first)
    return [f"no check for {first!r}"] if check is None else check(words[1:])


def _kd_plugins(words: Sequence[str]) -> list[str]:
    from kd_plugins import cli

    options, found = _parsed(lambda: cli.main(list(words)))
    if options is None:
        return found
    given = vars(options)
    for name in ("teacher", "student", "potential"):
        if words[0] != "import":
            found += _teacher_faults(given.get(name))
    for bar in given.get("require") or ():
        found += _said(lambda bar=bar: Requirement.parse(bar))
    # What lies under runs/ was written by a command before.
    if given.get("experiment") and given["experiment"].parts[0] != "runs":
        found += _said(lambda: read_experiment(ROOT / given["experiment"]))
    return found


def _teacher_faults(given: Any) -> list[str]:
    several = given if given and isinstance(given[0], list) else [given] if given else []
    found: list[str] = []
    for words in several:
        spec = TeacherSpec.parse(words)
        if spec.name in PLACEHOLDERS:
            continue
        for point in metadata.entry_points(group=GROUP, name=spec.name):
            _require("kd_plugins", point.module)
        found += _said(spec.check)
    return found


def _chgnet(words: Sequence[str]) -> list[str]:
    _require("chgnet")
    from kd_plugins.chgnet.__main__ import main
    from kd_plugins.chgnet.settings import read_training

    options, found = _parsed(lambda: main(list(words)))
    if options is not None:
        found += _said(lambda: read_training(ROOT / options.config, tuple(options.changes)))
    return found


def _fairchem(words: Sequence[str]) -> list[str]:
    _require("fairchem")
    from kd_plugins.fairchem import compat

    compat.install()  # as the command does
    from fairchem.core.common.flags import flags
    from fairchem.core.common.utils import build_config

    from kd_plugins.fairchem.command import check_config
    from kd_plugins.fairchem.settings import read_settings

    arguments, changes = flags.get_parser().parse_known_args(list(words))
    named = Path(arguments.config_yml)
    if named.stem == "X":  # the reader's own
        return []
    arguments.config_yml = ROOT / named
    config = build_config(arguments, changes)
    if (config.get("task") or {}).get("distill") is None:  # a teacher's, for fairchem's own trainer
        return _said(lambda: check_config(config))
    return _said(lambda: read_settings(config["task"]))


def _script_faults(script: str, words: Sequence[str]) -> list[str]:
    """Run a script up to the moment in which it has read its words."""
    path = ROOT / script
    if not path.is_file():
        return [f"no file {script}"]
    for start, host in HOST_OF.items():
        if script.startswith(start):
            _require(host)
    before = set(sys.modules)
    with (
        mock.patch.object(sys, "argv", [script, *words]),
        mock.patch.object(sys, "path", [str(path.parent), *sys.path]),
    ):
        try:
            return _parsed(lambda: runpy.run_path(str(path), run_name="__main__"))[1]
        finally:
            _forget(before, path.parent)


def _forget(before: set[str], folder: Path) -> None:
    """Take out what a script has imported from beside itself: other recipes use the same names."""
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).parent == folder:
            del sys.modules[name]


def _parsed(run: Callable[[], Any]) -> tuple[argparse.Namespace | None, list[str]]:
    """Run a program until its own parser is done; return its options, or what the parser said."""
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: Any, **named: Any) -> None:
        raise _Parsed(parse(self, *given, **named))

    said = io.StringIO()
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        contextlib.redirect_stderr(said),
    ):
        try:
            run()
        except _Parsed as parsed:
            return parsed.args[0], []
        except SystemExit:
            return None, [said.getvalue().strip().splitlines()[-1]]
    return None, ["it never reads its words"]


def _said(run: Callable[[], Any]) -> list[str]:
    try:
        run()
    except Exception as error:  # whatever is wrong is what is looked for
        return [str(error.args[0]) if error.args else repr(error)]
    return []


def _make(words: Sequence[str]) -> list[str]:
    done = subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, text=True)
    return [] if done.returncode == 0 else [done.stderr.strip()]


def _pip(words: Sequence[str]) -> list[str]:
    """Check that the extras of ``pip install '.[a,b]'`` are there."""
    extras = metadata.metadata("kd_plugins").get_all("Provides-Extra") or []
    asked = [word for word in words if word.startswith(".")]
    if words[:1] != ["install"] or not asked:
        return ["expected pip install '.[...]'"]
    named = re.findall(r"[\w-]+", asked[0])
    return [f"no extra {name!r}{suggestion(name, extras)}" for name in named if name not in extras]


def _ase(words: Sequence[str]) -> list[str]:
    from ase.cli.main import main

    return _parsed(lambda: main(args=list(words)))[1]


PROGRAMS: Mapping[str, Callable[[Sequence[str]], list[str]]] = {
    "kd-plugins": _kd_plugins,
    "python -m kd_plugins.chgnet": _chgnet,
    "python -m kd_plugins.fairchem": _fairchem,
    "make": _make,
    "pip": _pip,
    "ase": _ase,
}
"""First words of a command line to what looks at the rest."""


def pages() -> Iterator[tuple[str, str]]:
    """Yield every page that users read, with its text."""
    found = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for path in sorted([*found, *(ROOT / "recipes").glob("*/README.md")]):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def inline_commands(text: str) -> list[str]:
    """Return the command lines that stand within a sentence, such as ``python benchmarks/x.py``."""
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    whole = r"python (-m kd_plugins\.\w+ \S|\S+\.py)|kd-plugins \S+ \S|pip install \S|make \w"
    return [span for span in spans if re.match(whole, span) and "..." not in span]
