"""Names of version 0.1.0 that users wrote go on working, with a warning that says the new one."""

from __future__ import annotations

from importlib import import_module

import pytest

import kd_plugins

OLD = [
    ("kd_plugins.core", "TargetStore", "kd_plugins.store.TargetStore"),
    ("kd_plugins.core", "StoreError", "kd_plugins.store.StoreError"),
    ("kd_plugins.teachers", "Frame", "kd_plugins.structures.LabelledStructure"),
    ("kd_plugins.teachers", "read_structures", "kd_plugins.structures.read_structures"),
]


@pytest.mark.parametrize(("module", "name", "new"), OLD)
def test_an_old_name_is_the_new_one(module: str, name: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"{module}.{name} is {new} now"):
        old = getattr(import_module(module), name)
    room, _, attribute = new.rpartition(".")
    assert old is getattr(import_module(room), attribute)


def test_every_name_of_sampling_has_its_old_one() -> None:
    old, new = (import_module(f"kd_plugins.{room}") for room in ("crystals", "sampling"))
    for name in ("split", "find_molecules", "volume_scan", "kind"):
        with pytest.warns(DeprecationWarning, match=f"is kd_plugins.sampling.{name} now"):
            assert getattr(old, name) is getattr(new, name)


@pytest.mark.parametrize("module", ["kd_plugins", "kd_plugins.core", "kd_plugins.teachers"])
def test_an_unknown_name_is_refused(module: str) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        import_module(module).no_such_name  # noqa: B018


def test_the_store_has_one_public_name() -> None:
    assert kd_plugins.TargetStore is import_module("kd_plugins.store").TargetStore


@pytest.mark.parametrize("room", ["", ".core", ".store", ".structures", ".teachers", ".sampling"])
def test_a_star_imports_all_public_names(room: str) -> None:
    found: dict[str, object] = {}
    exec(f"from kd_plugins{room} import *", found)
    package = import_module(f"kd_plugins{room}")
    assert len(found) > 3 and all(
        value is getattr(package, name) for name, value in found.items() if name != "__builtins__"
    )
