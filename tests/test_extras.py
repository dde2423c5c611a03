"""Every extra of pyproject.toml brings all that its commands import.

By the metadata of what is installed, always; and by installing one extra alone in a clean
environment: another one each day, ``KD_EXTRAS=chgnet`` that one, ``KD_EXTRAS=all`` all of them,
``KD_EXTRAS=no`` none.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.hosts import is_installed
from tests.house import PACKAGE, ROOT

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]
EXTRAS = ("none", "chgnet", "fairchem", "hippynn", "sevenn", "ray", "report", "select")
ROOMS = {
    **{f"{room}/": room for room in ("chgnet", "fairchem", "hippynn", "report")},
    "teachers/ray_engine.py": "ray",
    "sampling/descriptors.py": "select",
    "teachers/sevennet.py": "sevenn",
}
"""The extra that a room of the package has besides the base dependencies."""
ELSEWHERE = {
    "pfp_api_client",  # not public: who has PFP has it
    "tensorboard",  # reads fairchem's logs, and comes with fairchem-core
    "torch_scatter",  # in their place are stand-ins
    "torch_sparse",
}


def requirements(extra: str) -> list[Requirement]:
    """Return what the base or an extra asks for."""
    found = [*PROJECT["dependencies"]]
    if extra != "none":
        found += PROJECT["optional-dependencies"][extra]
    return [Requirement(text) for text in found]


def closure(asked: list[Requirement]) -> set[str]:
    """Return the distributions that these bring, with all that those ask for in turn.

    Raises:
        PackageNotFoundError: for one that is not installed here.
    """
    found: set[tuple[str, str]] = set()
    left = [(req.name, extra) for req in asked for extra in ("", *req.extras)]
    while left:
        name, extra = left.pop()
        if (canonicalize_name(name), extra) in found:
            continue
        found.add((canonicalize_name(name), extra))
        for text in metadata.requires(name) or ():
            inner = Requirement(text)
            if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                left += [(inner.name, one) for one in ("", *inner.extras)]
    return {name for name, _ in found}


def imported(path: Path) -> Iterator[str]:
    """Yield the packages that a module imports, wherever in it, besides Python's and ours."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        for name in (name.partition(".")[0] for name in names):
            if name not in sys.stdlib_module_names and name not in ("kd_plugins", *ELSEWHERE):
                yield name


def extra_of(path: str) -> str:
    """Return the extra that a module may count on.

    >>> extra_of("teachers/ray_engine.py"), extra_of("core/store.py")
    ('ray', 'none')
    """
    return next((extra for room, extra in ROOMS.items() if path.startswith(room)), "none")


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_is_imported_is_asked_for(extra: str) -> None:
    """A package that happens to be there, for another extra or a test, would hide it otherwise."""
    try:
        brought = closure(requirements(extra))
    except metadata.PackageNotFoundError as error:
        pytest.skip(f"{error.name} is not installed here")
    owners = metadata.packages_distributions()
    missing = {
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if extra_of(str(path.relative_to(PACKAGE))) == extra
        for name in imported(path)
        if not {canonicalize_name(one) for one in owners.get(name, ())} & brought
    }
    assert not missing


def test_a_package_of_another_extra_is_noticed() -> None:
    brought = closure([Requirement("tqdm")])
    assert "tqdm" in brought
    assert "torch" not in brought
    assert list(imported(PACKAGE / "config.py")) == ["yaml"]


def test_a_host_that_is_missing_is_one_sentence(tmp_path: Path) -> None:
    """Of a command, by ``python -m``, too, which imports the package before the command."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['chgnet'] = None")
    words = [sys.executable, "-m", "kd_plugins.chgnet", "training.yml"]
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: CHGNet is not installed: pip install 'kd_plugins[chgnet]'\n"


def chosen() -> tuple[str, ...]:
    """Return the extras to install in this run: today's, unless the environment says which."""
    asked = os.environ.get("KD_EXTRAS", "")
    if asked in ("all", "no"):
        return EXTRAS if asked == "all" else ()
    return (asked,) if asked else (EXTRAS[date.today().toordinal() % len(EXTRAS)],)


CUBE = 'Lattice="3.6 0 0 0 3.6 0 0 0 3.6" pbc="T T T" Properties=species:S:1:pos:R:3'
METALS = "".join(
    f"4\n{CUBE} structure_id=m{index}\nCu {shift} 0 0\nCu 0 1.8 1.8\nCu 1.8 0 1.8\nCu 1.8 1.8 0\n"
    for index, shift in enumerate((0.0, 0.1, 0.2, 0.3))
)
TRAINING = """
train: {structures: [train.extxyz], store: taught}
validation: {structures: [valid.extxyz], store: taught}
student: {align: true}
loss: {soft: {energy: 1, forces: 1}}
optim: {learning_rate: 0.01, batch_size: 2, epochs: 1}
out: run
cache: trunk
"""
EVERYWHERE = (
    "kd-plugins --help",
    "kd-plugins compare --help",
    "kd-plugins report --help",
    "kd-plugins label metals.extxyz --teacher emt --store targets",
    "kd-plugins verify targets",
    "kd-plugins export targets labelled.extxyz",
    "kd-plugins doctor --labels labelled.extxyz --store targets",
    "kd-plugins evaluate --student emt --reference labelled.extxyz --out measured",
    "python -c 'from kd_plugins import *; import kd_plugins.config, kd_plugins.sampling'",
)
COMMANDS = {
    "none": (),
    "chgnet": (
        "python -m kd_plugins.chgnet --help",
        "kd-plugins label metals.extxyz --teacher chgnet+d3 --store taught",
        "python -m kd_plugins.chgnet training.yml",
        "python -c 'from kd_plugins.chgnet import *'",
    ),
    "fairchem": (
        "python -m kd_plugins.fairchem --help",
        "python -c 'from kd_plugins.fairchem import *'",
    ),
    "hippynn": ("python -c 'from kd_plugins.hippynn import *; import hippynn'",),
    "sevenn": ("kd-plugins label metals.extxyz --teacher sevenn+d3 --store taught",),
    "ray": (
        "kd-plugins label metals.extxyz --teacher emt --store by_ray --engine ray --workers 1",
    ),
    "report": ("kd-plugins report measured -o page.html",),
    "select": ("kd-plugins select metals.extxyz --count 2 --out chosen.extxyz",),
}
ABSENT = {
    "chgnet": ("python -m kd_plugins.chgnet --help", "kd_plugins[chgnet]"),
    "fairchem": ("python -m kd_plugins.fairchem --help", "kd_plugins[fairchem]"),
    "hippynn": ("kd-plugins label metals.extxyz --teacher hippynn folder=x --store y", "hippynn"),
    "ray": (
        "kd-plugins label metals.extxyz --teacher emt --store y --engine ray",
        "kd_plugins[ray]",
    ),
    "select": (
        "kd-plugins select metals.extxyz --count 2 --out chosen.extxyz",
        "kd_plugins[select]",
    ),
    "sevenn": ("kd-plugins label metals.extxyz --teacher sevenn --store y", "kd_plugins[sevenn]"),
}
"""Commands of other extras, and what they say where those are not installed."""


def run(environment: Path, folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a clean environment, a script or Python of its own."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "KD_", "VIRTUAL_ENV", "COV_"))
    }
    variables["PATH"] = f"{environment / 'bin'}{os.pathsep}{variables.get('PATH', '')}"
    return subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env={**variables, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A clean environment with one extra; skipped where pip finds no packages."""
    made, extra = tmp_path / "environment", request.param
    subprocess.run([sys.executable, "-m", "venv", str(made)], check=True)
    if run(made, tmp_path, "python -m pip install --quiet --dry-run --no-deps tqdm").returncode:
        pytest.skip("pip finds no packages here")

    # fairchem-core chooses its own torch; else the one that is here, which pip has at hand
    torch = metadata.version("torch").partition("+")[0]
    pinned = "" if extra == "fairchem" else f" torch=={torch}"
    source = f"{ROOT}[{extra}]" if extra != "none" else str(ROOT)
    done = run(made, tmp_path, f"python -m pip install --quiet '{source}'{pinned}")
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.slow
@pytest.mark.skipif(
    is_installed("fairchem-core") and not os.environ.get("KD_EXTRAS"),
    reason="takes minutes, and runs where fairchem-core is not installed, as in .venv-latest",
)
@pytest.mark.skipif(not chosen(), reason="KD_EXTRAS=no")
@pytest.mark.parametrize("environment", chosen(), indirect=True, ids=str)
def test_an_extra_alone_is_enough(
    environment: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    extra = request.node.callspec.id
    folder = tmp_path / "work"
    folder.mkdir()
    frames = METALS.splitlines(keepends=True)
    for name, part in (("metals", frames), ("train", frames[:12]), ("valid", frames[12:])):
        (folder / f"{name}.extxyz").write_text("".join(part), encoding="utf-8")
    (folder / "training.yml").write_text(TRAINING, encoding="utf-8")

    for command in (*EVERYWHERE, *COMMANDS[extra]):
        done = run(environment, folder, command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    for other, (command, says) in ABSENT.items():
        if other != extra:
            done = run(environment, folder, command)
            assert done.returncode != 0, command
            assert says in done.stderr, f"{command}\n{done.stderr}"
            assert "Traceback" not in done.stderr, f"{command}\n{done.stderr}"
    assert run(environment, folder, "python -m pip check").returncode == 0
