"""Laws of weights as pure functions of the step."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields

import pytest

from kd_plugins.core import SCHEDULES, Constant, Cosine, Linear, Piecewise
from kd_plugins.core.schedules import Schedule

SAMPLES: dict[str, Schedule] = {
    "constant": Constant(2.0),
    "linear": Linear(start=0.1, end=0.7, first_step=3, last_step=13),
    "cosine": Cosine(start=5.0, end=0.25, first_step=3, last_step=13),
    "piecewise": Piecewise(steps=(2, 5, 9), weights=(4.0, 0.0, 1.0)),
}
STEPS = [0, 1, 2, 3, 4, 5, 8, 9, 13, 14, 10**9]
RAMPS = [Linear, Cosine]

every_schedule = pytest.mark.parametrize("schedule", SAMPLES.values(), ids=SAMPLES)
every_ramp = pytest.mark.parametrize("ramp", RAMPS, ids=lambda ramp: ramp.__name__)


def test_every_schedule_is_sampled() -> None:
    """The laws below are over the whole table."""
    assert {name: type(sample) for name, sample in SAMPLES.items()} == dict(SCHEDULES)


@every_schedule
def test_a_step_has_one_weight(schedule: Schedule) -> None:
    """In whatever order steps are evaluated, so that resuming needs no state."""
    forwards = [schedule(step) for step in STEPS]
    backwards = [schedule(step) for step in reversed(STEPS)]
    assert forwards == backwards[::-1]
    assert all(type(weight) is float and weight >= 0 for weight in forwards)


@every_schedule
def test_a_schedule_survives_the_trip_to_another_process(schedule: Schedule) -> None:
    """Equal, hashed alike and of the same weights."""
    copy = pickle.loads(pickle.dumps(schedule))
    assert (copy, hash(copy)) == (schedule, hash(schedule))
    assert [copy(step) for step in STEPS] == [schedule(step) for step in STEPS]


@every_schedule
def test_a_schedule_cannot_be_changed(schedule: Schedule) -> None:
    """Frozen dataclasses."""
    name = fields(schedule)[0].name
    with pytest.raises(FrozenInstanceError, match=f"cannot assign to field '{name}'"):
        setattr(schedule, name, 1.0)


@every_ramp
@pytest.mark.parametrize(("start", "end"), [(0.0, 0.3), (0.7, 0.0), (2.5, 2.5), (1.0, 100.0)])
def test_a_ramp_has_the_ends_that_it_names(
    ramp: Callable[..., Schedule], start: float, end: float
) -> None:
    """Before, between and after; a weight of 0 is exactly 0, which turns a term off."""
    schedule = ramp(start=start, end=end, first_step=10, last_step=20)
    assert schedule(0) == schedule(10) == pytest.approx(start, abs=0.0)
    assert schedule(20) == schedule(1000) == pytest.approx(end, abs=0.0)
    assert schedule(15) == pytest.approx((start + end) / 2)
    inside = [schedule(step) for step in range(10, 21)]
    assert inside == sorted(inside, reverse=end < start)


def test_a_linear_ramp_is_straight_and_a_cosine_is_flat_at_its_ends() -> None:
    """A fifth of the way: 0.2 and (1 - cos 36°) / 2."""
    assert Linear(0.0, 1.0, 0, 10)(2) == pytest.approx(0.2)
    assert Cosine(0.0, 1.0, 0, 10)(2) == pytest.approx(0.0954915028)


def test_a_row_holds_until_the_next() -> None:
    """Nothing before the first, the last for ever."""
    schedule = SAMPLES["piecewise"]
    weights = {0: 0.0, 1: 0.0, 2: 4.0, 4: 4.0, 5: 0.0, 8: 0.0, 9: 1.0, 10**9: 1.0}
    assert {step: schedule(step) for step in weights} == weights


NO_WEIGHTS = [
    (-1.0, "finite and >= 0, got -1.0"),
    (float("nan"), "finite and >= 0, got nan"),
    (float("inf"), "finite and >= 0, got inf"),
    ("1", "a number, got '1'"),
    (True, "a number, got True"),
]
WITH_WEIGHT = {
    "constant": Constant,
    "linear start": lambda weight: Linear(weight, 1.0, 0, 1),
    "linear end": lambda weight: Linear(1.0, weight, 0, 1),
    "cosine start": lambda weight: Cosine(weight, 1.0, 0, 1),
    "cosine end": lambda weight: Cosine(1.0, weight, 0, 1),
    "piecewise": lambda weight: Piecewise((0, 1), (1.0, weight)),
}


@pytest.mark.parametrize("make", WITH_WEIGHT.values(), ids=WITH_WEIGHT)
@pytest.mark.parametrize(("weight", "message"), NO_WEIGHTS)
@pytest.mark.usefixtures("unchecked")
def test_a_weight_is_a_finite_number(
    make: Callable[[object], Schedule], weight: object, message: str
) -> None:
    """Not negative, and truth is no number."""
    with pytest.raises(ValueError, match=f"a weight must be {message}"):
        make(weight)


@every_ramp
@pytest.mark.parametrize(("first_step", "last_step"), [(5, 5), (5, 4), (-1, 4)])
def test_a_ramp_goes_forwards(ramp: type, first_step: int, last_step: int) -> None:
    """Over at least one step, from 0 on."""
    message = f"needs 0 <= first_step < last_step, got {first_step} and {last_step}"
    with pytest.raises(ValueError, match=message):
        ramp(1.0, 2.0, first_step, last_step)


@pytest.mark.parametrize(
    ("steps", "weights", "message"),
    [
        ((), (), "as many steps as weights, at least one; got 0 and 0"),
        ((0, 1), (1.0,), "as many steps as weights, at least one; got 2 and 1"),
        ((0, 2, 2), (1.0, 2.0, 3.0), r"steps must increase, got \[0, 2, 2\]"),
        ((3, 1), (1.0, 2.0), r"steps must increase, got \[3, 1\]"),
    ],
)
def test_rows_match_and_are_in_order(
    steps: tuple[int, ...], weights: tuple[float, ...], message: str
) -> None:
    """Naming the lengths or the steps."""
    with pytest.raises(ValueError, match=f".*{message}"):
        Piecewise(steps, weights)


@pytest.mark.parametrize("name", ["linear", "cosine", "piecewise"])
@pytest.mark.parametrize("step", ["3", 2.5, True])
@pytest.mark.usefixtures("unchecked")
def test_a_step_is_a_whole_number(name: str, step: object) -> None:
    """Refused when the schedule is made, not in mid-training."""
    make = {
        "linear": lambda: Linear(0.0, 1.0, 0, step),
        "cosine": lambda: Cosine(0.0, 1.0, 0, step),
        "piecewise": lambda: Piecewise((step,), (1.0,)),
    }
    with pytest.raises(ValueError, match="whole number"):
        make[name]()
