"""Which host frameworks are installed; the tests of those that are not are skipped as a whole."""

from __future__ import annotations

from importlib import metadata

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
