"""Public names of a package that are imported when they are first used (PEP 562).

So a command answers at once, and a training loads only the rooms that it needs.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str], moved: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions ``__getattr__`` and ``__dir__`` of a package's ``__init__``.

    No module of the package may have the name of a public function: once imported, the module
    would stand in the function's place.

    Args:
        package: its ``__name__``.
        homes: public name to the module that defines it; a module stands for itself.
        moved: old name to the full new one, which is returned with a DeprecationWarning.
    """

    def get(name: str) -> Any:
        if name == "__all__":  # of `from package import *`
            return sorted(homes)
        if name in homes:
            module = import_module(homes[name])
            return module if homes[name] == f"{package}.{name}" else getattr(module, name)

        new = (moved or {}).get(name)
        if new is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        warnings.warn(f"{package}.{name} is {new} now", DeprecationWarning, stacklevel=2)
        room, _, attribute = new.rpartition(".")
        return getattr(import_module(room), attribute)

    def names() -> list[str]:
        return sorted([*vars(sys.modules[package]), *homes])

    return get, names
