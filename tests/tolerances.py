"""How close two numbers must be, by what was done to them and their dtype.

>>> torch.testing.assert_close(actual, expected, **REORDERED[actual.dtype])
"""

from __future__ import annotations

import torch

Tolerance = dict[str, float]

EXACT: dict[torch.dtype, Tolerance] = {
    torch.float32: {"rtol": 0.0, "atol": 0.0},
    torch.float64: {"rtol": 0.0, "atol": 0.0},
}
"""The same operations in the same order: bit for bit."""

REORDERED: dict[torch.dtype, Tolerance] = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.float64: {"rtol": 1e-12, "atol": 1e-12},
}
"""The same sum in another order, in another batch or by a naive loop."""

MODEL: dict[torch.dtype, Tolerance] = {
    torch.float32: {"rtol": 1e-3, "atol": 1e-4},
    torch.float64: {"rtol": 1e-9, "atol": 1e-9},
}
"""Through a whole model twice, where rounding errors grow from layer to layer."""

FINITE_DIFFERENCE: dict[torch.dtype, Tolerance] = {
    torch.float32: {"rtol": 1e-2, "atol": 1e-3},
    torch.float64: {"rtol": 1e-5, "atol": 1e-7},
}
"""A derivative against its central difference."""
