"""Stand-ins for two compiled packages that fairchem-core imports but does not require.

fairchem-core 1.10 imports torch_scatter and torch_sparse whatever the model, and neither comes as a
wheel. Where one is missing, `install` puts a folder with a stand-in of that name last on the path,
for this process and those that it starts. A real package always wins; no file of fairchem-core and
no loaded module is touched.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path

logger = logging.getLogger(__name__)

FOLDERS = {
    name: Path(__file__).resolve().parent / "standins" / folder
    for name, folder in (("torch_scatter", "scatter"), ("torch_sparse", "sparse"))
}
"""Where the stand-in of each package lies, alone."""


def install() -> tuple[str, ...]:
    """Stand in for each of `FOLDERS` that is not installed, and return those names.

    Doing it again changes nothing. Processes started from here, as ranks or Slurm jobs, get the
    stand-ins through ``PYTHONPATH``.
    """
    names = tuple(name for name, folder in FOLDERS.items() if not _is_real(name, folder))
    added = [name for name in names if _append_to_path(FOLDERS[name])]
    if added:
        logger.info("not installed, so kd_plugins stands in for it: %s", ", ".join(added))
    return names


def require_fairchem() -> None:
    """Say in one line what to install where fairchem-core is missing.

    Raises:
        ImportError: if fairchem-core cannot be found.
    """
    find = importlib.util.find_spec
    if find("fairchem") is None or find("fairchem.core") is None:
        raise ImportError(
            "kd_plugins.fairchem needs fairchem-core: pip install 'kd_plugins[fairchem]'"
        )


def _is_real(name: str, standin: Path) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module that someone made by hand has no spec, and is theirs to keep
        return True
    # A spec without origin is a mere folder of that name, over which any package wins.
    origin = spec.origin if spec else None
    return origin is not None and standin not in Path(origin).resolve().parents


def _append_to_path(folder: Path) -> bool:
    """Append to both paths what they lack, and say whether this process lacked it."""
    inherited = os.environ.get("PYTHONPATH")
    entries = inherited.split(os.pathsep) if inherited else []
    if str(folder) not in entries:
        os.environ["PYTHONPATH"] = os.pathsep.join([*entries, str(folder)])
    if str(folder) in sys.path:
        return False
    sys.path.append(str(folder))
    return True
