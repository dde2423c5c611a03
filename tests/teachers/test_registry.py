"""Teachers by name: reading, writing and loading them, and names that cannot be loaded."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT

from kd_plugins.teachers.calculator import CalculatorTeacher
from kd_plugins.teachers.ensemble import Ensemble
from kd_plugins.teachers.registry import (
    TeacherSpec,
    check_different,
    load_teacher,
    parse_teachers,
    teacher_name,
)
from kd_plugins.teachers.teacher import TeacherError
from tests.hosts import is_installed

VALUES = [
    *(
        "plain",
        "",
        " ",
        "two words",
        "it's",
        'say "hi"',
        "a\\b",
        "new\nline",
        "tab\t",
        "$HOME",
        "*",
    ),
    *(
        "a=b",
        "=",
        "#no comment",
        "a & b",
        "&",
        " & ",
        "é ü 分子",
        "-0.0",
        "007",
        "1e5",
        "1_000",
        "+1",
    ),
    *("true", "True", "null", "None", "NaN", "Infinity", "[1, 2]", "{}", '"quoted"', "--store"),
    *(True, False, None, 0, -1, 2**70, 0.1, -0.0, 1e-300, float("inf")),
    *([], [1, "1", None, True], {}, {"s8": 0.7875, "of": ["H", {"x": [" & "]}]}),
]


def same(found: Any, expected: Any) -> bool:
    """Compare values and their types, so that 1, 1.0, "1" and True differ, and 0.0 and -0.0."""
    return json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_written_spec_is_read_back(value: Any) -> None:
    """On one line, as words of a command line, and among others."""
    spec = TeacherSpec("package.module:factory", {"first": value, "second": value})
    (alone,) = parse_teachers(str(spec))
    by_words = TeacherSpec.parse(shlex.split(str(spec)))
    among = parse_teachers(teacher_name([TeacherSpec("emt"), spec, spec]))
    for found in (TeacherSpec.parse(str(spec)), alone, by_words, *among[1:]):
        assert found.name == spec.name
        assert same(found.arguments, spec.arguments)
    assert len(among) == 3
    assert str(alone) == str(spec)


@pytest.mark.parametrize(
    "words",
    [
        ["emt", "asap_cutoff=true", "label=a b"],
        ["emt asap_cutoff=true 'label=a b'"],
        ["emt asap_cutoff=true", "label=a b"],
        ["  emt  asap_cutoff=true  label='a b' "],
    ],
)
def test_name_and_arguments_may_be_quoted_as_one_word(words: list[str]) -> None:
    """As a shell passes it on, whether quoted or not."""
    expected = TeacherSpec("emt", {"asap_cutoff": True, "label": "a b"})
    assert TeacherSpec.parse(words) == expected
    assert parse_teachers(words) == (expected,)


@pytest.mark.parametrize("statement", ["raise SystemExit(0)", "def f(): raise SystemExit(0)"])
def test_module_that_exits_python_is_an_error(tmp_path: Path, monkeypatch, statement: str) -> None:
    """Not an exit of the command with code 0."""
    (tmp_path / "ends_python.py").write_text(statement)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ends_python", raising=False)
    with pytest.raises(TeacherError, match="teacher 'ends_python:f'.*SystemExit"):
        load_teacher("ends_python:f")


@pytest.mark.parametrize("teacher", [3, None, [3], {"emt": 1}])
def test_what_is_no_name_is_refused(teacher: Any) -> None:
    for read in (load_teacher, TeacherSpec.parse):
        with pytest.raises(TeacherError, match="expected a teacher's name"):
            read(teacher)


def test_repeated_argument_is_refused() -> None:
    with pytest.raises(TeacherError, match="rc is given twice"):
        TeacherSpec.parse(["ase.calculators.lj:LennardJones", "rc=3", "rc=4"])


def test_repeated_teacher_is_refused() -> None:
    with pytest.raises(TeacherError, match="'emt a=1' is given twice"):
        check_different(parse_teachers("emt a=1 & emt & emt a=1"))


def test_ensemble_may_be_quoted_as_one_word() -> None:
    """As a manifest writes it."""
    assert teacher_name(parse_teachers(["emt & emt a=1"])) == "emt & emt a=1"


def test_values_are_json_or_else_text() -> None:
    words = ["a=1", "b=1.0", "c=true", "d=[1]", 'e="1"', "f=True", "g=", "h=a=b", "i=cpu"]
    expected = [1, 1.0, True, [1], "1", "True", "", "a=b", "cpu"]
    found = TeacherSpec.parse(["emt", *words]).arguments
    assert same(found, dict(zip("abcdefghi", expected, strict=True)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a teacher's name"),
        ("  ", "expected a teacher's name"),
        ("emt &", "expected a teacher's name"),
        ("& emt", "expected a teacher's name"),
        ("emt & & emt", "expected a teacher's name"),
        ("emt 'x", "cannot be read: No closing quotation"),
        ("emt water.xyz", "expected key=value, got 'water.xyz' .structures stand before"),
        ("emt model-size=1", "expected key=value, got 'model-size=1'"),
        ("emt =1", "expected key=value, got '=1'"),
        ("emtt", "unknown teacher 'emtt'; did you mean 'emt'.*package.module:factory"),
        ("chgnet+d4", "did you mean 'chgnet.d3'"),
        ("zzz", "'zzz'; known: chgnet, chgnet.d3, emt, eqv2, fairchem, hippynn, pfp"),
        ("no_such_package:f", "'no_such_package' cannot be imported: ModuleNotFoundError"),
        ("ase.no_such_module:f", "'ase.no_such_module' cannot be imported"),
        (":f", "'' cannot be imported"),
        ("ase.calculators.emt:EMTT", "has no factory 'EMTT'; did you mean 'EMT'"),
        ("ase.calculators.emt:", "has no factory ''"),
        ("ase.calculators.emt:beta", "beta of ase.calculators.emt is a float; expected a function"),
        ("emt 'x=a b'", "teacher 'emt' takes no 'x', nor any other argument"),
        (
            "emt asap=1",
            "teacher 'emt' takes no 'asap', nor any other argument",
        ),
        ("json:loads s=1", "cannot be made: TypeError: the JSON object must be str"),
        ("json:loads s=[1]", "cannot be made"),
        ("os:getcwd", "teacher 'os:getcwd': expected a Teacher or an ASE calculator, got '"),
        ("pfp", "pfp.. missing 2 required positional arguments: 'model_version' and 'calc_mode'"),
    ],
)
def test_name_that_cannot_be_loaded_is_refused(text: str, message: str) -> None:
    """Each says what was expected."""
    with pytest.raises(TeacherError, match=message):
        load_teacher(text)


def test_pfp_without_its_client_names_the_remedy() -> None:
    """Says where it comes from, and what else can be done."""
    if is_installed("pfp-api-client"):
        pytest.skip("the client is installed")
    with pytest.raises(TeacherError, match="needs the package pfp_api_client.*kd-plugins import"):
        load_teacher("pfp model_version=v5.0.0 calc_mode=CRYSTAL")


@pytest.mark.skipif(is_installed("fairchem-core"), reason="fairchem-core is installed")
@pytest.mark.parametrize("name", ["eqv2", "kd_plugins.fairchem:eqv2"])
def test_eqv2_without_fairchem_names_the_extra(name: str) -> None:
    """Names the extra; also of a factory that is only looked for when it is asked for."""
    with pytest.raises(TeacherError, match=r"pip install 'kd_plugins\[fairchem\]'"):
        load_teacher(f"{name} checkpoint=x.pt")


def test_short_name_and_module_name_load_equal_teachers() -> None:
    """A short name, a module's factory, and words."""
    expected = CalculatorTeacher(EMT()).fingerprint
    for name in ("emt", "ase.calculators.emt:EMT", "kd_plugins.teachers.builtin:emt"):
        assert load_teacher(name).fingerprint == expected
        assert load_teacher([TeacherSpec(name)]).fingerprint == expected
    other = load_teacher("ase.calculators.emt:EMT asap_cutoff=true")
    assert other.fingerprint != expected


def test_several_names_load_an_ensemble() -> None:
    """In the order in which they stand."""
    members = "emt & ase.calculators.lj:LennardJones sigma=2.3 & ase.calculators.lj:LennardJones"
    ensemble = load_teacher(members)
    assert isinstance(ensemble, Ensemble)
    assert [load_teacher(name).fingerprint for name in members.split(" & ")] == [
        teacher.fingerprint for teacher in ensemble.teachers
    ]


FOREIGN = '''
from ase.calculators.lj import LennardJones
from ase.calculators.emt import EMT

class Own:
    """A teacher that is no calculator."""
    quantities, fingerprint, versions = ("energy",), "mine", {}
    def __init__(self, offset=0.0):
        self.offset = offset
    def __call__(self, atoms, quantities):
        return {"energy": self.offset * len(atoms)}

def argon(sigma):
    return LennardJones(sigma=sigma)

def sulky():
    raise RuntimeError("no licence")
'''
POINTS = """
[kd_plugins.teachers]
argon+d3 = foreign_teachers:argon
own = foreign_teachers:Own
sulky = foreign_teachers:sulky
gone = foreign_teachers:gone
needs = foreign_teachers_more:needs
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of somebody else's that is installed and brings teachers."""
    (tmp_path / "foreign_teachers.py").write_text(FOREIGN)
    (tmp_path / "foreign_teachers_more.py").write_text("import not_installed_at_all")
    info = tmp_path / "foreign_teachers-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: foreign_teachers\nVersion: 1.2.3\n"
    )
    (info / "entry_points.txt").write_text(POINTS)
    (info / "top_level.txt").write_text("foreign_teachers\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "foreign_teachers", raising=False)
    return tmp_path


def test_entry_points_of_other_packages_are_found(foreign: Path) -> None:
    """By a short name, beside ours."""
    argon = load_teacher("argon+d3 sigma=3.4")
    assert '"sigma": 3.4' in argon.fingerprint
    own = load_teacher("own offset=-2")
    assert (own.fingerprint, own.quantities) == ("mine", ("energy",))
    assert own.predict([bulk("Cu")], ["energy"]) == [{"energy": -2}]
    assert load_teacher("emt & own").quantities == ("energy", "energy_std")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("argon", r"did you mean 'argon\+d3'"),
        ("argon+d3", "missing 1 required positional argument: 'sigma'"),
        ("sulky", "teacher 'sulky' cannot be made: RuntimeError: no licence"),
        ("gone", "teacher 'gone' is named by a package, but .*has no attribute 'gone'"),
        ("needs", "teacher 'needs' is not installed: No module named 'not_installed_at_all'"),
        ("foreign_teachers_more:needs", "cannot be imported.*'not_installed_at_all'"),
        ("foreign_teachers:Owm", "did you mean 'Own'"),
    ],
)
def test_faulty_entry_points_are_refused(foreign: Path, name: str, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        load_teacher(name)


def test_module_that_fails_on_import_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is named with what it says."""
    (tmp_path / "breaks_on_import.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TeacherError, match="'breaks_on_import' cannot be.*ZeroDivisionError: div"):
        load_teacher("breaks_on_import:f")


class Refusing(EMT):
    """A factory with a message of its own."""

    def __init__(self, model: str) -> None:
        raise TeacherError(f"there is no model {model!r}")


def test_message_of_a_factory_is_kept() -> None:
    with pytest.raises(TeacherError, match="^there is no model 'x'$"):
        load_teacher(f"{__name__}:Refusing model=x")


class Plain:
    """A teacher of one's own: the six members, and nothing of ASE's calculators."""

    quantities: Sequence[str] = ("energy", "node_embeddings")
    fingerprint, device, batch_size = "plain", "cpu", 1
    versions: dict[str, str] = {}

    def predict(
        self, structures: Sequence[Atoms], quantities: Sequence[str]
    ) -> list[dict[str, np.ndarray]]:
        """Return zeros."""
        return [
            {name: np.zeros({"energy": ()}.get(name, (len(atoms), 2))) for name in quantities}
            for atoms in structures
        ]


def test_teacher_without_a_calculator_is_returned_as_it_is() -> None:
    assert isinstance(load_teacher(f"{__name__}:Plain"), Plain)
