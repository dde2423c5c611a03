"""Which structures are looked at before training."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.data import Data

from kd_plugins.fairchem.preflight import check_dataset


class Numbered:
    """A data set of any size that notes which structures were read."""

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, []

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Data:
        assert 0 <= index < self.size
        self.seen.append(index)
        return Data(pos=torch.zeros(1, 3), atomic_numbers=torch.tensor([1]))


@pytest.mark.parametrize("size", [1, 2, 7, 1000, 20_000_000, 133_934_018])
def test_structures_are_spread_from_first_to_last(size: int) -> None:
    """Also where float32 cannot count them any more."""
    dataset = Numbered(size)
    check_dataset(dataset, "train", [], {"student": 90}, limit=50)
    assert len(set(dataset.seen)) == min(size, 50)
    assert (dataset.seen[0], dataset.seen[-1]) == (0, size - 1)
