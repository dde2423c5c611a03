"""Arms and seeds through a host's own trainer, to a verdict and a page."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ase.build import bulk
from ase.io import write

from kd_plugins.cli import main
from kd_plugins.compare import Comparison, read_experiment
from kd_plugins.compare.experiment import fill_fields
from kd_plugins.compare.hosts import HOSTS
from kd_plugins.config import ConfigError
from kd_plugins.files import write_json
from tests.hosts import in_one_environment
from tests.house import ROOT

SOFTER = "tests.evaluate.calculators:softer"
LENNARD, VOLUMES = "tests.evaluate.calculators:stressless", "volume_error_percent"
QUICKSTART = ROOT / "recipes" / "quickstart"


def aluminium(folder: Path, count: int = 26) -> None:
    """Write rattled cells, some to learn from and some to measure, and a cell to move."""
    frames = []
    for seed in range(count):
        atoms = bulk("Al", cubic=True) * (2, 1, 1)
        atoms.rattle(0.1, seed=seed)
        atoms.info["structure_id"] = f"al/{seed}"
        frames.append(atoms)
    write(folder / "train.extxyz", frames[:-2])
    write(folder / "test.extxyz", frames[-2:])
    write(folder / "cell.extxyz", bulk("Al", cubic=True) * (3, 3, 3))


def description(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return the quickstart's experiment on a few cells, with EMT as its teacher."""
    raw = yaml.safe_load((QUICKSTART / "experiment.yml").read_text())
    dynamics = {"structure": str(folder / "cell.extxyz"), "temperature": 600, "steps": 40}
    measure = {
        "structures": [str(folder / "test.extxyz")],
        "dynamics": {**dynamics, "repeats": [1], "cutoff": 5, "seeds": [0]},
    }
    raw["settings"] |= {"structures": str(folder / "labelled.extxyz")}
    raw["settings"] |= {"store": str(folder / "targets"), "epochs": 2}
    base = str(QUICKSTART / raw["base"])
    return {**raw, "base": base, "teacher": "emt", "measure": measure, "seeds": [0]} | changes


def experiment(folder: Path, **changes: Any) -> Path:
    """Write an experiment."""
    path = folder / "experiment.yml"
    path.write_text(yaml.safe_dump(description(folder, **changes)))
    return path


@in_one_environment
def test_from_labels_to_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The quickstart's own commands, in its order."""
    pytest.importorskip("hippynn")
    labelled(tmp_path)
    out = tmp_path / "out"
    compare = ["compare", str(experiment(tmp_path)), "--out", str(out), "--workers", "2"]
    capsys.readouterr()
    assert main(compare) == 0
    (sentence,) = capsys.readouterr().out.splitlines()
    assert re.match(
        r"student against control: force RMSE .* \(1 seed, too few seeds to tell\).* training took",
        sentence,
    )
    runs = {path.relative_to(out): path.read_text() for path in out.rglob("evaluation.json")}
    assert len(runs) == 2
    one = json.loads(runs[Path("runs/student/seed0/evaluation.json")])
    assert one["metrics"]["speedup"] > 0 and one["train_seconds"] > 0
    assert len(one["curves"]["valid forces_rmse"]["epochs"]) >= 2

    bars = ["--arm", "student", "--require", "teacher_force_rmse<1e-9"]
    assert main([*compare, *bars]) == 1
    assert "required: < 1e-09" in capsys.readouterr().err
    assert {
        path.relative_to(out): path.read_text() for path in out.rglob("evaluation.json")
    } == runs

    pages = [tmp_path / name / "report.html" for name in ("one", "two")]
    for page in pages:
        assert main(["report", str(out), "-o", str(page)]) == 0
    assert pages[0].read_bytes() == pages[1].read_bytes()
    assert sentence.split(":")[0] in pages[0].read_text()


def test_weights_and_batches_are_those_of_the_seed(tmp_path: Path) -> None:
    """Arms differ in their settings and in nothing else that is written for the script."""
    described = read_experiment(experiment(tmp_path, seeds=[0, 1]))
    comparison = Comparison(described, tmp_path / "out")
    written = {}
    for run in comparison.runs():
        run.folder.mkdir(parents=True)
        changes = fill_fields(
            {**described.settings, **described.arms[run.arm]}, {"run": run.folder}
        )
        command = HOSTS["script"].command(Path("x.py"), run.folder, run.seed, changes)
        settings = yaml.safe_load(Path(command[-1]).read_text())
        assert settings.pop("out") == str(run.folder)
        written[run.arm, run.seed] = settings
    for seed in (0, 1):
        control, student = written["control", seed], written["student", seed]
        assert control["loss"].pop("atomic_energies") == 0
        assert student["loss"].pop("atomic_energies") == 100
        assert control == student
        assert control.pop("seed") == seed


def test_a_training_that_fails_says_why_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    aluminium(tmp_path, count=3)
    script = tmp_path / "script.py"
    script.write_text("import sys; print('no aluminium here'); sys.exit(3)")
    settings = {"base": str(script), "seeds": [0], "model": SOFTER}
    measure = {"structures": [str(tmp_path / "test.extxyz")]}
    path = experiment(tmp_path, **settings, measure=measure)
    words = ["compare", str(path), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "control, seed 0: the training ended with exit code 3" in said
    assert "no aluminium here" in said
    script.write_text("")
    assert main(words) == 0
    assert "too few seeds to tell" in capsys.readouterr().out
    runs = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("evaluation.json")]
    assert sorted(run["train_seconds"] is None for run in runs) == [False, True]
    script.write_text("print('another script')")
    assert main(words) == 2
    assert f"{script} was changed after 2 runs of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "hipppynn folder={run}"}, "unknown teacher 'hipppynn'; did you mean 'hippynn'?"),
        ({"model": "hippynn foldr={run}"}, "'hippynn' takes no 'foldr'; did you mean 'folder'"),
        ({"model": "hippynn"}, "cannot be made: missing a required argument: 'folder'"),
        ({"teacher": "chgnet model=no.pth.tar"}, "CHGNet has no weights 'no.pth.tar'"),
        ({"teacher": "fairchem checkpont={runs}/a.pt"}, "no 'checkpont'|not installed"),
        ({"measure": {"structures": ["no.xyz"]}}, "no.xyz: no such file"),
        (
            {"measure": {"crystals": {"structures": ["no.cif"]}}, "metrics": [VOLUMES]},
            "no.cif: no such file",
        ),
        ({"metrics": ["force_rmse"]}, "metrics: nothing here measures 'force_rmse', which"),
        ({"teacher": LENNARD, "metrics": ["teacher_stress_rmse"]}, "a teacher with stress"),
        ({"settings": {"a": 1, "a.b": 2}}, "arm 'control': a.b: a is 1, which has noth"),
        ({"settings": {"a..b": 2}}, "'a..b': expected names with dots|'.b': expected names"),
    ],
)
def test_what_cannot_be_measured_is_not_trained(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    says: str,
) -> None:
    """A slip in a name costs seconds, not the trainings before it is read."""
    aluminium(tmp_path, count=3)
    (tmp_path / "script.py").write_text("import sys; sys.exit('trained')")
    measure = {"structures": [str(tmp_path / "test.extxyz")]}
    plain = {"base": str(tmp_path / "script.py"), "model": SOFTER, "measure": measure}
    path = experiment(tmp_path, **{**plain, **changes})
    assert main(["compare", str(path), "--out", str(tmp_path / "out")]) == 2
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "out" / "runs").exists()


def test_files_that_are_included_may_not_change(tmp_path: Path) -> None:
    """Of the base and of an arm, and what those include, beside them or from here."""
    for name, inner in (("deep", []), ("base", ["deep.yml"]), ("arm", [])):
        (tmp_path / f"{name}.yml").write_text(yaml.safe_dump({"includes": inner}))
    changes = {"host": "fairchem", "base": str(tmp_path / "base.yml"), "settings": {}}
    arms = {"control": {}, "student": {"includes": [str(tmp_path / "arm.yml")]}}
    path, out = experiment(tmp_path, **changes, arms=arms), tmp_path / "out"
    write_json(out / "runs" / "student" / "seed0" / "trained.json", {"train_seconds": None})
    Comparison(read_experiment(path), out).write_settings()
    Comparison(read_experiment(path), out).write_settings()
    for name in ("deep", "base", "arm"):
        (was := tmp_path / f"{name}.yml").rename(tmp_path / "kept")
        with pytest.raises(FileNotFoundError, match=f"{name}.yml: no such file"):
            Comparison(read_experiment(path), out)
        was.write_text((tmp_path / "kept").read_text() + "# changed")
        with pytest.raises(ValueError, match=f"{name}.yml was changed after 1 runs of"):
            Comparison(read_experiment(path), out)
        (tmp_path / "kept").rename(was)


def labelled(folder: Path) -> None:
    """Write what the quickstart's experiment needs, labelled by EMT."""
    aluminium(folder)
    targets = str(folder / "targets")
    words = ["label", str(folder / "train.extxyz"), "--teacher", "emt", "--store", targets]
    assert main([*words, "--quantities", "energy", "forces", "atomic_energies"]) == 0
    assert main(["export", targets, str(folder / "labelled.extxyz")]) == 0


def measured(out: Path) -> dict[Path, Any]:
    """Return all that does not depend on the clock."""
    found = {}
    for path in out.rglob("evaluation.json"):
        one = json.loads(path.read_text())
        kept = ("fingerprint", "metrics", "parity", "curves")
        found[path.relative_to(out)] = {name: one[name] for name in kept}
    return found


def nothing_to_train(folder: Path, **changes: Any) -> list[str]:
    """Return the words of a comparison that only measures, by two workers."""
    aluminium(folder, count=3)
    (folder / "script.py").write_text("")
    dynamics = {"structure": str(folder / "cell.extxyz"), "temperature": 300, "steps": 60}
    measure = {
        "structures": [str(folder / "test.extxyz")],
        "dynamics": {**dynamics, "repeats": [1]},
        "crystals": {"structures": [str(folder / "cell.extxyz")]},
    }
    plain = {"base": str(folder / "script.py"), "model": SOFTER, "measure": measure}
    path = experiment(folder, **{**plain, "settings": {}, "teacher": "emt", **changes})
    return ["compare", str(path), "--workers", "2", "--out"]


def test_models_measured_at_a_time_are_those_measured_in_turn(tmp_path: Path) -> None:
    """But for the clock's numbers."""
    words = nothing_to_train(tmp_path)
    assert main([*words, str(tmp_path / "two")]) == 0
    assert main([*words[:2], "--out", str(tmp_path / "one")]) == 0
    one, two = (timeless(tmp_path / name) for name in ("one", "two"))
    assert one == two and len(one) == 2
    assert {"rdf_distance", "drift", "volume_error_percent"} <= one["control"]["metrics"].keys()


def timeless(out: Path) -> dict[str, Any]:
    """Return each arm's evaluation without what the clock says."""
    found = {}
    for path in out.glob("runs/*/seed0/evaluation.json"):
        one = found[path.parts[-3]] = json.loads(path.read_text())
        for name in ("train_seconds", "train_cpu_seconds", "speed", "teacher"):
            del one[name]
        for name in ("microseconds_per_atom", "nanoseconds_per_day", "speedup"):
            one["metrics"].pop(name, None)
    return found


def test_a_worker_that_fails_ends_the_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what it says."""
    words = nothing_to_train(tmp_path, model="hippynn folder={run}/no")
    assert main([*words, str(tmp_path / "out")]) == 2
    assert re.search(r"error: .*seed0/no", capsys.readouterr().err)


def test_workers_end_with_the_comparison(tmp_path: Path) -> None:
    """Killed, it leaves no process behind that would write into its folders."""
    words = [*nothing_to_train(tmp_path), str(tmp_path / "out")]
    code = "import sys; from kd_plugins.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *words]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list(tmp_path.glob("out/runs/*/seed0/measured/measured.json")):
        assert running.poll() is None
        time.sleep(0.02)
    workers = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.send_signal(signal.SIGKILL)
    running.wait()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers and not any(alive(pid) for pid in workers)
    assert main(words) == 0


def alive(pid: str) -> bool:
    """Tell whether a process runs; one that has ended may still be listed."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@in_one_environment
def test_a_killed_comparison_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed in the midst of a training, which itself lives on, it ends as if never stopped."""
    pytest.importorskip("hippynn")
    labelled(tmp_path)
    measure = {"structures": [str(tmp_path / "test.extxyz")]}
    path = experiment(tmp_path, measure=measure)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(["compare", str(path), "--out", str(whole)]) == 0

    code = "import sys; from kd_plugins.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "compare", str(path), "--out", str(cut)]
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    second = cut / "runs" / "student" / "seed0"
    while not (second / "training.writer").is_file() and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (second / "trained.json").exists()
    assert main(command[3:]) == 2
    assert "student/seed0: a training still goes on there" in capsys.readouterr().err
    deadline = time.monotonic() + 300
    while (said := main(command[3:])) == 2 and time.monotonic() < deadline:
        time.sleep(1)
    assert said == 0
    assert measured(cut) == measured(whole)
    times = {
        arm: json.loads((cut / "runs" / arm / "seed0" / "evaluation.json").read_text())[
            "train_seconds"
        ]
        for arm in ("control", "student")
    }
    assert times["control"] > 0 and times["student"] is None
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"control": "contrl"}, "no arm 'contrl'; did you mean 'control'"),
        ({"seeds": [1, 1]}, "one or more different ones"),
        ({"seeds": []}, "one or more different ones"),
        ({"host": "mace"}, "unknown choice 'mace'"),
        ({"arms": {"a/b": {}}}, "a name has letters"),
        ({"arms": {"control": {"seed": 1}}, "control": "control"}, "seed is set by kd-plugins"),
        ({"arms": [1]}, "expected names with values"),
        ({"unjudged": ["teacher"]}, "no arm 'teacher'"),
        ({"unjudged": ["control"]}, "'control' is the control"),
        ({"measure": {}}, "nothing to measure"),
        ({"mesure": {}}, "unknown key; did you mean 'measure'?"),
    ],
)
def test_bad_experiments(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        read_experiment(experiment(tmp_path, **changes))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="base: .*nowhere.py: no such file"):
        read_experiment(experiment(tmp_path, base="nowhere.py"))
    with pytest.raises(FileNotFoundError, match="expected an experiment's YAML"):
        read_experiment(tmp_path / "none.yml")
    (tmp_path / "experiment.yml").write_text("a: [")
    with pytest.raises(ConfigError, match="no YAML"):
        read_experiment(tmp_path / "experiment.yml")


def test_a_folder_is_of_one_experiment(tmp_path: Path) -> None:
    """More arms and seeds may come; what is there may not change its meaning."""
    out = tmp_path / "out"
    Comparison(read_experiment(experiment(tmp_path)), out).write_settings()
    more = description(tmp_path)["arms"] | {"student_20": {"loss.atomic_energies": 20}}
    Comparison(
        read_experiment(experiment(tmp_path, arms=more, seeds=[0, 1, 2, 3])), out
    ).write_settings()
    with pytest.raises(ValueError, match="another teacher: 'emt'"):
        Comparison(read_experiment(experiment(tmp_path, teacher="chgnet")), out)
    changed = {**more, "student_20": {"loss.atomic_energies": 30}}
    with pytest.raises(ValueError, match="arm 'student_20' with other settings"):
        Comparison(read_experiment(experiment(tmp_path, arms=changed)), out)


def test_the_hosts_commands(tmp_path: Path) -> None:
    """Each is the host's own, with the arm's changes."""
    base = ROOT / "configs" / "chgnet" / "recommended.yml"
    words = HOSTS["chgnet"].command(base, tmp_path, 4, {"loss.soft.stress": 0.2})
    assert words[1:3] == ["-m", "kd_plugins.chgnet"]
    settings = yaml.safe_load(Path(words[3]).read_text())
    assert settings["optim"]["seed"] == 4 and settings["out"] == str(tmp_path)
    before = yaml.safe_load(base.read_text())
    assert settings["loss"]["soft"] == {**before["loss"]["soft"], "stress": 0.2}
    changes = {"includes": [str(base)], "task.distill.terms.crack.weight": 5}
    words = HOSTS["fairchem"].command(base, tmp_path, 4, changes)
    assert words[words.index("--seed") + 1] == "4"
    settings = yaml.safe_load(Path(words[words.index("--config-yml") + 1]).read_text())
    assert settings["includes"] == [str(base)] * 2
    assert settings["task"] == {"distill": {"terms": {"crack": {"weight": 5}}}}
    with pytest.raises(ValueError, match="energy.x: energy is 1"):
        HOSTS["script"].command(base, tmp_path, 0, {"loss.energy": 1, "loss.energy.x": 2})
