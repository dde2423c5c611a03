"""Train and measure every arm with every seed; what is done already is left as it is."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kd_plugins.compare.experiment import Experiment, filled
from kd_plugins.compare.measuring import measure_at_once, threads_each
from kd_plugins.compare.trainers import TRAINERS
from kd_plugins.compare.training import LOG, TRAINING, called
from kd_plugins.core.files import file_hash, read_json, write_json
from kd_plugins.evaluate.evaluation import evaluation
from kd_plugins.evaluate.inputs import check_inputs, check_potential
from kd_plugins.evaluate.measured import Measured
from kd_plugins.evaluate.provenance import provenance

TRAINED, COSTS, EVALUATION = "trained.json", "costs.json", "evaluation.json"


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


class Comparison:
    """An experiment in a folder; stopped, the same call goes on.

    How long a training took is known only of one that was not stopped.

    Args:
        experiment: what to do.
        out: folder of all runs.
        command: that was typed, for the report.

    Raises:
        ValueError: if the folder holds another experiment.
    """

    def __init__(self, experiment: Experiment, out: Path, command: str | None = None) -> None:
        self.experiment, self.out, self.command = experiment, out, command
        self._claim()

    def _claim(self) -> None:
        """Let the folder be of this experiment; other arms and seeds may be added."""
        path, ours = self.out / "settings.json", self._settings()
        held = read_json(path) if path.is_file() else ours
        for name in ("host", "base", "settings", "measure", "model", "teacher"):
            if held[name] != ours[name]:
                raise ValueError(
                    f"{self.out} holds an experiment with another {name}: {held[name]!r}; choose "
                    "another folder"
                )
        self._refuse_changed(held["sources"], ours["sources"])
        for name in set(held["arms"]) & set(ours["arms"]):
            if held["arms"][name] != ours["arms"][name]:
                raise ValueError(
                    f"{self.out} holds arm {name!r} with other settings: {held['arms'][name]!r}; "
                    "give the new one another name, or choose another folder"
                )
        both = {name: {**held[name], **ours[name]} for name in ("arms", "sources")}
        write_json(path, {**ours, **both})

    def _refuse_changed(self, held: Mapping[str, str], ours: Mapping[str, str]) -> None:
        """Raise for a file whose content is not what runs were trained with."""
        trained = sorted(self.out.glob(f"runs/*/*/{TRAINED}"))
        changed = [name for name in held if trained and ours.get(name, held[name]) != held[name]]
        if changed:
            raise ValueError(
                f"{changed[0]} was changed after {len(trained)} runs of {self.out} had been "
                "trained with it; put it back, or choose another folder"
            )

    def _settings(self) -> dict[str, Any]:
        """Return the experiment as JSON has it, and the hashes of all files it comes from."""
        sources = TRAINERS[self.experiment.host].sources
        arms, base = self.experiment.arms.values(), Path(self.experiment.base)
        found = {str(path): file_hash(path) for arm in arms for path in sources(base, arm)}
        return json.loads(json.dumps({**asdict(self.experiment), "sources": found}))

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
            ValueError: before the first training, for no worker, for structures or potentials
                that cannot be measured; if a training fails, with the end of what it said.
        """
        if workers < 1:
            raise ValueError(f"workers: expected 1 or more, got {workers}")
        self._check_measuring()
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

    def _check_measuring(self) -> None:
        """Refuse what could not be measured after all the training."""
        experiment = self.experiment
        check_inputs(experiment.measure)
        for named in filter(None, (experiment.model, experiment.teacher)):
            check_potential(named)
        if "{runs}" not in (experiment.teacher or ""):
            _ = self._teacher  # opened now; the others are trained first

    def _train_all(self, runs: list[Run], workers: int, bar: Any) -> None:
        """Train the arms of a seed one after another, since they may learn from each other."""

        def train(seed: int) -> None:
            for run in runs:
                if run.seed == seed:
                    self._train(run, threads_each(workers))
                    bar.update()

        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(train, self.experiment.seeds):
                pass

    def _fields(self, run: Run) -> Mapping[str, object]:
        return {"run": str(run.folder), "runs": str(self.out / "runs"), "seed": run.seed}

    def _train(self, run: Run, threads: int) -> None:
        """Let the host train, by its own command, into a log."""
        if (run.folder / TRAINED).is_file():
            return
        run.folder.mkdir(parents=True, exist_ok=True)
        changes = {**self.experiment.settings, **self.experiment.arms[run.arm]}
        trainer = TRAINERS[self.experiment.host]
        base = Path(self.experiment.base)
        command = trainer.command(base, run.folder, run.seed, filled(changes, self._fields(run)))
        whole = not (run.folder / f"{TRAINING}.writer").exists()
        start = time.perf_counter()
        code = called(command, run.folder, threads)
        if code:
            said = (run.folder / LOG).read_text()[-1500:]
            raise ValueError(
                f"{run.arm}, seed {run.seed}: the training ended with exit code {code}; the end of "
                f"{run.folder / LOG}:\n{said}"
            )
        seconds = time.perf_counter() - start
        write_json(run.folder / TRAINED, {"train_seconds": seconds if whole else None})

    def _measure(self, run: Run) -> None:
        path = run.folder / EVALUATION
        if path.is_file():
            return
        experiment = self.experiment
        student = Measured(*self._student(run), experiment.measure, progress=False)
        costs = run.folder / COSTS
        costs = read_json(costs if costs.is_file() else run.folder / TRAINED)
        curves = TRAINERS[experiment.host].curves(run.folder)
        write_json(path, {**evaluation(student, self._teacher), **costs, **curves})

    def _student(self, run: Run) -> tuple[str, Path]:
        """Return the trained potential, and the folder for what is measured of it."""
        return filled(self.experiment.model, self._fields(run)), run.folder / "measured"

    def _unmeasured(self, runs: Sequence[Run]) -> Iterator[tuple[str, Path]]:
        """Yield what `_student` returns, of runs that are not measured, and the teacher's."""
        missing = [run for run in runs if not (run.folder / EVALUATION).is_file()]
        if missing and self._teacher is not None:
            yield self._teacher.potential, self._teacher.folder
        yield from map(self._student, missing)

    @cached_property
    def _teacher(self) -> Measured | None:
        experiment = self.experiment
        if experiment.teacher is None:
            return None
        named = filled(experiment.teacher, {"runs": str(self.out / "runs")})
        return Measured(named, self.out / "teacher", experiment.measure)

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
        experiment, path = self.experiment, self.out / "teacher" / "measured.json"
        fingerprint = str(read_json(path)["fingerprint"]) if path.is_file() else None
        found = provenance(experiment.measure, experiment.teacher, fingerprint, self.command)
        return {**found, **experiment.provenance}
