"""A note beside a store of which data was compared with it, by which the next check is short."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd_plugins.files import read_json, write_json

VERSION = 1
"""Of the notes; one of another version is ignored."""


@dataclass(frozen=True)
class CheckNote:
    """What was compared with a store, and how it went.

    A note is evidence of a check, never a reason to leave the last one out: targets are compared
    with their structure whenever they are read.

    Args:
        name: of the data, such as a digest of its settings and paths; part of the file's name.
        data: digest of the data that was compared.
        store: of `TargetStore.content_digest`.
        ids: data set's name to a digest of the ids of its structures, in order.
        sizes: data set's name to the number of its structures.
        missing: data set's name to the number of structures that the store lacks.
    """

    name: str
    data: str
    store: str
    ids: Mapping[str, str]
    sizes: Mapping[str, int]
    missing: Mapping[str, int]

    def write(self, folder: Path) -> Path:
        """Write it into the folder of the store, whole or not at all; return the path.

        Raises:
            OSError: where nothing may be written.
        """
        content = {"version": VERSION, **asdict(self)}
        return write_json(_path(folder, self.name), {**content, "digest": digest_of(content)})

    @classmethod
    def read(cls, folder: Path, name: str) -> CheckNote | None:
        """Return the note of some data; None if there is none that is whole and of this version."""
        # Whatever is wrong with the file, the check that it would have saved is made.
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = dict(read_json(_path(folder, name)))
            if content.pop("digest") == digest_of(content) and content.pop("version") == VERSION:
                return cls(**content)  # type: ignore[arg-type]
        return None


def digest_of(content: Any) -> str:
    """Return 32 hex digits that depend on every value and on the order of keys.

    Args:
        content: of what JSON has; anything else counts by its text.
    """
    text = json.dumps(content, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _path(folder: Path, name: str) -> Path:
    return folder / f"checked-{name[:16]}.json"
