"""Bad input ends in one clear error before the first step."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator

from kd_plugins.config import ConfigError
from tests.fairchem import tiny

Change = Callable[[dict[str, Any]], Any]


def block(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the distillation block of a run."""
    return settings["task"]["distill"]


def term(name: str, **changes: Any) -> Change:
    """Return a change of one term."""
    return lambda settings: block(settings)["terms"][name].update(changes)


def distill(part: str, **changes: Any) -> Change:
    """Return a change of the teacher's or the student's settings."""
    return lambda settings: block(settings)[part].update(changes)


def backbone(**changes: Any) -> Change:
    """Return a change of the student's backbone."""
    return lambda settings: settings["model"]["backbone"].update(changes)


SETTINGS: dict[str, tuple[Change, str]] = {
    "no block": (lambda s: s.update(task={}), "task.distill is missing"),
    "block is no mapping": (lambda s: s["task"].update(distill=3), "expected a mapping, got 3"),
    "unknown key": (
        lambda s: block(s).update(projektion="none"),
        r"task.distill.projektion: unknown key; did you mean 'projection'\?",
    ),
    "unknown term": (
        lambda s: block(s)["terms"].update(crak={"weight": 1}),
        r"terms.crak: unknown key; did you mean 'crack'\?",
    ),
    "missing teacher": (
        lambda s: block(s).pop("teacher"),
        "task.distill: teacher: missing; expected a mapping",
    ),
    "missing weight": (
        lambda s: block(s)["terms"]["crack"].clear(),
        "terms.crack.weight: missing",
    ),
    "a term without anything": (
        lambda s: block(s)["terms"].update(crack=None),
        "terms.crack.weight: missing",
    ),
    "another term without anything": (
        lambda s: block(s)["terms"].update(n2n=None),
        r"terms.n2n.features: missing.*\n.*terms.n2n.weight: missing.*\n.*distance: missing",
    ),
    "terms without anything": (
        lambda s: block(s).update(terms=None),
        "task.distill.terms: expected a mapping, got None",
    ),
    "a term that is a number": (
        lambda s: block(s)["terms"].update(crack=10.0),
        "terms.crack: expected a mapping, got 10.0",
    ),
    "a weight that is no number": (term("crack", weight=float("nan")), "crack.weight: .*nan"),
    "a temperature that is no number": (
        term("crack", temperature=float("nan")),
        "temperature.* expected a finite number, got nan|temperature must be a finite number",
    ),
    "milestones out of order": (
        term("n2n", weight={"schedule": "piecewise", "steps": [5, 5], "weights": [1.0, 0.0]}),
        "n2n.weight: .*steps",
    ),
    "allow of nothing that is": (
        lambda s: block(s).update(allow=["energy_units"]),
        "allow: no error is called 'energy_units'; did you mean 'energy_unit'",
    ),
    "allow as text": (lambda s: block(s).update(allow="energy_unit"), "allow: expected a list"),
    "targets of no name": (lambda s: block(s).update(targets=""), "targets: expected a folder"),
    "data that is not there": (
        lambda s: s["dataset"]["train"].update(src="nowhere.db"),
        r"dataset.train.src: there is no 'nowhere.db' \(paths count from",
    ),
    "validation that is not there": (
        lambda s: s["dataset"]["val"].update(src=["a.db", "b.db"]),
        "dataset.val.src: there is no 'a.db'",
    ),
    "no data set": (lambda s: s.update(dataset=None), "dataset: expected a mapping with train"),
    "nothing to train on": (lambda s: s["dataset"].pop("train"), "cannot set up|dataset.train: no"),
    "a format of no data set": (
        lambda s: s["dataset"]["train"].update(format="ase_bd"),
        "fairchem cannot set up this run by its YAML: .*ase_bd",
    ),
    "more than there is": (
        lambda s: s["dataset"]["train"].update(first_n=99),
        "fairchem cannot set up this run by its YAML: ValueError: Cannot take 99",
    ),
    "batches of nothing": (lambda s: s["optim"].update(batch_size=0), "optim.batch_size: .* got 0"),
    "batches of text": (
        lambda s: s["optim"].update(eval_batch_size="4"),
        "optim.eval_batch_size: expected a whole number of 1 or more, got '4'",
    ),
    "no learning rate": (lambda s: s["optim"].pop("lr_initial"), "optim.lr_initial: missing"),
    "a learning rate below 0": (
        lambda s: s["optim"].update(lr_initial=-1.0),
        "optim.lr_initial: .* got -1.0",
    ),
    "an average of nothing": (
        lambda s: s["optim"].update(ema_decay=2.0),
        "fairchem cannot set up this run by its YAML: ValueError: Decay must be between 0 and 1",
    ),
    "an optimizer that is none": (
        lambda s: s["optim"].update(optimizer="Adamm"),
        "fairchem cannot set up this run by its YAML: AttributeError: .*Adamm",
    ),
    "a loss without its output": (
        lambda s: s["loss_functions"].append({"stress": {"fn": "mae", "coefficient": 1.0}}),
        "loss_functions: 'stress' is no output; the YAML's outputs: energy, forces",
    ),
    "negative weight": (term("crack", weight=-1), "crack.weight: a weight must be finite and >= 0"),
    "infinite weight": (
        term("crack", weight=float("inf")),
        "crack.weight: expected a finite number, got inf",
    ),
    "weight as text": (term("crack", weight="1e1"), r"YAML wants 1.0e-3, not 1e-3"),
    "unknown schedule": (
        term("n2n", weight={"schedule": "linaer", "start": 0}),
        "did you mean 'linear'",
    ),
    "schedule without its keys": (
        term("n2n", weight={"schedule": "linear", "start": 0.0}),
        "linear.end: missing; expected a number",
    ),
    "schedule back to front": (
        term(
            "n2n",
            weight={
                "schedule": "linear",
                "start": 0.0,
                "end": 1.0,
                "first_step": 9,
                "last_step": 3,
            },
        ),
        "first_step < last_step, got 9 and 3",
    ),
    "temperature 0": (term("crack", temperature=0), "temperature must be a finite number > 0"),
    "temperature below 0": (term("instance", temperature=-0.1), "temperature must be .* got -0.1"),
    "tolerance 0": (term("crack", tolerance=0.0), "tolerance must be a finite number > 0"),
    "anchor": (term("crack", anchor="techer"), r"anchor: unknown choice .*mean 'teacher'\?"),
    "edges": (term("crack", edges="undirectd"), r"edges: unknown choice .*mean 'undirected'\?"),
    "features": (term("n2n", features="l1"), "n2n.features: unknown choice 'l1'"),
    "a degree that the models lack": (
        term("n2n", features="each", lmax=3),
        "terms.n2n.lmax: expected at most 2, .* the teacher 2.*got 3",
    ),
    "distance": (term("n2n", distance="square_sum"), "did you mean 'squared_sum'"),
    "huber without delta": (term("energy", distance="huber"), "huber needs its delta"),
    "hessian step": (term("hessian", step=0.0), "step must be > 0 and < 0.5 Å"),
    "hessian probes": (term("hessian", probes=0), "probes must be >= 1"),
    "preflight of nothing": (lambda s: block(s).update(preflight=-1), "preflight must be >= 1"),
    "hessian with recomputed blocks": (
        backbone(activation_checkpoint=True),
        "hessian cannot be trained with model.backbone.activation_checkpoint",
    ),
    "soft target without its output": (
        lambda s: (
            s["outputs"].update(total={"level": "system", "property": "energy"}),
            s["outputs"].pop("energy"),
        ),
        "terms.energy needs an output of that name",
    ),
    "seed as text": (lambda s: block(s).update(seed="one"), "expected a whole number, got 'one'"),
    "graph parallel": (lambda s: s.update(gp_gpus=1), "gp_gpus: distillation needs whole graphs"),
    "no such initialisation": (
        distill("student", initialize="pretrained"),
        "known: scratch, teacher",
    ),
    "freeze matches nothing": (
        distill("student", freeze=["bakbone.*"]),
        "'bakbone.*' matches no parameter",
    ),
    "freeze everything": (distill("student", freeze=["*"]), "leaves no parameter to train"),
    "no checkpoint": (distill("teacher", checkpoint="nowhere.pt"), "there is no file 'nowhere.pt'"),
    "raw or averaged": (distill("teacher", weights=None), "say which one teaches"),
    "widths without projection": (
        lambda s: (block(s).update(projection="none"), backbone(sphere_channels=4)(s)),
        "the student has 4 channels, the teacher 8; use projection: linear",
    ),
    "other lmax": (backbone(lmax_list=[1]), "the student has 1, the teacher 2; use features: l0"),
    "start from a wider teacher": (
        lambda s: (distill("student", initialize="teacher")(s), backbone(sphere_channels=4)(s)),
        "differs from its teacher in num_layers only",
    ),
    "start with other scales": (
        lambda s: (distill("student", initialize="teacher")(s), backbone(avg_num_nodes=10.0)(s)),
        "needs the teacher's model.backbone.avg_num_nodes",
    ),
    "student of another architecture": (
        lambda s: s.update(model={"name": "schnet", "otf_graph": True}),
        "the student is a SchNetWrap; expected a hydra model",
    ),
    "student without forces": (
        lambda s: s["model"]["heads"].pop("forces"),
        "terms.forces needs a force head; the student",
    ),
    "element that the student does not know": (
        backbone(max_num_elements=30),
        "holds element 78; the student knows atomic numbers below 30",
    ),
    "labels that are not read": (
        lambda s: s["dataset"]["train"]["a2g_args"].update(r_forces=False),
        "has no 'forces'",
    ),
}


@pytest.mark.filterwarnings("ignore:.*weights_only:FutureWarning")
@pytest.mark.parametrize(("change", "message"), SETTINGS.values(), ids=SETTINGS.keys())
def test_settings(make_config, teacher: Path, change: Change, message: str) -> None:
    """A wrong setting is named with what was expected; nothing is trained or saved."""
    settings = make_config(
        trainer="kd_plugins.fairchem.EqV2DistillTrainer", task=tiny.distill(teacher)
    )
    change(settings)
    with pytest.raises((ConfigError, FileNotFoundError), match=message):
        tiny.run(settings)
    assert not list(Path(settings["run_dir"]).glob("checkpoints/*/*checkpoint*"))


def edited(path: Path, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Return what writes an edited copy of a checkpoint."""

    def write(target: Path) -> None:
        state = tiny.load(path)
        change(state)
        torch.save(state, target)

    return write


class Code:
    """Something that a checkpoint should not hold."""


FILES: dict[str, tuple[Callable[[Path], Callable[[Path], Any]], str]] = {
    "not a checkpoint": (lambda _: lambda to: to.write_text("hello"), "bad.pt: not a.*is text"),
    "empty": (lambda _: lambda to: to.touch(), "bad.pt: not a checkpoint; .*is empty"),
    "a list": (lambda _: lambda to: torch.save([1], to), "it has no config and no state_dict"),
    "pickled code": (
        lambda t: edited(t, lambda s: s.update(extra=Code())),
        "trust_pickle: true",
    ),
    "bare pickle": (lambda _: lambda to: to.write_bytes(pickle.dumps(Code())), "bad.pt: not a"),
    "another architecture": (
        lambda t: edited(t, lambda s: s["config"]["model"].update(name="gemnet_oc")),
        "the teacher is a 'gemnet_oc'; expected an EquiformerV2",
    ),
    "another backbone": (
        lambda t: edited(
            t,
            lambda s: s["config"]["model"].update(backbone={"model": "schnet_backbone"}, heads={}),
        ),
        "'hydra' with a 'schnet_backbone'; .*--teacher fairchem checkpoint=.*bad.pt",
    ),
    "a part that does not exist": (
        lambda t: edited(t, lambda s: s["config"]["model"]["heads"]["energy"].update(module="x")),
        "bad.pt: its model cannot be built",
    ),
    "weights of another size": (
        lambda t: edited(t, lambda s: s["config"]["model"]["backbone"].update(num_layers=2)),
        "Unexpected key",
    ),
    "averages of another size": (
        lambda t: edited(t, lambda s: s["ema"]["shadow_params"].pop()),
        "averaged tensors do not fit",
    ),
    "no averages": (lambda t: edited(t, lambda s: s.pop("ema")), "the file has no averages"),
    "weights that are not finite": (
        lambda t: edited(t, lambda s: [v.fill_(float("nan")) for v in s["ema"]["shadow_params"]]),
        "weights are not finite",
    ),
}


@pytest.mark.parametrize(("write", "message"), FILES.values(), ids=FILES.keys())
def test_teacher_files(
    make_config, teacher: Path, tmp_path: Path, write: Callable[..., Any], message: str
) -> None:
    """A file that cannot teach is named with its reason."""
    write(teacher)(tmp_path / "bad.pt")
    task = tiny.distill(tmp_path / "bad.pt")
    task["distill"]["teacher"]["weights"] = "ema"
    settings = make_config(trainer="kd_plugins.fairchem.EqV2DistillTrainer", task=task)
    with pytest.raises(ConfigError, match=message):
        tiny.run(settings)


def test_trusted_pickle(make_config, teacher: Path, tmp_path: Path) -> None:
    """The way out that the error names works."""
    edited(teacher, lambda s: s.update(extra=Code()))(tmp_path / "trusted.pt")
    task = tiny.distill(tmp_path / "trusted.pt")
    task["distill"]["teacher"]["trust_pickle"] = True
    tiny.run(make_config(trainer="kd_plugins.fairchem.EqV2DistillTrainer", task=task))


def with_nan(atoms: ase.Atoms, name: str) -> ase.Atoms:
    """Return a copy of a slab with one label that is not finite."""
    labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces().copy()}
    labels[name] = np.full_like(labels[name], np.nan)
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


@pytest.mark.parametrize("name", ["energy", "forces"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_labels(make_config, teacher: Path, tmp_path: Path, name: str, split: str) -> None:
    """A NaN label is found before the first step (ASE's database keeps a NaN energy as none)."""
    structures = [tiny.slab(index) for index in range(3)]
    structures[1] = with_nan(structures[1], name)
    settings = make_config(
        trainer="kd_plugins.fairchem.EqV2DistillTrainer", task=tiny.distill(teacher)
    )
    settings["dataset"][split]["src"] = str(tiny.write_database(tmp_path / "nan.db", structures))
    reason = "cannot be read" if name == "energy" else r"\(sid slab1\): 'forces' holds NaN"
    with pytest.raises(ConfigError, match=rf"dataset.{split}\[\d\] {reason}"):
        tiny.run(settings)


def test_a_label_that_preflight_did_not_see(make_config, teacher: Path, tmp_path: Path) -> None:
    """With preflight: 1 the bad batch itself is refused before it reaches the weights."""
    structures = [tiny.slab(0), with_nan(tiny.slab(1), "forces"), tiny.slab(2)]
    settings = make_config(
        trainer="kd_plugins.fairchem.EqV2DistillTrainer", task=tiny.distill(teacher, preflight=1)
    )
    settings["dataset"]["train"]["src"] = str(tiny.write_database(tmp_path / "nan.db", structures))
    with pytest.raises(ConfigError, match=r"\(sid slab1\): 'forces' holds NaN or inf"):
        tiny.run(settings)


def test_resuming_with_another_teacher(make_config, teacher: Path) -> None:
    """The distillation state holds the identity of its teacher."""
    settings = make_config(
        trainer="kd_plugins.fairchem.EqV2DistillTrainer", task=tiny.distill(teacher)
    )
    tiny.run(settings)
    block(settings)["teacher"]["weights"] = "ema"
    with pytest.raises(ConfigError, match="written with another teacher"):
        tiny.run(settings)
