"""Whose measurements a folder holds, of what, and what may be added."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kd_plugins.config import ConfigError, read_config, reader, shown
from kd_plugins.evaluate.inputs import check_inputs
from kd_plugins.evaluate.settings import Measure
from kd_plugins.files import check_folder, file_hash, read_json, write_json
from kd_plugins.store.shard import ShardBusy, exclusive_lock

PARTS = {"structures": ("structures", "ids"), "dynamics": ("dynamics",), "crystals": ("crystals",)}
"""What may be measured one after another, and its settings."""


def _hashes(raw: object) -> Mapping[str, str]:
    if not isinstance(raw, Mapping) or not all(isinstance(one, str) for one in raw.values()):
        raise ValueError(f"expected files, each with its hash, got {shown(raw)}")
    return raw


@dataclass(frozen=True)
class Held:
    """What ``measured.json`` says of its folder.

    Args:
        fingerprint: of the potential.
        settings: what has been measured, or begun to be.
        files: of structures, each with its hash.
    """

    fingerprint: str
    settings: Measure
    files: Mapping[str, str] = reader(_hashes)


def read_held(folder: Path) -> Held | None:
    """Return whose measurements a folder holds; None if it holds none.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    path = folder / "measured.json"
    if not path.exists():
        return None
    try:
        held = read_config(Held, read_json(path), path.name)
        if set(held.files) != set(held.settings.files):
            raise ConfigError(
                f"files: expected {sorted(held.settings.files)}, got {sorted(held.files)}"
            )
        return held
    except ValueError as error:
        said = f"{path} is no record of ours: {error}" if isinstance(error, ConfigError) else error
        raise ValueError(f"{said}; choose another folder, or remove this one") from None


def planned(folder: Path, settings: Measure, fingerprint: str | None = None) -> Measure:
    """Return all that is measured in a folder after what is to be measured now; write nothing.

    Structures, dynamics or crystals that were not measured before are added to those that were.

    Args:
        folder: of the measurements.
        settings: what is to be measured, beside what was.
        fingerprint: of the potential; not looked at if left out.

    Raises:
        ValueError: if the folder holds another potential, measurements with other settings, or of
            a file that was changed since; and for what `check_inputs` refuses.
    """
    check_folder(folder)
    held = read_held(folder)
    if held is None:
        check_inputs(settings)
        return settings
    if fingerprint not in (None, held.fingerprint):
        raise _taken(folder, "measurements of another potential")
    measure = _joined(folder, held.settings, settings)
    check_inputs(measure)
    for name, content in held.files.items():
        if file_hash(Path(name)) != content:
            raise _taken(folder, f"measurements of {name} as it was before it was changed")
    return measure


@contextmanager
def alone(folder: Path, what: str) -> Iterator[None]:
    """Keep a folder from another process that would do the same in it.

    The lock, ``<what>.writer``, ends with this process, however that ends.

    Raises:
        ValueError: if another process is at work there; then nothing is changed.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = exclusive_lock(folder / what)
    except ShardBusy:
        raise ValueError(
            f"{folder}: another {what} is at work there; wait until it has ended, or choose "
            "another folder"
        ) from None
    with lock:
        yield


def claim(folder: Path, fingerprint: str, measure: Measure) -> None:
    """Note of which potential a folder is, and what is measured in it, as `planned` returns it."""
    files = {name: file_hash(Path(name)) for name in measure.files}
    content = {"fingerprint": fingerprint, "settings": _plain(measure), "files": files}
    write_json(folder / "measured.json", content)


def _plain(settings: Measure) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(settings)))


def _joined(folder: Path, held: Measure, ours: Measure) -> Measure:
    """Return the settings of all parts, of both."""
    there, here = _plain(held), _plain(ours)
    changes: dict[str, Any] = {}
    for part, names in PARTS.items():
        if not there.get(part):
            continue
        if here[part] and (said := _difference(there, here, names)):
            raise _taken(folder, f"measurements with other settings, {said}")
        changes |= {name: getattr(held, name) for name in names}
    return replace(ours, **changes)


def _difference(held: Mapping[str, Any], ours: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return the first setting that differs, with both values.

    >>> _difference({"dynamics": {"steps": 1}}, {"dynamics": {"steps": 2}}, ("dynamics",))
    'dynamics: steps: 1 there, 2 here'
    """
    for name in names:
        one, two = held[name], ours[name]
        if isinstance(one, dict) and one != two:
            return f"{name}: {_difference(one, two, tuple(one))}"
        if one != two:
            return f"{name}: {one!r} there, {two!r} here"
    return ""


def _taken(folder: Path, what: str) -> ValueError:
    return ValueError(f"{folder} holds {what}; choose another folder, or remove it")
