"""fairchem's own command line, with stand-ins for what fairchem-core imports but does not bring.

Run ``python -m kd_plugins.fairchem --mode train --config-yml X.yml [--cpu] [--num-gpus 2]``.
"""

from __future__ import annotations

from kd_plugins.fairchem import compat


def main() -> None:
    """Run fairchem's command line; leave with one line where fairchem-core is missing."""
    try:
        compat.require_fairchem()
    except ImportError as error:
        raise SystemExit(str(error)) from None
    compat.install()
    from fairchem.core import _cli

    _cli.main()


if __name__ == "__main__":
    main()
