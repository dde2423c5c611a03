"""What callers from Python give: frames and lists of names, looked at before anything is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kd_plugins.numbers import shown
from kd_plugins.structures.readers import LabelledStructure


def checked(frames: object) -> Iterator[LabelledStructure]:
    """Yield frames, as `read_structures` gives them.

    Raises:
        ValueError: for a path, a single frame, or something among them that is none.
    """
    if isinstance(frames, (str, LabelledStructure)) or not isinstance(frames, Iterable):
        raise ValueError(
            f"frames: expected several Frames, such as read_structures yields, got {shown(frames)}"
        )
    return _frames(frames)


def _frames(frames: Iterable[object]) -> Iterator[LabelledStructure]:
    for frame in frames:
        if not isinstance(frame, LabelledStructure):
            raise ValueError(
                "frames: expected LabelledStructures, such as read_structures yields or "
                f"LabelledStructure(id, atoms), got {shown(frame)}"
            )
        yield frame


def check_names(where: str, names: object) -> None:
    """Refuse one text in the place of a list of names, whose letters would be taken for names.

    Raises:
        ValueError: saying how to write it.
    """
    if isinstance(names, str):
        raise ValueError(f"{where}: expected a list of names, such as [{names!r}], got {names!r}")
