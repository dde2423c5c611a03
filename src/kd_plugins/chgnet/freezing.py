"""Which weights of the student train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

HEAD = ("mlp.",)
"""The readout MLP, all that paper 004 trains: 12,545 of the 412,525 weights of CHGNet 0.3.0."""


@dataclass(frozen=True)
class Trainable:
    """How much of a model trains.

    Args:
        n_trainable: numbers that train.
        n_weights: numbers in all.
        names: parameters that train.

    >>> str(Trainable(12545, 412525, ("mlp.layers.0.weight",)))
    '12,545 of 412,525 weights train (3.0 %)'
    """

    n_trainable: int
    n_weights: int
    names: tuple[str, ...]

    def __str__(self) -> str:
        share = 100 * self.n_trainable / self.n_weights
        return f"{self.n_trainable:,} of {self.n_weights:,} weights train ({share:.1f} %)"


def freeze_except(model: nn.Module, prefixes: Sequence[str] = HEAD) -> Trainable:
    """Let only the parameters train whose names start with one of some prefixes.

    A prefix and not a part of the name: ``mlp`` is a part of nearly all of CHGNet's names.

    Args:
        model: whose ``requires_grad`` is set, of every parameter.
        prefixes: of parameter names, such as ``("mlp.", "readout_norm.")``.

    Raises:
        ValueError: for what is no model, or a prefix that matches no parameter; then nothing is
            changed.

    >>> freeze_except(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), ("1.",)).n_trainable
    3
    """
    if isinstance(prefixes, str) or not prefixes:
        raise ValueError(f"trainable: expected prefixes of parameter names, got {prefixes!r}")
    check_module(model)
    named = dict(model.named_parameters())
    for prefix in prefixes:
        if not isinstance(prefix, str) or not prefix:  # "" would match every name
            raise ValueError(
                f"trainable: expected a prefix of parameter names such as 'mlp.', got {prefix!r}"
            )
        if not any(name.startswith(prefix) for name in named):
            parts = ", ".join(sorted({f"{name.split('.')[0]}." for name in named}))
            raise ValueError(
                f"trainable: no parameter's name starts with {prefix!r}; the model's parts are "
                f"{parts}"
            )
    for name, parameter in named.items():
        parameter.requires_grad_(name.startswith(tuple(prefixes)))
    return trainable(model)


def check_module(model: object) -> None:
    """Raise a ValueError for what is no model."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected a CHGNet, such as CHGNet.load(), got {model!r}")


def trainable(model: nn.Module) -> Trainable:
    """Return how much of a model trains now."""
    named = dict(model.named_parameters())
    names = tuple(name for name, parameter in named.items() if parameter.requires_grad)
    return Trainable(
        sum(named[name].numel() for name in names),
        sum(parameter.numel() for parameter in named.values()),
        names,
    )
