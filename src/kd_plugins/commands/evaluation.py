"""The commands that measure potentials and compare them: evaluate, compare, report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REQUIRE = "a requirement, such as force_rmse<0.05; exit code 1 if it is not met or was not measured"


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``evaluate``, ``compare`` and ``report``."""
    _add_evaluate(commands)
    _add_compare(commands)
    command = commands.add_parser(
        "report",
        help="write one page about runs",
        description="Write one HTML page about what compare or evaluate has measured, with every "
        "figure as PNG, SVG and CSV beside it.",
    )
    command.add_argument("runs", nargs="+", type=Path, help="folders of compare or evaluate")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.html")
    command.add_argument(
        "--arms", nargs="+", default=(), metavar="PATTERN", help="only these, such as 'mixed-*-1'"
    )
    command.set_defaults(run=_report)


def _add_evaluate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "evaluate",
        help="measure one potential beside labels and its teacher",
        description="Measure a potential. Run it again to go on after a stop, or to add dynamics "
        "or crystals to what was measured.",
    )
    name = {"nargs": "+", "metavar": ("NAME", "KEY=VALUE")}
    command.add_argument("--student", required=True, help="as label's --teacher", **name)
    command.add_argument("--teacher", help="to compare with", **name)
    command.add_argument("--reference", nargs="+", default=(), metavar="FILE", help="structures")
    command.add_argument("--ids", default="auto", help="see label --help")
    command.add_argument("--dynamics", metavar="FILE", help="a periodic structure to move")
    command.add_argument("--temperature", type=float, help="of velocities, K (600)")
    command.add_argument("--steps", type=int, help="of runs for drift and RDF (none)")
    command.add_argument("--equilibration", type=int, help="steps at --temperature (0)")
    command.add_argument("--repeats", type=int, nargs="+", help="of the cell (1 2 4)")
    command.add_argument("--cutoff", type=float, help="of the RDF, Å (6)")
    command.add_argument("--crystals", nargs="+", metavar="FILE", help="to relax, cell and all")
    command.add_argument("--crystals-from", metavar="IDS", help="a list of ids of files in --cifs")
    command.add_argument("--cifs", metavar="DIR", help="folder with <id>.cif of --crystals-from")
    command.add_argument("--leave-out", action="store_true", help="bad crystals, each by name")
    command.add_argument("--force-tolerance", type=float, metavar="eV/Å", help="to relax to (0.03)")
    command.add_argument("--rigid", action="store_true", help="scan volumes, without relaxing")
    command.add_argument("--elasticity", action="store_true", help="of these, too")
    command.add_argument("--stiffness", metavar="CSV", help="measured tensors to compare with")
    command.add_argument("--workers", type=int, default=1, metavar="N", help="crystals at a time")
    command.add_argument("--device", default="auto", help="of both, see label --help")
    command.add_argument("--require", action="append", default=[], metavar="BAR", help=REQUIRE)
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.set_defaults(run=_evaluate)


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "compare",
        help="train arms with several seeds and say which is better",
        description="Train and measure every arm of an experiment with every seed, then compare "
        "them in pairs. Run it again to go on after a stop.",
    )
    command.add_argument("experiment", type=Path, help="YAML; see recipes/quickstart")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--require", action="append", default=[], metavar="BAR", help=REQUIRE)
    command.add_argument("--workers", type=int, default=1, metavar="N", help="at a time")
    command.add_argument(
        "--device", default="auto", help="of trainings and measurements, see label --help"
    )
    command.add_argument("--arm", help="whose mean over seeds must meet --require")
    command.set_defaults(run=_compare)


def _evaluate(arguments: argparse.Namespace) -> int:
    from kd_plugins.evaluate.evaluation import evaluation
    from kd_plugins.evaluate.evaluator import Evaluator
    from kd_plugins.evaluate.input_checks import check_potential
    from kd_plugins.evaluate.measurements import alone, planned
    from kd_plugins.evaluate.parallel import measure_crystals
    from kd_plugins.files import write_json
    from kd_plugins.numbers import check_whole
    from kd_plugins.teachers.registry import TeacherSpec

    check_whole("--workers", arguments.workers, least=1)

    # Check every word before a model is opened, which takes seconds.
    student_name = str(TeacherSpec.parse(arguments.student))
    teacher_name = str(TeacherSpec.parse(arguments.teacher)) if arguments.teacher else None
    for name in filter(None, (student_name, teacher_name)):
        check_potential(name)
    settings = _measure(arguments)
    _check_requirements(arguments, planned(arguments.out / "student", settings), teacher_name)

    where = {"device": arguments.device}
    student = Evaluator(student_name, arguments.out / "student", settings, **where)
    teacher = None
    if teacher_name:
        teacher = Evaluator(teacher_name, arguments.out / "teacher", student.settings, **where)

    with alone(arguments.out, "evaluate"):
        if settings.crystals:
            for one in filter(None, (student, teacher)):
                measure_crystals(one, arguments.workers)
        results = evaluation(student, teacher)
        origin = _provenance(student, teacher, arguments.typed)
        write_json(arguments.out / "evaluation.json", {**results, "provenance": origin})

    _print_metrics(results["metrics"])
    _print_unrelaxed(results.get("volumes", {}), results.get("left_out", {}))
    return _exit_code(arguments.require, results["metrics"])


def _measure(arguments: argparse.Namespace) -> Any:
    """Return what the command line wants to be measured."""
    from kd_plugins.evaluate.settings import DynamicsSettings, EvaluationSettings

    names = ("temperature", "steps", "equilibration", "repeats", "cutoff")
    chosen = {name: getattr(arguments, name) for name in names}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if chosen and not arguments.dynamics:
        raise ValueError(f"--{next(iter(chosen))} needs --dynamics with a structure to move")

    dynamics = None
    if arguments.dynamics is not None:
        values = {"temperature": 600.0, "steps": 0, **chosen}
        if "repeats" in values:
            values["repeats"] = tuple(values["repeats"])
        dynamics = DynamicsSettings(arguments.dynamics, **values)
    crystals = _crystals(arguments)
    return EvaluationSettings(tuple(arguments.reference), arguments.ids, dynamics, crystals)


def _crystals(arguments: argparse.Namespace) -> Any:
    """Return the crystals that the command line wants to be measured; None without any."""
    from kd_plugins.evaluate.settings import CrystalSettings

    if (arguments.crystals_from is None) != (arguments.cifs is None):
        raise ValueError("--crystals-from needs --cifs, and --cifs needs --crystals-from")
    if not arguments.crystals and arguments.crystals_from is None:
        for name in ("elasticity", "rigid", "stiffness", "leave_out", "force_tolerance"):
            if getattr(arguments, name):
                word = name.replace("_", "-")
                raise ValueError(f"--{word} needs --crystals to measure it of")
        return None

    tolerance = arguments.force_tolerance
    chosen = {} if tolerance is None else {"force_tolerance": tolerance}
    return CrystalSettings(
        tuple(arguments.crystals or ()),
        **chosen,
        elasticity=arguments.elasticity,
        rigid=arguments.rigid,
        bad="leave_out" if arguments.leave_out else "refuse",
        stiffness=arguments.stiffness,
        ids=arguments.crystals_from,
        folder=arguments.cifs,
    )


def _check_requirements(arguments: argparse.Namespace, settings: Any, teacher: str | None) -> None:
    """Refuse requirements on metrics that will not be measured, and nothing to compare with."""
    from kd_plugins.evaluate.input_checks import check_compared, shared_labels
    from kd_plugins.evaluate.requirements import Requirement, check_metrics

    requirements = [Requirement.parse(text) for text in arguments.require]
    check_compared(settings, teacher is not None)

    labels = shared_labels(settings)
    metrics = [one.metric for one in requirements]
    check_metrics("--require", metrics, settings, teacher is not None, labels)


def _provenance(student: Any, teacher: Any, typed: str) -> dict[str, Any]:
    from kd_plugins.evaluate.evaluation import provenance

    name, fingerprint = (teacher.potential, teacher.model.fingerprint) if teacher else (None, None)
    return provenance(student.settings, name, fingerprint, typed)


def _print_metrics(metrics: Mapping[str, float]) -> None:
    """Print each metric in the unit of ``--require`` and in that of the report."""
    from kd_plugins.report.metrics import metric

    for name, value in sorted(metrics.items()):
        described = metric(name)
        converted = f"{value * described.factor:.4g} {described.unit}"
        print(f"{name:32s} {value:<12.6g} {converted}".rstrip())


def _print_unrelaxed(volumes: Mapping[str, Any], left_out: Mapping[str, str]) -> None:
    """Name the crystals that were left out and those whose relaxation failed, and why."""
    for crystal, reason in left_out.items():
        print(f"left out: {crystal}: {reason}", file=sys.stderr)
    for crystal, volume in volumes.items():
        for potential, reason in volume["failures"].items():
            print(f"not relaxed: {crystal} by the {potential}: {reason}", file=sys.stderr)


def _exit_code(requirements: Sequence[str], metrics: Mapping[str, float]) -> int:
    """Print the requirements that are not met; return 1 if there is one, else 0."""
    from kd_plugins.evaluate.requirements import faults

    found = faults(requirements, metrics)
    for fault in found:
        print(f"not accepted: {fault}", file=sys.stderr)
    return 1 if found else 0


def _compare(arguments: argparse.Namespace) -> int:
    from kd_plugins.compare import Comparison, read_experiment
    from kd_plugins.report.results import read_results

    experiment = read_experiment(arguments.experiment)
    _check_arm(arguments, experiment)
    comparison = Comparison(experiment, arguments.out, arguments.typed, arguments.device)
    found = comparison.all(arguments.workers)
    for one in filter(None, (found["worth"], *found["verdicts"])):
        print(one["sentence"])

    means = _mean_metrics(read_results(arguments.out), arguments.arm) if arguments.require else {}
    return _exit_code(arguments.require, means)


def _check_arm(arguments: argparse.Namespace, experiment: Any) -> None:
    """Refuse an arm that is not measured, and requirements on metrics that will not be."""
    from kd_plugins.evaluate.input_checks import shared_labels
    from kd_plugins.evaluate.requirements import Requirement, check_metrics
    from kd_plugins.names import suggestion

    measured = list(experiment.measured_arms)
    requirements = [Requirement.parse(text) for text in arguments.require]
    if requirements and arguments.arm is None:
        raise ValueError(f"--require needs --arm, one of {', '.join(measured)}")
    if arguments.arm is not None and not requirements:
        raise ValueError("--arm is for --require, and there is no requirement")
    if not requirements:
        return

    if arguments.arm not in measured:
        near = suggestion(arguments.arm, measured)
        raise ValueError(f"--arm: no arm {arguments.arm!r} that is measured{near}")
    metrics = [one.metric for one in requirements]
    has_teacher = experiment.teacher is not None
    labels = shared_labels(experiment.measure)
    check_metrics("--require", metrics, experiment.measure, has_teacher, labels)


def _mean_metrics(results: Any, arm: str | None) -> dict[str, float]:
    """Return the mean over seeds of each metric that all of an arm's runs have."""
    runs = [] if arm is None else list(results.of(arm).values())
    names = set.intersection(*(set(run.metrics) for run in runs)) if runs else set()
    return {name: sum(run.metrics[name] for run in runs) / len(runs) for name in sorted(names)}


def _report(arguments: argparse.Namespace) -> int:
    from kd_plugins.report import write_report

    print(write_report(arguments.runs, arguments.output, arguments.arms))
    return 0
