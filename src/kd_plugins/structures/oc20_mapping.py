"""OC20's mapping of system ids to bulk, surface and adsorbate, read without running its pickle."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_plugins.structures.limits import open_binary


@dataclass(frozen=True)
class System:
    """What is adsorbed where.

    Args:
        adsorbate: as ``*O``.
        surface: bulk, Miller indices, shift and side, which together name a surface.
    """

    adsorbate: str
    surface: tuple[str, ...]


class _Unread:
    """An empty placeholder for what a pickle would import: it holds and runs nothing."""

    def __new__(cls, *args: Any, **keywords: Any) -> _Unread:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Drop the state."""


class _Unpickler(pickle.Unpickler):
    """Makes plain containers, text and numbers; every name in the file is a placeholder."""

    def find_class(self, module: str, name: str) -> type:
        return _Unread

    def persistent_load(self, pid: object) -> Any:
        raise pickle.UnpicklingError("a persistent id")


def read_mapping(path: Path) -> dict[str, System]:
    """Return system id to what it is, from ``oc20_data_mapping.pkl``.

    The file is a pickle, a list of calls. None is made here: what it would import becomes an empty
    placeholder, and only text and plain containers are taken.

    Raises:
        ValueError: for a file that is no such mapping.
    """
    try:
        with open_binary(path) as file:
            raw = _Unpickler(file).load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may fail in any operation
        raise ValueError(f"{path}: no mapping of OC20 ({type(error).__name__} {error})") from None

    if not isinstance(raw, dict) or not raw:
        raise ValueError(f"{path}: expected a mapping of system ids, got a {type(raw).__name__}")

    systems = {}
    while raw:
        sid, of_system = raw.popitem()  # the whole file is over a million of them
        systems[_text(sid, path, "a system id")] = _system(of_system, f"{path}, {sid}")
    return systems


def _system(of_system: object, where: str) -> System:
    if not isinstance(of_system, dict) or not {"bulk_mpid", "ads_symbols"} <= of_system.keys():
        raise ValueError(f"{where}: expected a mapping with bulk_mpid, ads_symbols, ...")
    surface = [_text(of_system["bulk_mpid"], where, "bulk_mpid")]
    for name in ("miller_index", "shift", "top"):
        surface.append(str(of_system[name]) if _is_plain(of_system.get(name)) else "")
    return System(_text(of_system["ads_symbols"], where, "ads_symbols"), tuple(surface))


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(one) for one in value)
    return isinstance(value, str | int | float)


def _text(value: object, where: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected text as {what}, got a {type(value).__name__}")
    return value


def choose_systems(systems: Mapping[str, System], adsorbate: str, path: Path) -> frozenset[str]:
    """Return the ids of the systems with one adsorbate.

    Raises:
        ValueError: if there are none, naming adsorbates that there are.
    """
    chosen = frozenset(sid for sid, system in systems.items() if system.adsorbate == adsorbate)
    if not chosen:
        there = sorted({system.adsorbate for system in systems.values()})
        raise ValueError(
            f"--adsorbate {adsorbate!r}: {path} has no such system; it has {', '.join(there[:10])}"
            f"{', ...' if len(there) > 10 else ''}"
        )
    return chosen


def count_kinds(sids: Iterable[str], systems: Mapping[str, System]) -> dict[str, int]:
    """Return how many adsorbates and surfaces the systems have, and how many are not known."""
    adsorbates, surfaces, n_unknown = set(), set(), 0
    for sid in sids:
        if sid in systems:
            adsorbates.add(systems[sid].adsorbate)
            surfaces.add(systems[sid].surface)
        else:
            n_unknown += 1
    counts = {"adsorbates": len(adsorbates), "surfaces": len(surfaces)}
    return {**counts, "systems_not_in_the_mapping": n_unknown} if n_unknown else counts
