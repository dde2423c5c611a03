"""The old name of `kd_plugins.sampling`, for one version more."""

from __future__ import annotations

from kd_plugins import sampling
from kd_plugins.names import lazy_names

_HOMES = sampling._HOMES  # pyright: ignore[reportPrivateUsage]
_MOVED = {name: f"kd_plugins.sampling.{name}" for name in _HOMES}
__getattr__, __dir__ = lazy_names(__name__, {}, _MOVED)
