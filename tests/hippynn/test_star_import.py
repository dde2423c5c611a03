"""A star import gives our public names and hides none of hippynn's."""

from __future__ import annotations

import hippynn
import pytest

import kd_plugins.hippynn as ours


def test_public_names_exist_once() -> None:
    assert sorted(ours.__all__) == sorted(set(ours.__all__))
    assert all(hasattr(ours, name) for name in ours.__all__)


@pytest.mark.parametrize(
    "first", ["from hippynn import *", "from hippynn.graphs import inputs, targets, loss"]
)
def test_star_import_replaces_no_name_of_hippynn(first: str) -> None:
    """Such as `targets`, a module of hippynn's nodes."""
    scope: dict[str, object] = {}
    exec(first, scope)
    before = dict(scope)
    exec("from kd_plugins.hippynn import *", scope)
    changed = [name for name in before if scope[name] is not before[name]]
    assert changed == []
    assert scope["add_teacher_targets"] is ours.add_teacher_targets


def test_star_import_of_hippynn_replaces_none_of_ours() -> None:
    scope: dict[str, object] = {}
    exec("from kd_plugins.hippynn import *", scope)
    exec("from hippynn import *", scope)
    assert all(scope[name] is getattr(ours, name) for name in ours.__all__)
    assert scope["targets"] is hippynn.targets
