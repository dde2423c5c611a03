"""The contract of an adapter: what distillation inside a host's own trainer must keep, as checks.

An adapter's tests describe how to run its host on a small problem, as an `Adapter`, and run every
check of `CHECKS` on it::

    @pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
    def test_contract(check, adapter, tmp_path):
        check(adapter, tmp_path)

A check raises a `ContractError` that names what differs. Each also shows that it can fail: a
student that learns nothing, or a loss that is always zero, breaks the contract, too.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Distillation = Literal["none", "weight_zero", "on"]

WITHOUT_KD_PLUGINS = "import sys\nsys.modules['kd_plugins'] = None  # importing it fails\n"


class ContractError(AssertionError):
    """An adapter does not keep the contract."""


@dataclass(frozen=True)
class TrainingRun:
    """What is left of a training.

    Args:
        student: name to tensor of the student's parameters, and of all else that a resumed
            training needs to be the same, such as averages of them.
        teacher_before: name to tensor of the teacher's parameters and buffers before the first
            step; or, for a teacher whose targets are in a store, the targets.
        teacher_after: the same after the last step.
    """

    student: Tensors
    teacher_before: Tensors
    teacher_after: Tensors


@dataclass(frozen=True)
class ExportedStudent:
    """A trained student in files that the host alone reads.

    Args:
        code: Python that loads it with the host's own functions, without kd_plugins, and prints as
            its last line a JSON list of numbers that it predicts.
        folder: where the code runs.
        expected: these numbers, as the student predicted them right after its training.
        tolerance: how far they may be apart, relative to the largest.
    """

    code: str
    folder: Path
    expected: Sequence[float]
    tolerance: float = 1e-5


class Adapter(Protocol):
    """How to run one host, with its own trainer, on a small problem that is always the same.

    A few structures with labels, a teacher, a store of its targets, and a student whose training
    takes seconds and at least four steps. Seeds are fixed.
    """

    n_structures: int
    """Structures to train on."""
    tolerances: Mapping[str, float]
    """Name of a distillation term to its largest value, by rounding, for a student that equals its
    teacher. Terms that are not zero there, such as contrastive ones, are left out."""
    batch_tolerance: float
    """How far the loss of a batch may move, relatively, when its structures change places."""
    has_ranks: bool
    """Whether the host trains on several ranks (`torch.distributed`)."""

    def train(
        self, folder: Path, distillation: Distillation, stop_after: int | None = None
    ) -> TrainingRun | None:
        """Train in a folder; go on where a training there was stopped.

        Args:
            folder: of the training, made if it is not there.
            distillation: ``none`` is the host's own trainer on the labels, without kd_plugins;
                ``weight_zero`` has every distillation term with weight 0, ``on`` with weights.
            stop_after: steps after which the training dies, as if killed, and returns None.
        """
        ...

    def losses(
        self, folder: Path, student: Literal["teacher", "other"], order: Sequence[int]
    ) -> Mapping[str, float]:
        """Return the unweighted distillation terms of one batch of all structures.

        Args:
            folder: empty, for what has to be written.
            student: the teacher itself, or another model.
            order: of the structures in the batch. Targets come from the store, through the
                adapter's own loader.
        """
        ...

    def gradients(self, folder: Path, n_ranks: int) -> Tensors:
        """Return the gradient of the distillation loss of all structures, split among ranks.

        Averaged over ranks as the host does it. Not called where ``has_ranks`` is False.
        """
        ...

    def export(self, folder: Path) -> ExportedStudent:
        """Train with distillation and export the student as users are told to."""
        ...


# ----------------------------------------------------------------------------------------------
# The checks


def check_weight_zero_equals_plain_host(adapter: Adapter, folder: Path) -> None:
    """Terms of weight 0 train the same student as the host alone, bit for bit."""
    plain = _train(adapter, folder / "plain", "none")
    zero = _train(adapter, folder / "weight_zero", "weight_zero")
    _require_equal(zero.student, plain.student, "with every weight 0, the student")

    distilled = _train(adapter, folder / "distilled", "on")
    if _first_difference(distilled.student, plain.student) is None:
        raise ContractError("the student is the same with distillation as without")


def check_teacher_as_student_has_zero_loss(adapter: Adapter, folder: Path) -> None:
    """A student that equals its teacher has no loss, through store, loader and loss."""
    order = range(adapter.n_structures)
    perfect = adapter.losses(_new(folder / "teacher"), "teacher", order)
    other = adapter.losses(_new(folder / "other"), "other", order)

    for name, tolerance in adapter.tolerances.items():
        if not abs(perfect[name]) <= tolerance:
            raise ContractError(
                f"term {name!r}: expected at most {tolerance:g} for a student that equals its "
                f"teacher, got {perfect[name]:g}"
            )
        if not other[name] > 10 * tolerance:
            raise ContractError(
                f"term {name!r}: expected more than {10 * tolerance:g} for another student, got "
                f"{other[name]:g}; it would not see a difference"
            )


def check_order_of_structures_changes_nothing(adapter: Adapter, folder: Path) -> None:
    """The loss of a batch does not depend on the order of its structures: targets go by id."""
    order = list(range(adapter.n_structures))
    straight = adapter.losses(_new(folder / "straight"), "other", order)
    reversed_ = adapter.losses(_new(folder / "reversed"), "other", order[::-1])

    if straight.keys() != reversed_.keys():
        raise ContractError(f"terms differ: {sorted(straight)} and {sorted(reversed_)}")
    for name, value in straight.items():
        if not math.isclose(value, reversed_[name], rel_tol=adapter.batch_tolerance):
            raise ContractError(
                f"term {name!r} is {value!r} for a batch and {reversed_[name]!r} for the same "
                "structures in reverse order"
            )


def check_teacher_never_changes(adapter: Adapter, folder: Path) -> None:
    """TrainingRun the student leaves the teacher, or its stored targets, as they were."""
    training = _train(adapter, folder / "run", "on")
    if not training.teacher_before:
        raise ContractError("the adapter shows no tensor of its teacher")
    _require_equal(training.teacher_after, training.teacher_before, "after a training, the teacher")


def check_resumed_training_equals_uninterrupted(adapter: Adapter, folder: Path) -> None:
    """A training that died and went on ends with the same student, bit for bit."""
    whole = _train(adapter, folder / "whole", "on")

    if adapter.train(_new(folder / "stopped"), "on", stop_after=3) is not None:
        raise ContractError("the training was to be stopped after 3 steps, and was not")
    resumed = adapter.train(folder / "stopped", "on")
    if resumed is None:
        raise ContractError("the training did not go on where it was stopped")

    _require_equal(resumed.student, whole.student, "after a resume, the student")


def check_two_ranks_equal_one(adapter: Adapter, folder: Path) -> None:
    """Two ranks have the gradient of one process on the union of their batches."""
    if not adapter.has_ranks:
        return
    one, two = (adapter.gradients(_new(folder / str(n)), n) for n in (1, 2))

    if one.keys() != two.keys():
        raise ContractError(f"gradients differ in {sorted(one.keys() ^ two.keys())[0]!r}")
    error = max(float((two[name] - one[name]).abs().max()) for name in one)
    largest = max(float(value.abs().max()) for value in one.values())
    # Sums in another order, through a whole model.
    if largest == 0 or not error <= 1e-4 * largest:
        raise ContractError(
            f"gradients of two ranks and of one are {error:g} apart, where the largest is "
            f"{largest:g}"
        )


def check_exported_student_needs_no_kd_plugins(adapter: Adapter, folder: Path) -> None:
    """An exported student predicts the same in a process that cannot import kd_plugins."""
    exported = adapter.export(_new(folder / "run"))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KD_PLUGINS + exported.code],
        cwd=exported.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ContractError(f"the exported student does not load:\n{done.stderr[-2000:]}")

    expected = torch.tensor(exported.expected, dtype=torch.float64)
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1]), dtype=torch.float64)
    largest = float(expected.abs().max())
    if found.shape != expected.shape or not bool(
        ((found - expected).abs() <= exported.tolerance * largest).all()
    ):
        raise ContractError(
            f"the exported student predicts {found.tolist()}, expected {expected.tolist()} to "
            f"{exported.tolerance:g}"
        )


CHECKS: Mapping[str, Callable[[Adapter, Path], None]] = MappingProxyType(
    {
        "weight_zero_equals_plain_host": check_weight_zero_equals_plain_host,
        "teacher_as_student_has_zero_loss": check_teacher_as_student_has_zero_loss,
        "order_of_structures_changes_nothing": check_order_of_structures_changes_nothing,
        "teacher_never_changes": check_teacher_never_changes,
        "resumed_training_equals_uninterrupted": check_resumed_training_equals_uninterrupted,
        "two_ranks_equal_one": check_two_ranks_equal_one,
        "exported_student_needs_no_kd_plugins": check_exported_student_needs_no_kd_plugins,
    }
)
"""All checks by name."""


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _train(adapter: Adapter, folder: Path, distillation: Distillation) -> TrainingRun:
    training = adapter.train(_new(folder), distillation)
    if training is None:
        raise ContractError("the training ended early, though it was not to be stopped")
    if not training.student:
        raise ContractError("the adapter shows no tensor of its student")
    return training


def _require_equal(found: Tensors, expected: Tensors, what: str) -> None:
    different = _first_difference(found, expected)
    if different is not None:
        raise ContractError(f"{what} differs in {different!r}")


def _first_difference(one: Tensors, other: Tensors) -> str | None:
    """Return the name of the first tensor that is not the same bit for bit."""
    for name in [*one, *other]:
        if name not in one or name not in other or not torch.equal(one[name], other[name]):
            return name
    return None
