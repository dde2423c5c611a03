"""How much memory a potential needs for the forces of a structure."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from ase import Atoms


def peak_bytes(atoms: Atoms, calculator: Any) -> int:
    """Return the most memory that torch holds at once for new tensors while forces are computed.

    What a calculator without torch needs is not seen; weights, which are there before, are not
    counted.

    Raises:
        ValueError: for a calculator that makes no tensor.
    """
    atoms = atoms.copy()
    atoms.calc = calculator
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=False) as profile:
        atoms.get_forces()
    events = [one for one in profile.kineto_results.events() if one.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    if not most:
        raise ValueError(f"{type(calculator).__name__} makes no tensor of torch")
    return most


def autograd_bytes(atoms: Atoms, calculator: Any) -> int:
    """Return the most memory that a calculator keeps for its backward pass, in bytes.

    On a CPU the memory of a process is mostly that of its libraries and neighbour lists; this is
    what grows with a model, the same in every run. A storage that is kept twice counts once.

    Raises:
        ValueError: for a calculator that keeps nothing, such as one without torch.
    """
    atoms = atoms.copy()
    atoms.calc = calculator
    kept = _Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        atoms.get_forces()
    if not kept.most:
        raise ValueError(f"{type(calculator).__name__} keeps no tensor for a backward pass")
    return kept.most


class _Kept:
    """Counts the storages that are kept, and remembers the most."""

    def __init__(self) -> None:
        self.holders: Counter[int] = Counter()
        self.now = self.most = 0

    def pack(self, tensor: torch.Tensor) -> _Holder:
        return _Holder(tensor, self)

    def unpack(self, holder: _Holder) -> torch.Tensor:
        return holder.tensor

    def change(self, tensor: torch.Tensor, by: int) -> None:
        storage = tensor.untyped_storage()
        before = self.holders[storage.data_ptr()]
        self.holders[storage.data_ptr()] = before + by
        if (before, by) in ((0, 1), (1, -1)):
            self.now += by * storage.nbytes()
            self.most = max(self.most, self.now)


class _Holder:
    """One tensor that is kept, until autograd lets it go."""

    def __init__(self, tensor: torch.Tensor, kept: _Kept) -> None:
        self.tensor, self.kept = tensor, kept
        kept.change(tensor, 1)

    def __del__(self) -> None:
        self.kept.change(self.tensor, -1)
