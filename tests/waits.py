"""Operations for which a host would wait for a GPU, counted on a CPU, which waits for none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = (
    *("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2"),
    *("aten::unique_consecutive", "aten::unique_dim"),
)
"""``item()``, ``bool()``, ``int()`` and whatever has as many rows as its numbers say."""


class _Operations(TorchDispatchMode):
    """Counts the operations for which a host waits where the tensors are on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        if name in WAITING or (name in ("aten::index", "aten::index_put_") and _has_mask(args)):
            self.found[name] += 1
        if name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
            self.found[name] += 1
        return func(*args, **kwargs)


def _has_mask(args: tuple[Any, ...]) -> bool:
    """Return whether an index is a mask, of which the number of chosen rows is not known."""
    return any(index is not None and index.dtype == torch.bool for index in args[1])


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count the waits inside."""
    operations = _Operations()

    def counting(name: str) -> Callable[..., Any]:
        method = getattr(Tensor, name)

        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            operations.found[name] += 1
            return method(tensor, *args, **kwargs)

        return call

    with monkeypatch.context() as patched, operations:
        # AdamW's own counters of steps are tensors of the CPU on every device.
        patched.setattr(torch.optim.AdamW, "step", lambda *_: None)
        # On a CPU these go past the dispatcher.
        for name in ("tolist", "cpu"):
            patched.setattr(Tensor, name, counting(name))
        yield operations.found
