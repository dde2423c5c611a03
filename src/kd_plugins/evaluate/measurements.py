"""The files of an evaluation: what was measured of which potential, checked when read."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kd_plugins.config import ConfigError, read_config, reader, shown
from kd_plugins.evaluate.inputs import check_inputs
from kd_plugins.evaluate.settings import Measure
from kd_plugins.files import (
    FolderInUse,
    check_folder,
    file_hash,
    folder_lock,
    read_json,
    write_json,
)

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
def alone(folder: Path, command: str) -> Iterator[None]:
    """Keep other processes from running the same command in a folder; made if it is not there.

    The lock, ``<command>.writer``, ends with this process, even if it is killed.

    Args:
        folder: of the command's results.
        command: ``evaluate`` or ``compare``.

    Raises:
        ValueError: if another process is at work there; then nothing is changed.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)

    # Only entering is inside the `try`: the body may lock other folders and fail on those.
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(folder, command))
        except FolderInUse:
            raise ValueError(
                f"{folder}: another {command} is at work there; wait until it has ended, or choose "
                "another folder"
            ) from None
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


PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
"""Ids that are the names of their files."""
LONGEST_NAME = 255
"""Bytes of a file's name."""
MODULI = ("bulk", "shear", "young", "poisson_ratio", "anisotropy")


def _positive(raw: object) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not 0 < raw < math.inf:
        raise ValueError(f"expected a number above 0, got {shown(raw)}")
    return float(raw)


def _read_stiffness(raw: object) -> Mapping[str, Any] | None:
    """Return the moduli of a crystal, or why it has none."""
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected a mapping, got {shown(raw)}")
    if "unstable" in raw:
        if not isinstance(raw["unstable"], str) or len(raw) > 1:
            raise ValueError(f"expected unstable with a reason, got {shown(raw)}")
        return raw
    for name in MODULI:
        value = raw.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name}: expected a number, got {shown(value)}")
    return raw


@dataclass(frozen=True)
class SpeedPart:
    """What a step costs in one cell, see `kd_plugins.report.records.Cell`."""

    atoms: int
    microseconds: float = reader(_positive)
    nanoseconds_per_day: float = reader(_positive)
    bytes: float | None = None

    def __post_init__(self) -> None:
        if self.atoms < 1 or (self.bytes is not None and self.bytes <= 0):
            raise ValueError(f"expected atoms and bytes above 0, got {self.atoms}, {self.bytes}")


@dataclass(frozen=True)
class RunPart:
    """One run: drift in meV/atom/ps, mean temperature in K, radial distribution function."""

    drift: float
    temperature: float
    distances: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.distances) != len(self.values) or len(self.values) < 2:
            raise ValueError(
                "expected as many distances as values, 2 or more, got "
                f"{len(self.distances)} and {len(self.values)}"
            )


@dataclass(frozen=True)
class CrystalPart:
    """One crystal: its own volume and the relaxed one in Å³, why it stopped, its stiffness."""

    reason: str
    reference: float = reader(_positive)
    volume: float | None = None
    elasticity: Mapping[str, Any] | None = reader(_read_stiffness, default=None)

    def __post_init__(self) -> None:
        if self.volume is not None and self.volume <= 0:
            raise ValueError(f"volume: expected a number above 0, got {self.volume}")


Part = type[SpeedPart] | type[RunPart] | type[CrystalPart]


def read_part(path: Path, kind: Part) -> Mapping[str, Any]:
    """Return a part that was measured before.

    Raises:
        ValueError: naming the file, if it is damaged or not as `kind` says.
    """
    try:
        raw = read_json(path)
        read_config(kind, raw, path.name)
    except ConfigError as error:
        raise ValueError(f"{path} is no measurement of ours: {error}; {_remedy(path)}") from None
    except ValueError as error:
        raise ValueError(f"{error}; {_remedy(path)}") from None
    return raw


def _remedy(path: Path) -> str:
    return f"remove {path.name} and run the same command, which measures it again"


def crystal_files(folder: Path, ids: Sequence[str]) -> dict[str, Path]:
    """Return the file of each crystal, none of them another's.

    An id that is no name for a file gets one with a digest. Earlier versions wrote ``a/b`` as
    ``a_b``, which is still read where no other crystal would have had that name; where one would,
    whose file it is cannot be told, and both get another.

    >>> [path.name for path in crystal_files(Path("crystals"), ["a_b", "a/b"]).values()]
    ['a-b-648fa9b31bc7.json', 'a-b-c14cddc033f6.json']
    >>> [path.name for path in crystal_files(Path("crystals"), ["a_b", "c"]).values()]
    ['a_b.json', 'c.json']
    """
    before = {one: one.replace("/", "_") for one in ids}
    shared = Counter(before.values())
    found = {}
    for one in ids:
        if PLAIN.fullmatch(one) and shared[before[one]] == 1:
            found[one] = folder / f"{one}.json"
            continue
        digest = hashlib.sha256(one.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        words = re.sub(r"[^A-Za-z0-9]+", "-", one).strip("-")[:60] or "crystal"
        found[one] = folder / f"{words}-{digest}.json"
        old = f"{before[one]}.json"
        short = len(old.encode("utf-8", "surrogatepass")) <= LONGEST_NAME
        if short and shared[before[one]] == 1 and (folder / old).is_file():
            found[one] = folder / old
    return found
