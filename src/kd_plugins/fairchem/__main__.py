"""fairchem's own command line, with stand-ins for what fairchem-core imports but does not bring.

Run ``python -m kd_plugins.fairchem --mode train --config-yml X.yml [--cpu] [--num-gpus 2]``. An
error is one sentence; with fairchem's own ``--debug``, which keeps no checkpoints, its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kd_plugins.exit_codes import run_command
from kd_plugins.fairchem import compat


def main(words: Sequence[str] | None = None) -> int:
    """Run fairchem's command line; return 0, 2 after an error, 130 after Ctrl-C."""
    words = sys.argv[1:] if words is None else list(words)
    return run_command(lambda: _run(words), debug="--debug" in words)


def _run(words: Sequence[str]) -> int:
    compat.require_fairchem()
    compat.install()
    # Imported here, as it takes seconds and finds the stand-ins.
    from kd_plugins.fairchem.command import run

    run(words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
