"""Memory that a potential needs for the forces of a structure."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from ase import Atoms


def peak_bytes(atoms: Atoms, calculator: Any) -> int:
    """Return the peak of torch's memory for new tensors while forces are computed, in bytes.

    Weights are not counted, since they are there before. Memory outside torch is not measured.

    Raises:
        ValueError: for a calculator that allocates no tensor.
    """
    atoms = atoms.copy()
    atoms.calc = calculator

    # The profiler records each allocation and each release with its size and time.
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=False) as profile:
        atoms.get_forces()
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]

    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()  # negative for a release
        peak = max(peak, current)

    if not peak:
        raise ValueError(f"{type(calculator).__name__} makes no tensor of torch")
    return peak


def autograd_bytes(atoms: Atoms, calculator: Any) -> int:
    """Return the peak of the memory saved for the backward pass, in bytes.

    On a CPU the memory of a process is mostly that of its libraries and neighbour lists. This
    number grows with the model, and is the same in every run. A storage that several tensors share
    counts once.

    Raises:
        ValueError: for a calculator that saves nothing, such as one without torch.
    """
    atoms = atoms.copy()
    atoms.calc = calculator

    saved = _SavedStorages()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
        atoms.get_forces()

    if not saved.peak:
        raise ValueError(f"{type(calculator).__name__} keeps no tensor for a backward pass")
    return saved.peak


class _SavedStorages:
    """Sizes of the storages that autograd has saved: their sum now, and its peak, in bytes."""

    def __init__(self) -> None:
        self.current = self.peak = 0
        self._n_tensors: Counter[int] = Counter()
        """Saved tensors of each storage, by its address."""

    def pack(self, tensor: torch.Tensor) -> _SavedTensor:
        return _SavedTensor(tensor, self)

    def unpack(self, saved: _SavedTensor) -> torch.Tensor:
        return saved.tensor

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self._n_tensors[storage.data_ptr()] += 1
        if self._n_tensors[storage.data_ptr()] == 1:
            self.current += storage.nbytes()
            self.peak = max(self.peak, self.current)

    def remove(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        self._n_tensors[storage.data_ptr()] -= 1
        if self._n_tensors[storage.data_ptr()] == 0:
            self.current -= storage.nbytes()


class _SavedTensor:
    """A saved tensor. Autograd has no hook for a release, but deletes this object then."""

    def __init__(self, tensor: torch.Tensor, storages: _SavedStorages) -> None:
        self.tensor, self._storages = tensor, storages
        storages.add(tensor)

    def __del__(self) -> None:
        self._storages.remove(self.tensor)
