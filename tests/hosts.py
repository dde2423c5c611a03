"""Which host frameworks are installed; the tests of those that are not are skipped as a whole."""

from __future__ import annotations

from importlib import metadata

import pytest

HOSTS = {"fairchem": "fairchem-core", "hippynn": "hippynn", "chgnet": "chgnet"}
"""The folder of an adapter and the distribution that it needs."""


def is_installed(distribution: str) -> bool:
    """Ask the metadata, so that nothing is imported and no folder passes for a package."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


ABSENT_HOSTS = [host for host, distribution in HOSTS.items() if not is_installed(distribution)]

in_one_environment = pytest.mark.skipif(
    is_installed("fairchem-core"),
    reason="takes minutes, and runs where fairchem-core is not installed, as in .venv-latest",
)
"""Of a recipe's whole way, whose parts are tested everywhere, and of what knows no host: processes,
files, units."""

in_the_other_environment = pytest.mark.skipif(
    not is_installed("fairchem-core"),
    reason="takes a minute, and runs where fairchem-core is installed, as in .venv",
)
"""Of what knows no host, too, so that both environments take the same time."""
