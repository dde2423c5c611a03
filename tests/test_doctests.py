"""Every example in a docstring runs and prints what it says.

Docstrings are taken from the source: doctest's own finder passes over functions that beartype has
wrapped, and would find nothing to complain about.
"""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

from kd_plugins.fairchem import compat
from tests.hosts import ABSENT_HOSTS
from tests.house import PACKAGE, SRC

DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>> " in path.read_text()]


def failures(text: str, names: dict[str, object], capsys: pytest.CaptureFixture[str]) -> str:
    """Run the examples of all docstrings of a module, and return doctest's complaints."""
    runner, parser = doctest.DocTestRunner(verbose=False), doctest.DocTestParser()
    for node in ast.walk(ast.parse(text)):
        docstring = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
        if docstring:
            name = getattr(node, "name", "module")
            runner.run(parser.get_doctest(docstring, dict(names), name, None, None))
    return capsys.readouterr().out


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_examples_print_what_they_say(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
    if name.split(".")[1] in ABSENT_HOSTS:
        pytest.skip("its host framework is not installed")
    compat.install()
    module = importlib.import_module(name)
    assert failures(path.read_text(), vars(module), capsys) == ""


def test_a_wrong_example_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    text = 'def double(x):\n    """Double.\n\n    >>> double(2)\n    5\n    """\n'
    assert "Got:\n    4" in failures(text, {"double": lambda x: 2 * x}, capsys)
