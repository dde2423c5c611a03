"""A stand-in that records where models are moved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch


class Moved(BaseException):
    """A model was moved to the device that was named; nothing catches it on the way."""


@contextmanager
def moves_a_model_to_meta() -> Iterator[None]:
    """Expect that a model is moved to torch's device ``meta``, which needs no hardware."""
    move = torch.nn.Module.to

    def record(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if device is not None and device.type == "meta":
            raise Moved
        return move(self, *args, **kwargs)

    with mock.patch.object(torch.nn.Module, "to", record), pytest.raises(Moved):
        yield
