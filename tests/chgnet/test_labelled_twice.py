"""Real sets labelled by CHGNet with dispersion, with a kill in between, and without."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kd_plugins.doctor.diagnosis import diagnose
from kd_plugins.store.store import TargetStore
from kd_plugins.structures import read_structures
from kd_plugins.teachers import failures, label, load_teacher
from tests.hosts import in_one_environment
from tests.house import ROOT
from tests.teachers.fixtures import packed_records


def sources(shared_file: Callable[[str], Path], name: str) -> list[Path]:
    """Return the files of a set."""
    path = shared_file(name)
    return [path] if path.is_file() else sorted(path.glob("*.cif"))


def command(paths: list[Path], folder: Path) -> subprocess.Popen[str]:
    """Start labelling as a user does."""
    code = "import sys; from kd_plugins.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["label", *map(str, paths), "--teacher", "chgnet+d3", "--store", str(folder)]
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def n_labelled(folder: Path) -> int:
    """Return how many records a store has, if it is there."""
    return len(TargetStore.open(folder)) if (folder / "manifest.json").exists() else 0


@in_one_environment
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mptrj/mptrj_format_sample.json", "molecular_crystals/x23"], ids=["mptrj", "x23"]
)
def test_a_kill_in_between_changes_nothing(
    tmp_path: Path, shared_file: Callable[[str], Path], name: str
) -> None:
    """Killed after its first batches and started again: the same, and the doctor finds nothing."""
    paths, folder = sources(shared_file, name), tmp_path / "killed"
    running = command(paths, folder)

    while n_labelled(folder) == 0 and running.poll() is None:
        time.sleep(0.02)

    running.send_signal(signal.SIGKILL)
    running.communicate()
    before = n_labelled(folder)

    assert running.returncode == -signal.SIGKILL
    assert TargetStore.open(folder).verify() == []

    output, _ = command(paths, folder).communicate()
    assert f"there already {before}, failed 0" in output, output

    structures = list(read_structures(paths))
    label(structures, "chgnet+d3", tmp_path / "whole", progress=False)
    whole = TargetStore.open(tmp_path / "whole")

    assert 0 < before < len(structures) == len(whole)
    assert failures(whole) == {}
    assert packed_records(folder) == packed_records(tmp_path / "whole")
    assert diagnose(structures, whole, load_teacher("chgnet+d3"), progress=False).findings == ()
