"""The contract of an adapter accepts a sound adapter, and names the fault of every broken one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kd_plugins.testing import CHECKS, ContractError, ExportedStudent, TrainingRun

N_STEPS = 6
STRUCTURES = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
"""The input of each structure; its teacher's target is three times as large, its label twice."""


@dataclass
class ToyAdapter:
    """A host that fits y = w x by gradient descent, and an adapter that may have one fault."""

    fault: str = ""
    n_structures: int = 4
    batch_tolerance: float = 1e-12
    has_ranks: bool = True

    def __post_init__(self) -> None:
        self.tolerances = {"energy": 1e-12}
        self.teacher = torch.tensor(3.0, dtype=torch.float64)

    def train(
        self, folder: Path, distillation: str, stop_after: int | None = None
    ) -> TrainingRun | None:
        before = self.teacher.clone()
        weight, first = torch.tensor(0.0, dtype=torch.float64), 0
        if (folder / "last.pt").exists():
            first, weight = torch.load(folder / "last.pt", weights_only=True)
            first = 0 if self.fault == "resume" else first

        for step in range(first, N_STEPS):
            x = STRUCTURES[step % 4]
            gradient = (weight - 2) * x * x
            if distillation == "on" and self.fault != "blind":
                gradient = gradient + (weight - self.teacher) * x * x
            if distillation == "weight_zero" and self.fault == "weight_zero":
                gradient = gradient + 1e-9
            weight = weight - 0.01 * gradient
            if self.fault == "teacher" and distillation == "on":
                self.teacher = self.teacher + 1e-9
            if step + 1 == stop_after and self.fault != "unstoppable":
                torch.save((step + 1, weight), folder / "last.pt")
                return None

        return TrainingRun({"w": weight}, {"w": before}, {"w": self.teacher.clone()})

    def losses(self, folder: Path, student: str, order: Sequence[int]) -> Mapping[str, float]:
        weight = self.teacher if student == "teacher" or self.fault == "always_zero" else 1.0
        x, targets = STRUCTURES[list(order)], 3 * STRUCTURES[list(order)]
        if self.fault == "order":
            targets = 3 * STRUCTURES
        if self.fault == "targets":
            targets = targets + 1e-6
        return {"energy": float((weight * x - targets).square().mean())}

    def gradients(self, folder: Path, n_ranks: int) -> Mapping[str, Tensor]:
        x = STRUCTURES
        parts = x.split([1, 3]) if n_ranks == 2 else (x,)
        if self.fault == "ranks":  # the mean of means
            found = torch.stack([(2 * part * part).mean() for part in parts]).mean()
        else:
            found = sum((2 * part * part).sum() for part in parts) / len(x)
        return {"w": found}

    def export(self, folder: Path) -> ExportedStudent:
        code = {"export": "import kd_plugins", "prediction": "print('[1.5]')"}
        return ExportedStudent(code.get(self.fault, "print('[1.0]')"), folder, [1.0])


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_sound_adapter_passes(check, tmp_path: Path) -> None:
    check(ToyAdapter(), tmp_path)


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("weight_zero", "weight_zero_equals_plain_host", "every weight 0, the student differs"),
        ("blind", "weight_zero_equals_plain_host", "the same with distillation as without"),
        ("targets", "teacher_as_student_has_zero_loss", "'energy': expected at most 1e-12"),
        ("always_zero", "teacher_as_student_has_zero_loss", "would not see a difference"),
        ("order", "order_of_structures_changes_nothing", "in reverse order"),
        ("teacher", "teacher_never_changes", "the teacher differs in 'w'"),
        ("resume", "resumed_training_equals_uninterrupted", "after a resume, the student differs"),
        ("unstoppable", "resumed_training_equals_uninterrupted", "stopped after 3 steps"),
        ("ranks", "two_ranks_equal_one", "gradients of two ranks"),
        ("export", "exported_student_needs_no_kd_plugins", "does not load"),
        ("prediction", "exported_student_needs_no_kd_plugins", "expected \\[1.0\\]"),
    ],
)
def test_broken_adapter_is_named(fault: str, check: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=message):
        CHECKS[check](ToyAdapter(fault), tmp_path)
