"""Train and measure every arm with every seed; what is finished is not repeated."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kd_plugins.compare.experiment import (
    SETTINGS,
    TRAINED,
    Experiment,
    Settings,
    fill_fields,
    settings_with_folder,
)
from kd_plugins.compare.hosts import HOSTS
from kd_plugins.compare.rounds import read_grown, take_rounds, write_call
from kd_plugins.compare.trainings import LOG, TRAINING, Finished, Trainings, end_of_log
from kd_plugins.config import ConfigError, read_config
from kd_plugins.evaluate.evaluation import evaluation, provenance
from kd_plugins.evaluate.evaluator import Evaluator
from kd_plugins.evaluate.input_checks import (
    check_compared,
    check_inputs,
    check_potential,
    shared_labels,
)
from kd_plugins.evaluate.measurements import alone, read_folder_settings
from kd_plugins.evaluate.requirements import check_metrics
from kd_plugins.evaluate.settings import EvaluationSettings
from kd_plugins.files import read_json, write_json
from kd_plugins.processes import worker_pool
from kd_plugins.report.results import read_results
from kd_plugins.report.verdicts import verdict
from kd_plugins.report.worth import worth_of_best
from kd_plugins.teachers.teacher import resolve_device

COSTS, EVALUATION, COMPARE = "costs.json", "evaluation.json", "compare"
VERDICT = "verdict.json"
"""File of what compare prints, with its numbers."""


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
    """Cost of a training in seconds: by the clock, and of all processors; None if not known."""

    train_seconds: float | None = None
    train_cpu_seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and value <= 0:
                raise ValueError(f"{name}: expected a number above 0, got {value}")


class Comparison:
    """An experiment in a folder. Stopped, the same call goes on.

    The cost of a training is known only if it was not stopped.

    Args:
        experiment: arms, seeds and measurements.
        out: folder of all runs.
        command: the command line, for the report.
        device: where potentials are measured, as `kd_plugins.teachers.load_teacher` takes it, and
            what trainings see, see `Trainings`.

    Raises:
        ValueError: if the folder holds another experiment, or something else; for a device that
            this machine does not have.
    """

    def __init__(
        self, experiment: Experiment, out: Path, command: str | None = None, device: str = "auto"
    ) -> None:
        resolve_device(device)
        self.experiment, self.out, self.command = experiment, out.expanduser(), command
        self.device = device
        settings_with_folder(experiment, self.out)  # refuses another experiment's folder

    def runs(self) -> list[Run]:
        """Return all runs, seed by seed."""
        return [
            Run(arm, seed, self.out / "runs" / arm / f"seed{seed}")
            for seed in self.experiment.seeds
            for arm in self.experiment.swept_arms
        ]

    def all(self, workers: int = 1, progress: bool = True) -> dict[str, Any]:
        """Train what is missing, then measure what is missing.

        Args:
            workers: trainings at a time, each with a seed of its own and a share of the cores and
                GPUs; then models that are measured at a time, likewise. Speed is measured for one
                model after another.
            progress: show bars.

        Returns:
            ``worth`` of the best student, None without a teacher, and ``verdicts`` on the arms,
            each with its ``sentence``, as ``verdict.json`` holds them.

        Raises:
            ValueError: before the first training, for no worker, for structures, metrics or
                potentials that cannot be measured, or if another comparison is at work in the
                folder; if a training fails, with the end of its output.
        """
        if workers < 1:
            raise ValueError(f"workers: expected 1 or more, got {workers}")
        if (self.out / f"{COMPARE}.writer").exists():
            # Refuse at once if it is locked: the checks below read all structures.
            with alone(self.out, COMPARE):
                pass

        self._check_settings()
        self._check_measuring()
        with alone(self.out, COMPARE):
            self.write_settings()
            return self._train_and_measure(workers, progress)

    def write_settings(self) -> None:
        """Lock the folder to this experiment; arms and seeds may be added later."""
        write_json(self.out / SETTINGS, settings_with_folder(self.experiment, self.out))

    def _train_and_measure(self, workers: int, progress: bool) -> dict[str, Any]:
        write_json(self.out / "experiment.json", self._description())
        runs = self.runs()
        with tqdm(total=len(runs), desc="training", unit=" runs", disable=not progress) as bar:
            self._train_all(runs, workers, bar)

        measured = [run for run in runs if run.arm in self.experiment.measured_arms]
        if workers > 1:
            models = self._unmeasured_models(measured)
            measure_in_parallel(models, self.experiment.measure, workers, progress, self.device)
        for run in (bar := tqdm(measured, "measuring", unit=" runs", disable=not progress)):
            bar.set_description(f"measuring {run.arm}, seed {run.seed}")
            self._measure(run)

        # Again, since the teacher's fingerprint is known only after it was measured.
        write_json(self.out / "experiment.json", self._description())
        results = read_results(self.out)
        best = worth_of_best(results)
        content = {
            "worth": None if best is None else asdict(best),
            "verdicts": [asdict(one) for one in verdict(results)],
        }
        write_json(self.out / VERDICT, content)
        return content

    # --- Checks before the first training ---

    def _check_settings(self) -> None:
        """Refuse changes that the base cannot take."""
        experiment, seed = self.experiment, self.experiment.seeds[0]
        for run in (run for run in self.runs() if run.seed == seed):
            filled = self._changes(run)
            try:
                take_rounds(filled, experiment.host, experiment.teacher)
                HOSTS[experiment.host].settings(Path(experiment.base), filled)
            except ValueError as error:
                raise ValueError(f"arm {run.arm!r}: {error}") from None

    def _check_measuring(self) -> None:
        """Refuse what could not be measured after all the training."""
        experiment = self.experiment
        measure, has_teacher = experiment.measure, experiment.teacher is not None
        check_inputs(measure)
        check_compared(measure, has_teacher)
        labels = shared_labels(measure)
        check_metrics("metrics", experiment.metrics, measure, has_teacher, labels)

        for potential in filter(None, (experiment.model, experiment.teacher)):
            check_potential(potential)
        if "{runs}" not in (experiment.teacher or "") and self._teacher is not None:
            # A teacher that is not trained here can be opened, so its quantities are known.
            given = self._teacher.model.quantities
            check_metrics("metrics", experiment.metrics, measure, has_teacher, labels, given)

    # --- Training ---

    def _train_all(self, runs: list[Run], workers: int, bar: Any) -> None:
        """Train the arms of a seed one after another, since they may learn from each other.

        After the first failure no training starts, and those of other workers are waited for.
        """
        several = self.experiment.options.get("num_gpus", 1) > 1
        trainings = Trainings(self.device, workers, several_gpus=several)

        def train_seed(seed: int) -> None:
            try:
                for run in runs:
                    if run.seed == seed and not trainings.stopped:
                        self._train(run, trainings)
                        bar.update()
            except BaseException:
                trainings.stop()
                raise

        with ThreadPoolExecutor(workers) as pool, trainings:
            futures = [pool.submit(train_seed, seed) for seed in self.experiment.seeds]
            try:
                for future in _as_done(futures):
                    future.result()
            except Exception as error:
                running = [f"{folder.parent.name}, {folder.name}" for folder in trainings.stop()]
                if running:
                    bar.write(
                        f"{str(error).splitlines()[0]}\nno other training starts; waiting for "
                        f"{'; '.join(running)} (Ctrl-C ends what runs)",
                        file=sys.stderr,
                    )
                for _ in _as_done(futures):
                    pass
                raise

    def _train(self, run: Run, trainings: Trainings) -> None:
        """Train a run by its host's own command, unless it is trained already.

        An arm with ``rounds`` is trained in ``round1``, ``round2`` and so on first, each time on
        more structures.
        """
        if (run.folder / TRAINED).exists():
            return

        experiment, changes = self.experiment, self._changes(run)
        rounds = take_rounds(changes, experiment.host, experiment.teacher)
        for number in range(1, 1 + (rounds.count if rounds else 0)):
            one = replace(run, folder=run.folder / f"round{number}")
            self._train_in(one, changes, trainings)
            if rounds and (one.folder / TRAINED).exists() and not read_grown(one.folder):
                call = write_call(one.folder, rounds, number, run.seed, changes, *self._pair(one))
                _run(call, one, "sampling", trainings)
            if trainings.stopped:
                return
            changes |= read_grown(one.folder)
        self._train_in(run, changes, trainings)

    def _train_in(self, run: Run, changes: Settings, trainings: Trainings) -> None:
        """Train in the folder of a run or of one of its rounds, and write what it cost."""
        if (run.folder / TRAINED).exists():
            return
        run.folder.mkdir(parents=True, exist_ok=True)

        experiment = self.experiment
        host, options = HOSTS[experiment.host], experiment.options
        if self.device == "cpu" and "cpu" in host.options:
            options = {"cpu": True, **options}
        command = host.command(Path(experiment.base), run.folder, run.seed, changes, options)

        # A lock that is there was left by a training that was stopped, whose time is not known.
        is_fresh = not (run.folder / f"{TRAINING}.writer").exists()
        start = time.perf_counter()
        finished = _run(command, run, "training", trainings)
        seconds = time.perf_counter() - start
        if finished is None:
            return

        costs = Costs(seconds, finished.cpu_seconds or None) if is_fresh else Costs()
        write_json(run.folder / TRAINED, asdict(costs))

    def _pair(self, run: Run) -> tuple[str, str]:
        """Return the student of a run or round, and the teacher, by name."""
        return self._student(run)[0], fill_fields(self.experiment.teacher, self._fields(run))

    def _changes(self, run: Run) -> dict[str, Any]:
        """Return what a run changes in the base, by dotted key."""
        arm = self.experiment.swept_arms[run.arm]
        return fill_fields({**self.experiment.settings, **arm.changes}, self._fields(run))

    def _fields(self, run: Run) -> Mapping[str, object]:
        """Return what replaces ``{run}``, ``{runs}``, ``{seed}`` and axes in settings."""
        own = {"run": str(run.folder), "runs": str(self.out / "runs"), "seed": run.seed}
        return {**self.experiment.swept_arms[run.arm].point, **own}

    # --- Measuring ---

    def _measure(self, run: Run) -> None:
        path = run.folder / EVALUATION
        if path.exists():
            return
        costs = _read_costs(run.folder)
        logged = dict(HOSTS[self.experiment.host].curves(run.folder))
        student = Evaluator(
            *self._student(run), self.experiment.measure, progress=False, device=self.device
        )

        measured = evaluation(student, self._teacher)
        metrics = {**measured["metrics"], **logged.pop("metrics", {})}
        write_json(path, {**measured, **asdict(costs), **logged, "metrics": metrics})

    def _student(self, run: Run) -> tuple[str, Path]:
        """Return the trained potential, and the folder of its measurements."""
        return fill_fields(self.experiment.model, self._fields(run)), run.folder / "measured"

    def _unmeasured_models(self, runs: Sequence[Run]) -> Iterator[tuple[str, Path]]:
        """Yield potential and folder of the teacher, and of each run that is not measured."""
        missing = [run for run in runs if not (run.folder / EVALUATION).exists()]
        if missing and self._teacher is not None:
            yield self._teacher.potential, self._teacher.folder
        yield from map(self._student, missing)

    @cached_property
    def _teacher(self) -> Evaluator | None:
        experiment = self.experiment
        if experiment.teacher is None:
            return None
        potential = fill_fields(experiment.teacher, {"runs": str(self.out / "runs")})
        folder = self.out / "teacher"
        return Evaluator(potential, folder, experiment.measure, device=self.device)

    # --- The record of the experiment ---

    def _description(self) -> dict[str, Any]:
        experiment = self.experiment
        arms = experiment.measured_arms
        plan = {
            "title": experiment.title,
            "host": experiment.host,
            "control": experiment.control,
            "arms": list(arms),
            "seeds": list(experiment.seeds),
            "metrics": list(experiment.metrics),
            "provenance": self._provenance(),
        }
        if experiment.sweep:
            points = {name: {"arm": one.arm, "at": one.point} for name, one in arms.items()}
            plan |= {"controls": experiment.controls, "points": points}
        if experiment.best_over:
            plan["best_over"] = experiment.best_over
        if experiment.published:
            plan["published"] = experiment.published
        return plan

    def _provenance(self) -> dict[str, Any]:
        experiment, stored = self.experiment, read_folder_settings(self.out / "teacher")
        fingerprint = None if stored is None else stored.fingerprint
        origin = provenance(experiment.measure, experiment.teacher, fingerprint, self.command)
        return {**origin, **experiment.provenance}


def _run(command: Sequence[str], run: Run, what: str, trainings: Trainings) -> Finished | None:
    """Run a command in a folder; None if no further one may start.

    Raises:
        ValueError: with the end of its output, if it fails.
    """
    finished = trainings.run(command, run.folder)
    if finished is not None and finished.code:
        raise ValueError(
            f"{run.arm}, seed {run.seed}: the {what} ended with exit code {finished.code}; "
            f"the end of {run.folder / LOG}:\n{end_of_log(run.folder)}"
        )
    return finished


def _as_done(futures: Sequence[Future[None]]) -> Iterator[Future[None]]:
    """Yield futures as they finish.

    A wait without a timeout can miss a Ctrl-C that arrives just before it or in another thread.
    """
    left = set(futures)
    while left:
        done, left = wait(left, timeout=0.2, return_when=FIRST_COMPLETED)
        yield from done


def _read_costs(run: Path) -> Costs:
    """Return what the trainings of a run cost: all rounds; None if one is not known."""
    rounds = sorted(path.parent for path in run.glob(f"round*/{TRAINED}"))
    costs = [_read_cost(folder) for folder in (*rounds, run)]
    return Costs(
        _total([one.train_seconds for one in costs]),
        _total([one.train_cpu_seconds for one in costs]),
    )


def _total(seconds: Sequence[float | None]) -> float | None:
    known = [one for one in seconds if one is not None]
    return sum(known) if len(known) == len(seconds) else None


def _read_cost(folder: Path) -> Costs:
    """Return what a training cost: its own ``costs.json`` if there is one, else its call's time."""
    path = folder / COSTS if (folder / COSTS).exists() else folder / TRAINED
    try:
        return read_config(Costs, read_json(path), path.name)
    except ConfigError as error:
        raise ValueError(
            f"{path}: {error}; mend it, or remove it and train that run again"
        ) from None


# --- Several models at a time -------------------------------------------------------------------


def measure_in_parallel(
    models: Iterable[tuple[str, Path]],
    settings: EvaluationSettings,
    workers: int,
    progress: bool = True,
    device: str = "auto",
) -> None:
    """Measure models into their folders, each in a process of its own: all but speed and memory.

    Args:
        models: potential, as `Evaluator` takes it, and folder.
        settings: what to measure.
        workers: processes at a time, which share the cores and GPUs.
        progress: show a bar.
        device: where potentials compute, see `Evaluator`.

    Raises:
        ValueError: the error of the first that fails; the others finish their current model.
    """
    with worker_pool(workers, "measured a model", device=device) as pool:
        futures = [
            pool.submit(_measure_model, name, settings, folder, device) for name, folder in models
        ]
        bar = tqdm(
            as_completed(futures),
            "measuring",
            len(futures),
            unit=" models",
            disable=not (progress and futures),
        )
        for future in bar:
            future.result()


def _measure_model(potential: str, settings: EvaluationSettings, folder: Path, device: str) -> None:
    Evaluator(potential, folder, settings, progress=False, device=device).all_but_speed()
