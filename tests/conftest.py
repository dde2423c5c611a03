"""Fixtures, and the two things that must happen before a test module is imported.

beartype checks shapes and types of the core, the store and the doctor in every test, and the tests
of a host that is not installed are left out, which the head of the report says.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import pytest
import torch

from tests.hosts import ABSENT_HOSTS, HOSTS
from tests.shared import require_shared, shared_folder

# Tiny models gain nothing from threads, and threads that wait for a busy core cost them tenfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)

# hippynn reads these when imported: no kernels to compile, no bars, no search for close pairs.
os.environ.setdefault("HIPPYNN_USE_CUSTOM_KERNELS", "_pytorch_raw")
os.environ.setdefault("HIPPYNN_PROGRESS", "none")
os.environ.setdefault("HIPPYNN_WARN_LOW_DISTANCES", "False")

# A forked process that collects a trainer of an earlier test takes its process group down, and
# waits for ever for threads that it does not have. So it never collects what was there before.
os.register_at_fork(after_in_child=gc.freeze)

for room in ("core", "store", "doctor"):
    jaxtyping.install_import_hook(f"kd_plugins.{room}", "beartype.beartype")

collect_ignore_glob = [f"{host}/*" for host in ABSENT_HOSTS]


def pytest_report_header() -> list[str]:
    """Say which folders of tests are skipped, and why."""
    return [
        f"skipped: tests/{host}, because {HOSTS[host]} is not installed" for host in ABSENT_HOSTS
    ]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real reference data."""
    return require_shared(shared_folder())


@pytest.fixture(scope="session")
def shared_file(shared_data: Path) -> Callable[[str], Path]:
    """Find a file of the reference data: ``shared_file("metals/mlearn_Mo_test.extxyz.xz")``."""
    return lambda name: require_shared(shared_data / name)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as for a user: without the shape checks of beartype, our own messages are seen."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
