"""The files in which measurements of one potential are kept, each checked when it is read."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_plugins.config import ConfigError, read_config, reader, shown
from kd_plugins.files import read_json

PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
"""Ids that are the names of their files."""
LONGEST_NAME = 255
"""Bytes of a file's name."""
MODULI = ("bulk", "shear", "young", "poisson_ratio", "anisotropy")


def _positive(raw: object) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not 0 < raw < math.inf:
        raise ValueError(f"expected a number above 0, got {shown(raw)}")
    return float(raw)


def _stiffness(raw: object) -> Mapping[str, Any] | None:
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
    elasticity: Mapping[str, Any] | None = reader(_stiffness, default=None)

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
