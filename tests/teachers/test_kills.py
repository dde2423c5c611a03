"""The labeller killed at random moments: committed records stay, and the end is the same."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from kd_plugins.store.store import TargetStore
from kd_plugins.teachers import label
from kd_plugins.teachers.labelling import LabelRun
from kd_plugins.teachers.ray_engine import RayEngine
from kd_plugins.teachers.workers import ProcessEngine
from tests.hosts import in_one_environment
from tests.house import ROOT
from tests.teachers import fixtures

pytestmark = in_one_environment
STRIDE = 20
"""New structures a turn."""
TOTAL = 20 * STRIDE
KILLS = int(os.environ.get("KD_RAY_KILLS", "4"))
"""Of Ray's actors."""
PROCESS_KILLS = int(os.environ.get("KD_KILLS", "200"))
"""Of labelling in one process, and of workers in processes of their own."""
QUANTITIES = ["energy", "forces"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run that nobody kills writes."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    label(fixtures.copper_cells(TOTAL), fixtures.SLOW_EMT, folder, QUANTITIES, progress=False)
    return fixtures.packed_records(folder)


def in_a_fork(work: Callable[[], Any], seconds: float | None = None) -> bool:
    """Run something in a forked process, kill it after a while, return whether that ended it."""
    child = os.fork()
    if child == 0:
        tqdm.set_lock(threading.RLock())  # tqdm's own is shared with us, and would die with it
        try:
            work()
        finally:
            os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def label_serially(folder: Path, count: int) -> None:
    """Label the first so many structures."""
    label(fixtures.copper_cells(count), fixtures.SLOW_EMT, folder, QUANTITIES, progress=False)


def seconds(folder: Path) -> float:
    """Tell how long a run takes that nobody kills; the first one also warms files and caches."""
    start = time.monotonic()
    in_a_fork(lambda: label_serially(folder, STRIDE))
    return time.monotonic() - start


@pytest.mark.parametrize("seed", range(PROCESS_KILLS // 20))
def test_labelling_killed_two_hundred_times_equals_uninterrupted(
    tmp_path: Path, uninterrupted: dict[str, bytes], seed: int
) -> None:
    """Twenty a seed: nothing committed is lost, the store is clean each time and ends the same."""
    usual = min(seconds(tmp_path / f"clock{again}") for again in range(3))
    folder, moments = tmp_path / "store", random.Random(seed)
    committed: set[str] = set()
    n_killed = 0
    for turn in range(20):
        work = partial(label_serially, folder, STRIDE * (turn + 1))
        n_killed += in_a_fork(work, moments.uniform(0.0, 1.2 * usual))
        if (folder / "manifest.json").exists():
            store = TargetStore.open(folder)
            assert committed <= set(store.ids())
            assert store.verify() == []
            committed = set(store.ids())
    assert committed
    assert n_killed > 5  # the others had finished before
    label_serially(folder, TOTAL)
    assert fixtures.packed_records(folder) == uninterrupted


def run_with_kills(engine: Any, folder: Path, total: int, kills: int, pause: float) -> int:
    """Label with an engine while a thread kills its workers; return how many it has killed."""
    moments, done, killed = random.Random(0), threading.Event(), 0

    def kill() -> None:
        nonlocal killed
        while killed < kills and not done.wait(moments.uniform(0.0, 2 * pause)):
            with suppress(Exception):  # a worker that is just being replaced
                os.kill(moments.choice(engine.pids), signal.SIGKILL)
                killed += 1

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        with tqdm(disable=True) as bar:
            LabelRun(engine, TargetStore.open(folder), bar).all(fixtures.copper_cells(total))
    finally:
        done.set()
        thread.join()
        engine.close()
    return killed


def finish(folder: Path, total: int) -> None:
    """Label what is missing, such as a structure under which two workers were killed."""
    assert TargetStore.open(folder).verify() == []
    label(fixtures.copper_cells(total), fixtures.SLOW_EMT, folder, QUANTITIES, progress=False)


def test_killed_worker_processes_are_replaced(
    tmp_path: Path, uninterrupted: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers, one of them killed every tenth of a second, so many times in all."""
    # On a busy machine a worker's start takes longer than it has to live, which is not the point.
    monkeypatch.setattr("kd_plugins.teachers.labelling.MOST_DEATHS", PROCESS_KILLS)
    for clock in ("cold", "warm"):
        start = time.monotonic()
        label(
            fixtures.copper_cells(4),
            fixtures.SLOW_EMT,
            tmp_path / clock,
            QUANTITIES,
            engine="process",
            workers=2,
        )
        pause = max(0.05, (time.monotonic() - start) / 4)  # others may be at work on this machine
    killed = 0
    for attempt in range(PROCESS_KILLS // 10):
        folder = tmp_path / f"store-{attempt}"
        TargetStore.create(folder, fixtures.make_manifest())
        engine = ProcessEngine(fixtures.SLOW_EMT, folder, 2)
        killed += run_with_kills(engine, folder, TOTAL, PROCESS_KILLS - killed, pause)
        finish(folder, TOTAL)
        assert fixtures.packed_records(folder) == uninterrupted
        if killed == PROCESS_KILLS:
            break
    assert killed == PROCESS_KILLS


@pytest.fixture
def ray_on_this_machine() -> Iterator[None]:
    """A Ray cluster of this process."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.mark.slow
def test_killed_ray_actors_are_replaced(tmp_path: Path, ray_on_this_machine: None) -> None:
    """An actor's start takes a second or two, so there are four kills here."""
    total = 2000
    label(
        fixtures.copper_cells(total),
        fixtures.SLOW_EMT,
        tmp_path / "whole",
        QUANTITIES,
        progress=False,
    )
    killed = 0
    for attempt in range(5):
        folder = tmp_path / f"store-{attempt}"
        TargetStore.create(folder, fixtures.make_manifest())
        engine = RayEngine(fixtures.SLOW_EMT, folder, 2)
        killed += run_with_kills(engine, folder, total, KILLS - killed, pause=0.7)
        finish(folder, total)
        assert fixtures.packed_records(folder) == fixtures.packed_records(tmp_path / "whole")
        if killed == KILLS:
            break
    assert killed == KILLS


def test_workers_without_a_cpu_hold_nothing_up(
    tmp_path: Path, ray_on_this_machine: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Of three workers on two CPUs the third has none, and no structure."""
    whole, folder = tmp_path / "whole", tmp_path / "store"
    label(fixtures.copper_cells(100), fixtures.SLOW_EMT, whole, QUANTITIES, progress=False)
    label(
        fixtures.copper_cells(100),
        fixtures.SLOW_EMT,
        folder,
        QUANTITIES,
        engine="ray",
        workers=3,
        progress=False,
    )
    assert "has 2 CPUs for 3 workers" in caplog.text
    assert fixtures.packed_records(folder) == fixtures.packed_records(whole)


@pytest.mark.slow
def test_a_node_is_lost_and_another_added(tmp_path: Path) -> None:
    """The one that is left goes on alone, and every structure is labelled once."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    total = 1000
    whole, folder = tmp_path / "whole", tmp_path / "store"
    label(fixtures.copper_cells(total), fixtures.SLOW_EMT, whole, QUANTITIES, progress=False)

    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    lost = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    TargetStore.create(folder, fixtures.make_manifest())
    run = LabelRun(
        RayEngine(fixtures.SLOW_EMT, folder, 2), TargetStore.open(folder), tqdm(disable=True)
    )

    # Not the changes: Ray starts a node from the main thread only.
    labelling = threading.Thread(target=run.all, args=(fixtures.copper_cells(total),))
    labelling.start()
    sizes = []
    try:
        for change in (partial(cluster.remove_node, lost, False), partial(cluster.add_node)):
            before = size(folder)
            while size(folder) < before + 50:
                time.sleep(0.05)
            change()
            sizes.append(size(folder))
        labelling.join()
    finally:
        run.engine.close()
        ray.shutdown()
        cluster.shutdown()
    assert (run.report.labelled, run.report.failed) == (total, {})
    assert 0 < sizes[0] < sizes[1] < total
    assert fixtures.packed_records(folder) == fixtures.packed_records(whole)


def command(folder: Path, structures: Path, engine: str) -> subprocess.Popen[str]:
    """Start the command with two workers."""
    words = f"label {structures} --teacher {fixtures.SLOW_EMT} --store {folder}"
    words += f" --quantities energy forces --engine {engine} --workers 2"
    code = "import sys; from kd_plugins.cli import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words.split()],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "kills"), [("process", 3), ("ray", 1)])
def test_killed_command_is_resumed(
    tmp_path: Path, uninterrupted: dict[str, bytes], engine: str, kills: int
) -> None:
    """Its workers notice and let go of the store; the same command goes on."""
    if engine == "ray":
        pytest.importorskip("ray")
    structures, folder = tmp_path / "copper.extxyz", tmp_path / "store"
    fixtures.write_copper_cells(structures, TOTAL)
    for moment in range(kills):
        running = command(folder, structures, engine)
        wait_for_growth(folder, running)
        time.sleep(0.1 * moment)
        running.kill()
        running.communicate()
        before = size(folder)
        assert TargetStore.open(folder).verify() == []
    output, _ = command(folder, structures, engine).communicate()
    labelled, there, failed = map(
        int, re.findall(r"labelled (\d+), .* (\d+), .* (\d+) in", output)[0]
    )
    assert (labelled + there, failed) == (TOTAL, 0), output
    assert there >= before  # an actor outlives its driver a little
    assert sorted(TargetStore.open(folder).ids()) == sorted(uninterrupted)


def wait_for_growth(folder: Path, running: subprocess.Popen[str]) -> None:
    """Wait until the command has committed a batch."""
    before = size(folder)
    while size(folder) == before and running.poll() is None:
        time.sleep(0.05)


def size(folder: Path) -> int:
    """Return how many records the store has, if it is there."""
    return len(TargetStore.open(folder)) if (folder / "manifest.json").exists() else 0
