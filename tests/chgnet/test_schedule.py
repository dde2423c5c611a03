"""The learning rate ends where the cosine ends, and CHGNet's own does where CHGNet's ends."""

from __future__ import annotations

import pytest
import torch

from kd_plugins.chgnet import FitSettings, freeze_except
from kd_plugins.chgnet.student import count_trainable
from kd_plugins.chgnet.trainer import is_schedule_step, make_cosine
from tests.chgnet import fixtures

CHGNETS = {1: 0.00976, 2: 0.00905, 4: 0.0066, 8: 0.00105, 10: 0.0001, 37: 0.0001}
"""What CHGNet 0.4.2 ends at after 100 epochs of so many batches from 0.01."""


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
@pytest.mark.parametrize("n_batches", CHGNETS)
@pytest.mark.parametrize("schedule", ["finishing", "chgnet"])
def test_the_learning_rate_ends_at_its_schedules_end(n_batches: int, schedule: str) -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], 0.01)
    cosine = make_cosine(optimizer, schedule, 100, n_batches)
    rates = []

    for _ in range(100):
        for batch in range(n_batches):
            rates.append(optimizer.param_groups[0]["lr"])
            if is_schedule_step(batch, n_batches):
                cosine.step()

    expected = CHGNETS[n_batches] if schedule == "chgnet" else 0.0001
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=6e-3)
    assert rates[0] == 0.01
    assert all(
        later <= sooner * (1 + 1e-9) for sooner, later in zip(rates, rates[1:], strict=False)
    )


@pytest.mark.parametrize("n_batches", range(1, 60))
def test_scheduler_steps_at_each_tenth_of_an_epoch(n_batches: int) -> None:
    steps = sum(is_schedule_step(batch, n_batches) for batch in range(n_batches))
    assert steps == min(10, n_batches)
    assert is_schedule_step(n_batches - 1, n_batches)


def test_the_trainer_uses_the_same_cosine() -> None:
    for schedule, length in (("finishing", 2 * 3), ("chgnet", 2 * 10)):
        made = fixtures.trainer(schedule=schedule)
        made._restore_random_state(3)
        assert made.scheduler.T_max == length


def test_a_budget_in_steps_is_met() -> None:
    for steps, structures, batch in ((2400, 250, 32), (100, 10, 10), (7, 9, 2), (1, 50, 1)):
        found = FitSettings.for_steps(steps, structures, batch_size=batch)
        n_batches = -(-structures // batch)
        assert steps <= found.epochs * n_batches < steps + n_batches


def test_trainable_weights_are_counted() -> None:
    """A prefix with its dot is the readout alone; without, of its name, the same."""
    model = fixtures.student()
    for prefixes, expected in (
        (("mlp.",), fixtures.HEAD_SIZE),
        (("mlp",), fixtures.HEAD_SIZE),
        (("mlp.", "readout_norm."), 12_673),
        (("mlp.", "composition_model."), fixtures.HEAD_SIZE + 94),
        (fixtures.EVERYTHING, fixtures.SIZE - 94),
    ):
        found = freeze_except(model, prefixes)
        assert (found.n_trainable, found.n_weights) == (expected, fixtures.SIZE)
        assert all(name.startswith(prefixes) for name in found.names)
        assert found == count_trainable(model)
    assert str(freeze_except(model)) == "12,545 of 412,525 weights train (3.0 %)"


@pytest.mark.parametrize("prefixes", [("mlp.", "mlq."), ("lp.",), ("layers.",), (), "mlp."])
def test_a_prefix_that_matches_nothing_changes_nothing(prefixes: tuple[str, ...]) -> None:
    model = fixtures.student()
    before = count_trainable(model)

    with pytest.raises(ValueError, match=r"trainable: (no parameter's name starts|expected)"):
        freeze_except(model, prefixes)
    assert count_trainable(model) == before
