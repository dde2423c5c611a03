"""Train and measure every arm with every seed; what is done already is left as it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kd_plugins.compare.claim import SETTINGS, TRAINED, described
from kd_plugins.compare.experiment import Experiment, filled
from kd_plugins.compare.measuring import measure_at_once, threads_each
from kd_plugins.compare.trainers import TRAINERS
from kd_plugins.compare.training import LOG, TRAINING, Trainings, said
from kd_plugins.config import ConfigError, read_config
from kd_plugins.evaluate.claim import alone, read_held
from kd_plugins.evaluate.evaluation import evaluation
from kd_plugins.evaluate.expected import check_metrics
from kd_plugins.evaluate.inputs import (
    check_compared,
    check_inputs,
    check_potential,
    shared_labels,
)
from kd_plugins.evaluate.measured import Evaluator
from kd_plugins.evaluate.provenance import provenance
from kd_plugins.files import read_json, write_json

COSTS, EVALUATION, COMPARE = "costs.json", "evaluation.json", "compare"


@dataclass(frozen=True)
class Run:
    """One arm with one seed.

    Args:
        arm: its name.
        seed: of weights and batches.
        folder: that the host trains in.
    """

    arm: str
    seed: int
    folder: Path


@dataclass(frozen=True)
class Costs:
    """What a training cost, in seconds of the clock and of processors; None where not known."""

    train_seconds: float | None = None
    train_cpu_seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value <= 0:
                raise ValueError(f"{name}: expected a number above 0, got {value}")


class Comparison:
    """An experiment in a folder; stopped, the same call goes on.

    What a training cost is known only of one that was not stopped.

    Args:
        experiment: what to do.
        out: folder of all runs.
        command: that was typed, for the report.

    Raises:
        ValueError: if the folder holds another experiment, or something else.
    """

    def __init__(self, experiment: Experiment, out: Path, command: str | None = None) -> None:
        self.experiment, self.out, self.command = experiment, out.expanduser(), command
        self._described = described(experiment, self.out)

    def claim(self) -> None:
        """Let the folder be of this experiment; other arms and seeds may be added."""
        self._described = described(self.experiment, self.out)
        write_json(self.out / SETTINGS, self._described)

    def runs(self) -> list[Run]:
        """Return all runs, seed by seed."""
        return [
            Run(arm, seed, self.out / "runs" / arm / f"seed{seed}")
            for seed in self.experiment.seeds
            for arm in self.experiment.arms
        ]

    def all(self, workers: int = 1, progress: bool = True) -> None:
        """Train what is missing, then measure what is missing.

        Args:
            workers: trainings at a time, each with a seed of its own and a share of the cores; then
                models that are measured at a time, but for their speed, one after another.
            progress: show bars.

        Raises:
            ValueError: before the first training, for no worker, for structures, metrics or
                potentials that cannot be measured, or if another comparison is at work in the
                folder; if a training fails, with the end of what it said.
        """
        if workers < 1:
            raise ValueError(f"workers: expected 1 or more, got {workers}")
        if (self.out / f"{COMPARE}.writer").exists():
            with alone(self.out, COMPARE):  # at once, rather than after a look at all structures
                pass
        self._check_settings()
        self._check_measuring()
        with alone(self.out, COMPARE):
            self.claim()
            self._all(workers, progress)

    def _all(self, workers: int, progress: bool) -> None:
        write_json(self.out / "experiment.json", self._description())
        runs = self.runs()
        with tqdm(total=len(runs), desc="training", unit=" runs", disable=not progress) as bar:
            self._train_all(runs, workers, bar)

        judged = [run for run in runs if run.arm not in self.experiment.unjudged]
        if workers > 1:
            measure_at_once(self._unmeasured(judged), self.experiment.measure, workers, progress)
        for run in (bar := tqdm(judged, "measuring", unit=" runs", disable=not progress)):
            bar.set_description(f"measuring {run.arm}, seed {run.seed}")
            self._measure(run)
        write_json(self.out / "experiment.json", self._description())

    def _check_settings(self) -> None:
        """Refuse changes that the base cannot take, before any run is trained with others."""
        experiment, run = self.experiment, self.runs()[0]
        for arm, changes in experiment.arms.items():
            every = filled({**experiment.settings, **changes}, self._fields(run))
            try:
                TRAINERS[experiment.host].settings(Path(experiment.base), every)
            except ValueError as error:
                raise ValueError(f"arm {arm!r}: {error}") from None

    def _check_measuring(self) -> None:
        """Refuse what could not be measured after all the training."""
        experiment = self.experiment
        measure, taught = experiment.measure, experiment.teacher is not None
        check_inputs(measure)
        check_compared(measure, taught)
        labels = shared_labels(measure)
        check_metrics("metrics", experiment.metrics, measure, taught, labels)
        for named in filter(None, (experiment.model, experiment.teacher)):
            check_potential(named)
        if "{runs}" not in (experiment.teacher or "") and self._teacher is not None:
            # opened now; the others are trained first
            gives = self._teacher.model.quantities
            check_metrics("metrics", experiment.metrics, measure, taught, labels, gives)

    def _train_all(self, runs: list[Run], workers: int, bar: Any) -> None:
        """Train the arms of a seed one after another, since they may learn from each other.

        After the first failure no training starts, and those of other workers are waited for.
        """
        trainings = Trainings()

        def train(seed: int) -> None:
            try:
                for run in runs:
                    if run.seed == seed and not trainings.stopped:
                        self._train(run, threads_each(workers), trainings)
                        bar.update()
            except BaseException:
                trainings.stop()
                raise

        with ThreadPoolExecutor(workers) as pool, trainings:
            waiting = [pool.submit(train, seed) for seed in self.experiment.seeds]
            try:
                for one in _in_turn(waiting):
                    one.result()
            except Exception as error:
                running = [f"{folder.parent.name}, {folder.name}" for folder in trainings.stop()]
                if running:
                    bar.write(
                        f"{str(error).splitlines()[0]}\nno other training starts; waiting for "
                        f"{'; '.join(running)} (Ctrl-C ends what runs)",
                        file=sys.stderr,
                    )
                for _ in _in_turn(waiting):
                    pass
                raise

    def _fields(self, run: Run) -> Mapping[str, object]:
        return {"run": str(run.folder), "runs": str(self.out / "runs"), "seed": run.seed}

    def _train(self, run: Run, threads: int, trainings: Trainings) -> None:
        """Let the host train, by its own command, into a log."""
        if (run.folder / TRAINED).exists():
            return
        run.folder.mkdir(parents=True, exist_ok=True)
        experiment, fields = self.experiment, self._fields(run)
        changes = filled({**experiment.settings, **experiment.arms[run.arm]}, fields)
        command = TRAINERS[experiment.host].command(
            Path(experiment.base), run.folder, run.seed, changes, experiment.options
        )
        whole = not (run.folder / f"{TRAINING}.writer").exists()
        start = time.perf_counter()
        ended = trainings.called(command, run.folder, threads)
        if ended is None:
            return
        if ended.code:
            raise ValueError(
                f"{run.arm}, seed {run.seed}: the training ended with exit code {ended.code}; the "
                f"end of {run.folder / LOG}:\n{said(run.folder)}"
            )
        seconds = time.perf_counter() - start
        costs = Costs(seconds, ended.cpu_seconds or None) if whole else Costs()
        write_json(run.folder / TRAINED, asdict(costs))

    def _measure(self, run: Run) -> None:
        path = run.folder / EVALUATION
        if path.exists():
            return
        experiment = self.experiment
        costs = _costs(run.folder)
        curves = TRAINERS[experiment.host].curves(run.folder)
        student = Evaluator(*self._student(run), experiment.measure, progress=False)
        write_json(path, {**evaluation(student, self._teacher), **asdict(costs), **curves})

    def _student(self, run: Run) -> tuple[str, Path]:
        """Return the trained potential, and the folder for what is measured of it."""
        return filled(self.experiment.model, self._fields(run)), run.folder / "measured"

    def _unmeasured(self, runs: Sequence[Run]) -> Iterator[tuple[str, Path]]:
        """Yield what `_student` returns, of runs that are not measured, and the teacher's."""
        missing = [run for run in runs if not (run.folder / EVALUATION).exists()]
        if missing and self._teacher is not None:
            yield self._teacher.potential, self._teacher.folder
        yield from map(self._student, missing)

    @cached_property
    def _teacher(self) -> Evaluator | None:
        experiment = self.experiment
        if experiment.teacher is None:
            return None
        named = filled(experiment.teacher, {"runs": str(self.out / "runs")})
        return Evaluator(named, self.out / "teacher", experiment.measure)

    def _description(self) -> dict[str, Any]:
        experiment = self.experiment
        return {
            "title": experiment.title,
            "host": experiment.host,
            "control": experiment.control,
            "arms": [arm for arm in experiment.arms if arm not in experiment.unjudged],
            "seeds": list(experiment.seeds),
            "metrics": list(experiment.metrics),
            "provenance": self._provenance(),
        }

    def _provenance(self) -> dict[str, Any]:
        experiment, held = self.experiment, read_held(self.out / "teacher")
        fingerprint = None if held is None else held.fingerprint
        found = provenance(experiment.measure, experiment.teacher, fingerprint, self.command)
        return {**found, **experiment.provenance}


def _in_turn(waiting: Sequence[Future[None]]) -> Iterator[Future[None]]:
    """Yield what is done as soon as it is.

    A wait without end may miss Ctrl-C, which comes just before it or to another thread.
    """
    left = set(waiting)
    while left:
        done, left = wait(left, timeout=0.2, return_when=FIRST_COMPLETED)
        yield from done


def _costs(run: Path) -> Costs:
    """Return what a training cost, as it says itself or as its call was."""
    path = run / COSTS if (run / COSTS).exists() else run / TRAINED
    try:
        return read_config(Costs, read_json(path), path.name)
    except ConfigError as error:
        raise ValueError(
            f"{path}: {error}; mend it, or remove it and train that run again"
        ) from None
