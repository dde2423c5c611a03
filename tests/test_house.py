"""The rules of the house hold over the tree, and each check finds a sample that breaks it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

import kd_plugins
from kd_plugins.core import QUANTITIES
from tests import architecture, house
from tests.house import PACKAGE, ROOT, SRC

Check = Callable[[str, str], list[str]]

MODULES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*") if path.suffix in (".yml", ".yaml"))
SOURCE_CHECKS = [
    house.foreign_imports,
    house.relative_imports,
    house.undocumented,
    house.too_long,
    house.asserts,
]

CORE, CHGNET = "kd_plugins/core/a.py", "kd_plugins/chgnet/a.py"

# The check, a path, a text that breaks it there, what it says.
BAD_SAMPLES = [
    (house.foreign_imports, CORE, "import ase.io", "a.py:1: imports ase.io"),
    (house.foreign_imports, CORE, "def f():\n from fairchem import core", "2: imp"),
    (house.foreign_imports, CORE, "from kd_plugins import chgnet", "kd_plugins.chg"),
    (house.foreign_imports, CORE, "import torch_geometric", "torch_geometric"),
    (house.foreign_imports, CHGNET, "import hippynn", "imports hippynn"),
    (house.foreign_imports, CHGNET, "import recipes.x", "imports recipes.x"),
    (house.foreign_imports, "kd_plugins/hippynn/a.py", "import kd_plugins.fairchem", "fairchem"),
    (house.foreign_imports, "kd_plugins/attic/a.py", "", "no rule"),
    (house.relative_imports, "a.py", "from . import b", "a.py:1: relative"),
    (house.relative_imports, "a.py", "def f():\n from ..a import b", "a.py:2: relative"),
    (house.undocumented, "a.py", "x = 1", "a.py: no docstring"),
    (house.undocumented, "a.py", '"""A."""\ndef f(): ...', "a.py:f: no docstring"),
    (house.undocumented, "a.py", '"""A."""\nclass C:\n "A."\n def f(self): ...', "a.py:C.f: no"),
    (house.too_long, "a.py", "x = 1\n" * 501, "a.py: 501 lines"),
    (house.too_long, "a.py", "def f():\n" + " x = 1\n" * 60, "a.py:1: f has 61 lines"),
    (house.asserts, "a.py", "def f(x):\n assert x > 0", "a.py:2: assert"),
    (house.leaks, "a.yml", "src: /" + "home/alice/data", "a.yml:1: a path of one machine"),
    (house.leaks, "a.yml", "# pip install x --index" + "-url=x", "a setting of a package index"),
    (house.leaks, "a.md", "https://py" + "pi.org/project/x", "a.md:1: a package registry"),
    (house.commandless, "a.yml", "trainer: ocp", "opens with 'trainer: ocp'"),
    (house.commandless, "a.yml", "# fairchem --config-yml configs/no.yml", "names configs/no.yml"),
]

# The check, a path, a text that keeps it although it comes close.
GOOD_SAMPLES = [
    (house.foreign_imports, CORE, "import math\nfrom torch.nn import functional"),
    (house.foreign_imports, "kd_plugins/fairchem/a.py", "import fairchem.core, kd_plugins.core"),
    (house.relative_imports, "a.py", "from a import b"),
    (house.undocumented, "a.py", '"""A."""\ndef _f(): ...\nclass _C:\n def f(self): ...'),
    (house.too_long, "a.py", 'def f():\n """A.\n' + " x\n" * 99 + ' """\n' + " x = 1\n" * 59),
    (house.too_long, "a.py", "def f():\n" + " x = 1\n\n # why\n" * 59),
    (house.asserts, "kd_plugins/testing.py", "assert True"),
    (house.leaks, "a.md", "see path/to/home/data and https://example.org/work/x"),
]


@pytest.mark.parametrize("check", SOURCE_CHECKS, ids=lambda check: check.__name__)
def test_the_source_keeps(check: Check) -> None:
    found = [
        violation
        for module in MODULES
        for violation in check(module.read_text(), module.relative_to(SRC).as_posix())
    ]
    assert found == []


@pytest.mark.parametrize(("check", "path", "text", "says"), BAD_SAMPLES)
def test_a_check_finds_what_breaks_it(check: Check, path: str, text: str, says: str) -> None:
    (violation,) = check(text, path)
    assert says in violation


@pytest.mark.parametrize(("check", "path", "text"), GOOD_SAMPLES)
def test_a_check_lets_pass_what_comes_close(check: Check, path: str, text: str) -> None:
    assert check(text, path) == []


def test_every_configuration_opens_with_the_command_that_runs_it() -> None:
    found = [
        violation
        for config in CONFIGS
        for violation in house.commandless(config.read_text(), config.relative_to(ROOT).as_posix())
    ]
    assert CONFIGS
    assert found == []


def test_no_file_tells_of_one_machine() -> None:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    git = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=False)
    if git.returncode:
        pytest.skip("not a checkout, so nothing says which files belong to the project")
    paths = [path for path in git.stdout.split("\0") if (ROOT / path).is_file()]
    found = [
        violation
        for path in paths
        for violation in house.leaks((ROOT / path).read_text(errors="ignore"), path)
    ]
    assert found == []


def test_the_page_on_architecture_is_the_tree() -> None:
    page = architecture.PAGE.read_text()
    assert architecture.rewritten(page) == page, "python -m tests.architecture writes it anew"


def test_the_map_and_the_diagram_follow_the_tree(tmp_path: Path) -> None:
    package = tmp_path / "kd_plugins"
    texts = {
        "__init__.py": '"""All of it."""',
        "names.py": '"""Names.\n\nMore."""',
        "core/__init__.py": '"""Losses."""',
        "core/c.py": '"""A loss."""\nfrom kd_plugins.names import x',
        "host/__init__.py": '"""A host."""',
        "host/d.py": '"""Its trainer."""\nimport kd_plugins.core.c\nimport kd_plugins.names',
        "host/standins/x/e.py": "",
    }
    for name, text in texts.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)

    drawn = architecture.map_of(package)
    assert "**core/**: Losses\n\n- `c.py`: A loss" in drawn
    assert "- `names.py`: Names\n" in drawn and "- `standins/`:" in drawn
    assert architecture.imports_of_rooms(package) == {
        "core": {architecture.TOP},
        "host": {"core"},
    }
    with pytest.raises(ValueError, match="no place for the part 'rooms'"):
        architecture.rewritten("# Title", package)


@pytest.mark.parametrize("module", ["kd_plugins", "kd_plugins.fairchem"])
def test_importing_loads_no_host_framework(module: str) -> None:
    assert house.loaded_frameworks(f"import {module}") == []


def test_a_loaded_framework_is_found() -> None:
    assert house.loaded_frameworks("import json", frameworks=("json", "ase")) == ["json"]


def test_importing_adds_little_to_torch() -> None:
    assert house.seconds("import kd_plugins.core") < 0.3


def test_a_slow_import_is_found() -> None:
    assert house.seconds("time.sleep(0.3)", after="pass") >= 0.3


def test_the_conventions_show_the_table_of_quantities() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (atom|structure) \| \((.+?)\) \| (.+) \|$",
        (ROOT / "CONVENTIONS.md").read_text(),
        re.MULTILINE,
    )
    leading = {"atom": "N", "structure": "B"}
    table = [
        (row.name, row.scope, ", ".join(map(str, (leading[row.scope], *row.shape))), row.unit)
        for row in QUANTITIES.values()
    ]
    assert [(name, scope, shape.rstrip(","), unit) for name, scope, shape, unit in rows] == table


def test_the_version_is_told_once() -> None:
    assert metadata.version("kd_plugins") == kd_plugins.__version__
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == kd_plugins.__version__


def test_what_is_installed_fits_together() -> None:
    pip = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    assert pip.returncode == 0, pip.stdout
