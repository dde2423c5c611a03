"""The parts of `docs/architecture.md` that follow from the tree: the diagram of rooms and the map.

``python -m tests.architecture`` writes them anew; `tests/test_house.py` compares.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from tests.house import PACKAGE, ROOT

PAGE = ROOT / "docs" / "architecture.md"
MARKED = r"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)"
TOP = "files, names, numbers, torch_files"
"""What the diagram calls the modules outside a room that the rooms import."""
WAY = [
    ("a file", "structures/readers.py", "read_structures"),
    ("LabelledStructure", "teachers/labelling.py", "label"),
    ("Record", "store/store.py", "TargetStore"),
    ("TeacherTargets", "core/targets.py", "TeacherTargets"),
    ("the host's batch", "core/terms.py", "DistillationLoss"),
    ("a trained student", "evaluate/evaluator.py", "Evaluator"),
    ("evaluation.json", "evaluate/evaluation.py", "evaluation"),
    ("RunResults", "report/statistics.py", "compare_pairs"),
    ("Difference", "report/verdicts.py", "verdict"),
    ("a sentence", "", ""),
]
"""A structure's way from a file to a verdict: each form, and what turns it into the next."""
ABOVE = {"__init__", "cli", "crystals", "exit_codes", "testing"}
"""Modules outside a room that stand above all rooms, or that are a room's old name."""


def modules(package: Path = PACKAGE) -> list[Path]:
    """Return the modules of the package, room by room; a folder of stand-ins counts as one."""
    found = {
        next((folder for folder in path.parents if folder.name == "standins"), path)
        for path in package.rglob("*.py")
        if path.name != "__init__.py" or path.parent == package
    }
    return sorted(found, key=lambda path: (path.parent != package, path))


def room(path: Path, package: Path = PACKAGE) -> str:
    """Return the room of a module, or of one outside the rooms what the diagram calls it."""
    first = path.relative_to(package).parts[0]
    return _node(first.removesuffix(".py"), package)


def map_of(package: Path = PACKAGE) -> str:
    """Return the map: each room, and each of its modules with its docstring's first line."""
    lines, last = [], ""
    for path in modules(package):
        here = path.relative_to(package).parent.as_posix()
        if here != last:
            lines += ["", f"**{here}/**: {_summary(path.parent / '__init__.py')}", ""]
            last = here
        what = "folder" if path.is_dir() else "file"
        summary = "compiled packages that a host imports" if what == "folder" else _summary(path)
        name = path.name + "/" * path.is_dir()
        lines.append(f"- `{name}`: {summary}")
    return "\n".join(lines).strip()


def imports_of_rooms(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Return which rooms each room imports, without those that follow from another import.

    Raises:
        ValueError: if rooms import each other in a circle.
    """
    direct = defaultdict(set)
    for path in package.rglob("*.py"):
        here = room(path, package)
        if path.parent == package and path.stem in ABOVE:
            continue
        for name in re.findall(r"^\s*(?:from|import) kd_plugins\.(\w+)", path.read_text(), re.M):
            there = _node(name, package)
            if there != here:
                direct[here].add(there)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            new = direct.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        return seen

    circles = [here for here in direct if here in reached(here)]
    if circles:
        raise ValueError(f"rooms import each other in a circle: {sorted(circles)}")
    return {
        here: {there for there in near if not any(there in reached(x) for x in near - {there})}
        for here, near in sorted(direct.items())
    }


def diagram_of(package: Path = PACKAGE) -> str:
    """Return the rooms as a mermaid graph, an arrow from each to those that it imports."""
    arrows = [
        f"    {_label(here)} --> {_label(there)}"
        for here, near in imports_of_rooms(package).items()
        for there in sorted(near)
    ]
    return "\n".join(["```mermaid", "graph TD", *arrows, "```"])


def way(package: Path = PACKAGE) -> str:
    """Return the way of a structure from a file to a verdict, as a mermaid graph.

    Raises:
        ValueError: for a step whose function or class is not defined where it should be.
    """
    arrows = []
    for place, ((form, module, name), (following, *_)) in enumerate(pairwise(WAY)):
        defined = re.search(rf"^(def|class) {name}\b", (package / module).read_text(), re.M)
        if not defined:
            raise ValueError(f"{module} does not define {name}")
        step = f'    s{place}["{form}"] -- "{name} ({module})" --> s{place + 1}["{following}"]'
        arrows.append(step)
    return "\n".join(["```mermaid", "graph TD", *arrows, "```"])


def rewritten(page: str, package: Path = PACKAGE) -> str:
    """Return the page with its generated parts made anew.

    Raises:
        ValueError: if the page has no place for one of them.
    """
    parts = {"rooms": diagram_of(package), "way": way(), "map": map_of(package)}
    for name, text in parts.items():
        pattern = MARKED.format(name=name)
        if not re.search(pattern, page, re.DOTALL):
            raise ValueError(f"no place for the part {name!r}")
        page = re.sub(pattern, lambda _, text=text: f"{text}\n", page, count=1, flags=re.DOTALL)
    return page


def _node(name: str, package: Path) -> str:
    # It imports a room, so it stands above it.
    is_room = (package / name).is_dir() or name == "config"
    return name if is_room else TOP


def _label(room: str) -> str:
    return f'top["{TOP}"]' if room == TOP else room


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return docstring.partition("\n")[0].rstrip(".")


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
