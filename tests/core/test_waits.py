"""How often the contrastive losses would make the host wait for a GPU, counted on a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kd_plugins.core import Crack, SampledNegatives, _infonce, masked_mean
from tests.core.draws import normal
from tests.core.test_infonce import arguments, either_way, every_form
from tests.waits import counted

# torch 2.4's own checkpoint, which makes blocks again, uses a name that torch 2.4 calls old.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.cpu.amp.autocast:FutureWarning")


def test_waits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the tests below would show nothing."""
    numbers = torch.ones(3)
    for call in (
        lambda: numbers.sum().item(),
        lambda: bool(numbers.all()),
        lambda: int(numbers[0]),
        lambda: numbers.tolist(),
        lambda: numbers[numbers > 0],
        lambda: numbers.nonzero(),
    ):
        with counted(monkeypatch) as found:
            call()
        assert found.total() == 1


@every_form
@either_way
@pytest.mark.parametrize("temperature", [0.2, 1e-3])
def test_no_block_waits(
    form: str, both_directions: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward, below the operators, which hide what they are made of."""
    given = arguments(form, both_directions, temperature=temperature)
    values = [one.detach() if isinstance(one, Tensor) else one for one in given]

    with counted(monkeypatch) as found:
        losses, _, log_sums = _infonce._compute_losses(*values, 0, 2)
        needed = [values[0] is not None, True, True, True]
        _infonce._compute_gradients(torch.ones_like(losses), log_sums, *values, 0, 2, needed)
    assert not found


@pytest.mark.parametrize("negatives", ["local", SampledNegatives(6)], ids=["all", "sampled"])
@pytest.mark.parametrize("form", ["plain", "blocked"])
def test_crack_waits_twice_whatever_its_negatives(
    negatives: Any, form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To check its inputs, and for the number of relations that are long enough."""
    sizes = {"cpu": 60, "cuda": 60}
    monkeypatch.setattr("kd_plugins.core.contrastive.BLOCK_NUMBERS", sizes)
    student, teacher = normal(9, 4, seed=1).requires_grad_(), normal(9, 4, seed=2)
    edge_index = torch.combinations(torch.arange(9)).T

    with counted(monkeypatch) as found:
        losses, _ = Crack(negatives=negatives, form=form)(student, teacher, edge_index, step=3)
        torch.autograd.grad(masked_mean(losses), student)
    assert found == {"tolist": 2}
