"""The rules of the house, each a function from text to the list of what breaks it.

`tests/test_house.py` runs them over the tree and, so that they are known to bite, over bad samples.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
PACKAGE = SRC / "kd_plugins"
FRAMEWORKS = ("fairchem", "hippynn", "chgnet", "ase", "torch_geometric", "e3nn", "pymatgen")
LONGEST_FUNCTION, LONGEST_MODULE = 60, 500

GROUND = {
    "kd_plugins.files",
    "kd_plugins.names",
    "kd_plugins.numbers",
    "kd_plugins.processes",
    "kd_plugins.torch_files",
}
CORE = {"torch", "numpy", "jaxtyping", "kd_plugins.core"} | GROUND
STORE = CORE | {"lmdb", "safetensors", "kd_plugins.store"}
STRUCTURES = STORE | {"ase", "ijson", "tqdm", "kd_plugins.config", "kd_plugins.structures"}
TEACHERS = STRUCTURES | {"kd_plugins.teachers"}
DOCTOR = TEACHERS | {"kd_plugins.doctor"}
ADAPTER = DOCTOR | {"yaml"}
ALLOWED_IMPORTS = {
    "kd_plugins/__init__.py": {"kd_plugins.core", "kd_plugins.store", "kd_plugins.names"},
    "kd_plugins/crystals.py": {"kd_plugins"},
    "kd_plugins/config.py": {"yaml", "kd_plugins.core"} | GROUND,
    "kd_plugins/files.py": set(),
    "kd_plugins/names.py": set(),
    "kd_plugins/numbers.py": {"torch", "numpy"},
    "kd_plugins/processes.py": {"torch"},
    "kd_plugins/torch_files.py": {"torch"},
    "kd_plugins/cli.py": {"kd_plugins"},
    "kd_plugins/exit_codes.py": set(),
    "kd_plugins/commands/": {"kd_plugins"},
    "kd_plugins/compare/": STORE
    | {
        "yaml",
        "tqdm",
        "tensorboard",
        "kd_plugins.config",
        "kd_plugins.compare",
        "kd_plugins.evaluate",
        "kd_plugins.report",
        "kd_plugins.sampling",
        "kd_plugins.structures",
        "kd_plugins.teachers",
        "kd_plugins.exit_codes",
    },
    "kd_plugins/testing.py": TEACHERS | {"pytest"},
    "kd_plugins/core/": CORE,
    "kd_plugins/store/": STORE,
    "kd_plugins/structures/": STRUCTURES,
    "kd_plugins/teachers/": TEACHERS,
    "kd_plugins/teachers/builtin.py": TEACHERS | {"pfp_api_client"},
    "kd_plugins/teachers/ray_engine.py": TEACHERS | {"ray"},
    "kd_plugins/teachers/sevennet.py": TEACHERS | {"sevenn", "dftd3"},
    "kd_plugins/doctor/": DOCTOR,
    "kd_plugins/sampling/": TEACHERS | {"kd_plugins.sampling", "scipy"},
    "kd_plugins/sampling/descriptors.py": STRUCTURES | {"dscribe"},
    "kd_plugins/fairchem/": ADAPTER
    | {"kd_plugins.fairchem", "kd_plugins.exit_codes", "fairchem", "torch_geometric"},
    "kd_plugins/fairchem/standins/scatter/": {"torch", "torch_scatter"},
    "kd_plugins/fairchem/standins/sparse/": set(),
    "kd_plugins/hippynn/": ADAPTER | {"kd_plugins.hippynn", "hippynn"},
    "kd_plugins/chgnet/": ADAPTER
    | {"kd_plugins", "kd_plugins.chgnet", "kd_plugins.sampling", "chgnet", "dftd3", "pymatgen"},
    "kd_plugins/evaluate/": DOCTOR
    | {"kd_plugins.evaluate", "kd_plugins.sampling", "scipy", "pymatgen"},
    "kd_plugins/report/": CORE
    | {"kd_plugins.config", "kd_plugins.report", "matplotlib", "jinja2", "scipy"},
}
"""What a room may import besides the standard library; the longest path that fits counts."""

# Spelt so that none of them finds itself.
LEAKS = {
    "a path of one machine": re.compile(r"(?<![\w.])/(home|root|work|tmp|mnt|scratch|Users)/\w"),
    "a setting of a package index": re.compile(r"index[-_]url"),
    "a package registry": re.compile(r"py(pi\.org|thonhosted)"),
}
COMMAND = re.compile(
    r"^# .*\b(python -m kd_plugins(\.\w+)?|kd-plugins|fairchem) .*\bconfigs/\S+\.ya?ml"
)


def foreign_imports(text: str, path: str) -> list[str]:
    """Imports that the module's room may not have."""
    rooms = [room for room in ALLOWED_IMPORTS if path == room or path.startswith(room)]
    if not rooms:
        return [f"{path}: no rule says what it may import"]
    allowed = ALLOWED_IMPORTS[max(rooms, key=len)] | sys.stdlib_module_names
    return [
        f"{path}:{line}: imports {name}"
        for line, name in _imports(ast.parse(text))
        if not any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed)
    ]


def relative_imports(text: str, path: str) -> list[str]:
    """Imports that start with a dot."""
    return [
        f"{path}:{node.lineno}: relative import"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and node.level
    ]


def undocumented(text: str, path: str) -> list[str]:
    """Public modules, classes, functions and methods without a docstring."""
    tree = ast.parse(text)
    named = [(path, tree), *_public(tree, f"{path}:")]
    return [f"{name}: no docstring" for name, node in named if ast.get_docstring(node) is None]


def too_long(text: str, path: str) -> list[str]:
    """Modules over their limit, and functions over theirs.

    Blank lines and comments do not count, and neither do the docstrings of functions.
    """
    lines = text.splitlines()
    functions = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    found = [
        f"{path}:{node.lineno}: {node.name} has {_length(node, lines)} lines"
        for node in functions
        if _length(node, lines) > LONGEST_FUNCTION
    ]
    n_lines = _n_code(lines)
    return found + [f"{path}: {n_lines} lines"] * (n_lines > LONGEST_MODULE)


def asserts(text: str, path: str) -> list[str]:
    """Assertions, which python -O takes away; the contract for adapters is made of them."""
    if path == "kd_plugins/testing.py":
        return []
    nodes = ast.walk(ast.parse(text))
    return [f"{path}:{node.lineno}: assert" for node in nodes if isinstance(node, ast.Assert)]


def leaks(text: str, path: str) -> list[str]:
    """What must not stand in any file: paths of one machine, settings of a package index."""
    return [
        f"{path}:{number}: {what}"
        for number, line in enumerate(text.splitlines(), start=1)
        for what, pattern in LEAKS.items()
        if pattern.search(line)
    ]


def commandless(text: str, path: str) -> list[str]:
    """Configurations that do not open with a command, or one with a file that is not there."""
    first = text.partition("\n")[0]
    if not COMMAND.match(first):
        return [f"{path}: opens with {first!r} and not with the command that runs it"]
    named = re.findall(r"configs/\S+\.ya?ml", first)
    return [f"{path}: its command names {name}" for name in named if not (ROOT / name).exists()]


def loaded_frameworks(statement: str, frameworks: tuple[str, ...] = FRAMEWORKS) -> list[str]:
    """Frameworks that a fresh interpreter has loaded after the statement."""
    code = f"{statement}; import sys; print(*sorted(sys.modules))"
    loaded = _python(code).split()
    return [name for name in frameworks if name in loaded]


def seconds(statement: str, after: str = "import torch") -> float:
    """How long a statement takes in a fresh interpreter after another; the best of three."""
    clock = "time.perf_counter()"
    code = f"import time; {after}; start = {clock}; {statement}; print({clock} - start)"
    return min(float(_python(code)) for _ in range(3))


def _python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def _imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every import wherever it stands; ``from a import b`` counts as ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _public(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for child in node.body:
        definition = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if not definition or child.name.startswith("_"):
            continue
        yield f"{prefix}{child.name}", child
        if isinstance(child, ast.ClassDef):
            yield from _public(child, f"{prefix}{child.name}.")


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    docstring = node.body[0] if ast.get_docstring(node) is not None else None
    inside = lines[docstring.lineno - 1 : docstring.end_lineno] if docstring else []
    return _n_code(lines[node.lineno - 1 : node.end_lineno]) - _n_code(inside)


def _n_code(lines: list[str]) -> int:
    """Count the lines that are neither blank nor a comment."""
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in lines)
