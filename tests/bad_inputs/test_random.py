"""Record files and numbers at random: whatever stands there, no traceback and no wrong type."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.bad_inputs.case import Case, answered, complaint
from tests.bad_inputs.functions import NUMBERS, UNLIKE, names
from tests.bad_inputs.records import (
    COMPARE,
    EVALUATE,
    FAILED,
    MANIFEST,
    MEASURED,
    PLAN,
    RESULT,
    SETTINGS,
    VERIFY,
)

READ = "from kd_plugins.report import read_results; read_results(__import__('pathlib').Path("
"""What report does before it draws, which takes seconds."""

FEW = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

RECORDS = {
    "manifest": (MANIFEST, VERIFY),
    "measured": (MEASURED, EVALUATE),
    "plan": (PLAN, f"{READ}'runs'))"),
    "result": (RESULT, f"{READ}'alone'))"),
    "claim": (SETTINGS, COMPARE),
}
"""A JSON file of each kind, and a command that reads it."""

FREE = ("provenance", "versions", "units", "title", "fingerprint", "teacher", "model", "command")
"""Keys whose text may be any text."""
ANEW = {"claim": ("metrics", "control", "seeds", "unjudged")}
"""Keys that a command does not read but writes anew."""

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.just(10**400),
    st.just(1e-320),
    st.just(-0.0),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def ways(value: object, above: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the way to every value in a JSON, at most two of each long list."""
    found = [above] if above else []
    if isinstance(value, dict):
        inner = list(value.items())
    else:
        inner = list(enumerate(value[:2])) if isinstance(value, list) else []
    for key, one in inner:
        found += ways(one, (*above, key))
    return found


def replaced(content: Any, way: tuple[str | int, ...], value: object) -> tuple[Any, object]:
    """Return a JSON with another value, and the one that was there."""
    copy = json.loads(json.dumps(content))
    inner = copy
    for step in way[:-1]:
        inner = inner[step]
    before, inner[way[-1]] = inner[way[-1]], value
    return copy, before


def kind(value: object) -> type:
    """Return a JSON value's type, whole and broken numbers being one."""
    return float if isinstance(value, int) and not isinstance(value, bool) else type(value)


@pytest.fixture
def anew(folder: Path, original: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Make the folder again for each example; LMDB keeps files open by their path."""
    number = iter(range(10**6))

    def make() -> Path:
        place = folder.parent / f"example{next(number)}"
        shutil.copytree(original, place)
        monkeypatch.chdir(place)
        return place

    return make


@pytest.mark.parametrize("record", RECORDS)
@FEW
@given(data=st.data())
def test_a_value_of_another_type(
    record: str, data: st.DataObject, anew: Callable[[], Path]
) -> None:
    """It is refused clearly, or it is of a kind that may stand there."""
    anew()
    file, call = RECORDS[record]
    content = json.loads(Path(file).read_text())
    way = data.draw(st.sampled_from(ways(content)), label="way")
    value = data.draw(VALUES, label="value")
    changed, before = replaced(content, way, value)
    found = answered(Case("random", call, (), {file: json.dumps(changed)}, code=(1, 2)), {})
    if found == "accepted":
        free = (
            any(step in (*FREE, *ANEW.get(record, ())) for step in way)
            or value is None
            or before is None
        )
        assert free or kind(value) is kind(before), f"{way}: {before!r} became {value!r}"
    else:
        assert found is None


@pytest.mark.parametrize("record", RECORDS)
@FEW
@given(content=st.binary(max_size=60))
def test_any_bytes(record: str, content: bytes, anew: Callable[[], Path]) -> None:
    """In the place of a record file."""
    anew()
    file, call = RECORDS[record]
    name = Path(file).stem
    assert complaint(Case("bytes", call, (name,), {file: content}, code=(1, 2)), {}) is None


@pytest.mark.parametrize("record", RECORDS)
@FEW
@given(share=st.floats(0, 0.999))
def test_a_cut(record: str, share: float, anew: Callable[[], Path]) -> None:
    """Of a record file, anywhere before its last bracket."""
    anew()
    file, call = RECORDS[record]
    whole = Path(file).read_bytes().rstrip()
    content = whole[: int(share * len(whole))]
    case = Case("cut", call, (Path(file).stem,), {file: content}, code=(1, 2))
    assert complaint(case, {}) is None


@FEW
@given(value=VALUES)
def test_any_line_of_failures(value: object, anew: Callable[[], Path]) -> None:
    """A whole line is an entry or damage."""
    anew()
    case = Case(
        "line", VERIFY, ("failures.jsonl",), {FAILED: json.dumps(value) + "\n"}, code=(1, 2)
    )
    assert complaint(case, {}) is None


HOSTILE = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 10**400, -(10**400), True, False, None]),
    st.text(max_size=4),
    st.lists(st.integers(), max_size=2),
    st.integers(max_value=-1),
    st.complex_numbers(),
)
"""What no number of ours may be; -0.0 and 1e-320 are tried by `TINY`."""
TINY = st.sampled_from([-0.0, 0.0, 1e-320, 5e-324])


@settings(FEW, max_examples=100)
@given(name=st.sampled_from(sorted(NUMBERS)), value=HOSTILE)
def test_what_is_no_number(name: str, value: object, folder: Path) -> None:
    """Is refused with the name of the argument."""
    call, named = NUMBERS[name]
    if (name, "null") in UNLIKE and value is None:
        return
    if (name, "minus") in UNLIKE and isinstance(value, int) and not isinstance(value, bool):
        return
    given = {**names(), "VALUE": value}
    assert complaint(Case("number", call, (named,)), given) is None


@settings(FEW, max_examples=60)
@given(name=st.sampled_from(sorted(NUMBERS)), value=TINY)
def test_a_number_next_to_nothing(name: str, value: float, folder: Path) -> None:
    """Is taken as it is, or refused clearly; it never breaks something further in."""
    call, _ = NUMBERS[name]
    found = answered(Case("tiny", call, ()), {**names(), "VALUE": value})
    assert found in (None, "accepted")
