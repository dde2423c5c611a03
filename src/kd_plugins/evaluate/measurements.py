"""The files of an evaluation: its settings and its parts, checked when they are read."""

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

from kd_plugins.config import ConfigError, read_config, reader
from kd_plugins.evaluate.input_checks import check_inputs
from kd_plugins.evaluate.settings import EvaluationSettings
from kd_plugins.files import (
    FolderInUse,
    check_folder,
    file_hash,
    folder_lock,
    read_json,
    write_json,
)
from kd_plugins.numbers import shown

PARTS = {"structures": ("structures", "ids"), "dynamics": ("dynamics",), "crystals": ("crystals",)}
"""What can be added to a folder later, each with its settings."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
"""Ids that are safe as names of files."""
LONGEST_NAME = 255
"""Bytes of a file's name on Linux."""
MODULI = ("bulk", "shear", "young", "poisson_ratio", "anisotropy")


# --- The folder and its settings ----------------------------------------------------------------


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


def _read_hashes(raw: object) -> Mapping[str, str]:
    if not isinstance(raw, Mapping) or not all(isinstance(value, str) for value in raw.values()):
        raise ValueError(f"expected files, each with its hash, got {shown(raw)}")
    return raw


@dataclass(frozen=True)
class FolderSettings:
    """Content of ``measured.json``.

    Args:
        fingerprint: of the potential.
        settings: what has been measured, or begun.
        files: of structures, each with its hash.
    """

    fingerprint: str
    settings: EvaluationSettings
    files: Mapping[str, str] = reader(_read_hashes)


def read_folder_settings(folder: Path) -> FolderSettings | None:
    """Return the settings of a folder; None for a folder without measurements.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    path = folder / "measured.json"
    if not path.exists():
        return None

    try:
        stored = read_config(FolderSettings, read_json(path), path.name)
        named = set(stored.settings.named_files)
        has_list = stored.settings.crystals is not None and stored.settings.crystals.ids is not None
        # Of a list, the hashes are of its files as well, which the settings do not name.
        if not (named <= set(stored.files) if has_list else named == set(stored.files)):
            raise ConfigError(f"files: expected {sorted(named)}, got {sorted(stored.files)}")
    except ConfigError as error:
        raise ValueError(
            f"{path} is no record of ours: {error}; choose another folder, or remove this one"
        ) from None
    except ValueError as error:
        raise ValueError(f"{error}; choose another folder, or remove this one") from None
    return stored


def write_settings(folder: Path, fingerprint: str, settings: EvaluationSettings) -> None:
    """Write ``measured.json``, which locks a folder to a potential and its settings.

    Args:
        folder: of the measurements.
        fingerprint: of the potential.
        settings: as `planned` returns them.
    """
    files = {name: file_hash(Path(name)) for name in settings.files}
    content = {"fingerprint": fingerprint, "settings": _as_json(settings), "files": files}
    write_json(folder / "measured.json", content)


def planned(
    folder: Path, settings: EvaluationSettings, fingerprint: str | None = None
) -> EvaluationSettings:
    """Return what a folder will hold: what it holds already, and what is to be measured now.

    Structures, dynamics or crystals that were not measured before are added. Nothing is written.

    Args:
        folder: of the measurements.
        settings: what is to be measured now.
        fingerprint: of the potential; not checked if left out.

    Raises:
        ValueError: if the folder holds another potential, measurements with other settings, or of
            a file that has changed since; and for what `check_inputs` refuses.
    """
    check_folder(folder)
    stored = read_folder_settings(folder)
    if stored is None:
        check_inputs(settings)
        return settings

    if fingerprint not in (None, stored.fingerprint):
        raise _other_folder(folder, "measurements of another potential")
    merged = _merge(folder, stored.settings, settings)
    check_inputs(merged)
    for name, content in stored.files.items():
        if file_hash(Path(name)) != content:
            raise _other_folder(folder, f"measurements of {name} as it was before it was changed")
    return merged


def _merge(folder: Path, stored: EvaluationSettings, new: EvaluationSettings) -> EvaluationSettings:
    """Return the settings of all parts of both."""
    stored_json, new_json = _as_json(stored), _as_json(new)
    for one in (stored_json, new_json):
        # What computed moduli are compared with does not change them.
        (one["crystals"] or {}).pop("stiffness", None)

    kept: dict[str, Any] = {}
    for part, names in PARTS.items():
        if not stored_json.get(part):
            continue
        if new_json[part] and (difference := _difference(stored_json, new_json, names)):
            raise _other_folder(folder, f"measurements with other settings, {difference}")
        kept |= {name: getattr(stored, name) for name in names}
    if "crystals" in kept and new.crystals is not None:
        kept["crystals"] = replace(kept["crystals"], stiffness=new.crystals.stiffness)
    return replace(new, **kept)


def _difference(stored: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return the first setting that differs, with both values.

    >>> _difference({"dynamics": {"steps": 1}}, {"dynamics": {"steps": 2}}, ("dynamics",))
    'dynamics: steps: 1 there, 2 here'
    """
    for name in names:
        one, two = stored[name], new[name]
        if isinstance(one, dict) and one != two:
            return f"{name}: {_difference(one, two, tuple(one))}"
        if one != two:
            return f"{name}: {one!r} there, {two!r} here"
    return ""


def complete_settings(stored: object) -> dict[str, Any]:
    """Return an evaluation's settings of any version with the defaults of all that came later.

    Raises:
        ConfigError: for what are no settings.
    """
    return _as_json(read_config(EvaluationSettings, stored, "measure"))


def _as_json(settings: EvaluationSettings) -> dict[str, Any]:
    """Return settings as JSON stores them: tuples become lists."""
    return json.loads(json.dumps(asdict(settings)))


def _other_folder(folder: Path, content: str) -> ValueError:
    return ValueError(f"{folder} holds {content}; choose another folder, or remove it")


# --- Parts: a file each -------------------------------------------------------------------------


def _read_positive(raw: object) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not 0 < raw < math.inf:
        raise ValueError(f"expected a number above 0, got {shown(raw)}")
    return float(raw)


def _read_elasticity(raw: object) -> Mapping[str, Any] | None:
    """Return the moduli of a crystal, or the reason why it has none."""
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
    """Costs of a step in one cell: µs per atom, ns of simulation per day, bytes per atom.

    ``device`` is where they were measured and ``dtype`` that of the weights; earlier versions did
    not write them.
    """

    atoms: int
    microseconds: float = reader(_read_positive)
    nanoseconds_per_day: float = reader(_read_positive)
    bytes: float | None = None
    device: str | None = None
    dtype: str | None = None

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
    """One crystal: reference and relaxed volume in Å³, how the relaxation ended, its moduli.

    ``cell`` (3, 3) and ``positions`` (N, 3) in Å are the relaxed structure and ``rmsd15`` its
    distance from the start in Å, None without molecules. A rigid scan has
    none of these, and neither have parts of earlier versions.
    """

    reason: str
    reference: float = reader(_read_positive)
    volume: float | None = None
    elasticity: Mapping[str, Any] | None = reader(_read_elasticity, default=None)
    cell: tuple[tuple[float, ...], ...] | None = None
    positions: tuple[tuple[float, ...], ...] | None = None
    rmsd15: float | None = None

    def __post_init__(self) -> None:
        if self.volume is not None and self.volume <= 0:
            raise ValueError(f"volume: expected a number above 0, got {self.volume}")
        for name in ("cell", "positions"):
            rows = getattr(self, name)
            if rows is not None and any(len(row) != 3 for row in rows):
                raise ValueError(f"{name}: expected three numbers a row")
        if self.cell is not None and len(self.cell) != 3:
            raise ValueError(f"cell: expected three rows, got {len(self.cell)}")


Part = type[SpeedPart] | type[RunPart] | type[CrystalPart]


def read_part(path: Path, kind: Part) -> Mapping[str, Any]:
    """Read a part that was measured before.

    Raises:
        ValueError: naming the file, if it is damaged or not of this kind.
    """
    remedy = f"remove {path.name} and run the same command, which measures it again"
    try:
        raw = read_json(path)
        read_config(kind, raw, path.name)
    except ConfigError as error:
        raise ValueError(f"{path} is no measurement of ours: {error}; {remedy}") from None
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from None
    return raw


def crystal_files(folder: Path, ids: Sequence[str]) -> dict[str, Path]:
    """Return a file of its own for each crystal.

    An id that is not safe as a file's name gets one with a digest. Version 0.1.0 wrote ``a/b`` as
    ``a_b``. Such a file is read where no other crystal would have had that name; where one would,
    the file's crystal is unknown, and both crystals get another file.

    >>> [path.name for path in crystal_files(Path("crystals"), ["a_b", "a/b"]).values()]
    ['a-b-648fa9b31bc7.json', 'a-b-c14cddc033f6.json']
    >>> [path.name for path in crystal_files(Path("crystals"), ["a_b", "c"]).values()]
    ['a_b.json', 'c.json']
    """
    old_names = {one: one.replace("/", "_") for one in ids}
    n_sharing = Counter(old_names.values())

    files = {}
    for one in ids:
        is_unique = n_sharing[old_names[one]] == 1
        if PLAIN_NAME.fullmatch(one) and is_unique:
            files[one] = folder / f"{one}.json"
            continue

        old_file = f"{old_names[one]}.json"
        fits = len(old_file.encode("utf-8", "surrogatepass")) <= LONGEST_NAME
        if fits and is_unique and (folder / old_file).is_file():
            files[one] = folder / old_file
            continue

        digest = hashlib.sha256(one.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        words = re.sub(r"[^A-Za-z0-9]+", "-", one).strip("-")[:60] or "crystal"
        files[one] = folder / f"{words}-{digest}.json"
    return files
