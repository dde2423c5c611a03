"""Every class of key in the YAML files: an experiment's, CHGNet's, and fairchem's own block."""

from __future__ import annotations

import json
from typing import Any

import yaml

from tests.bad_inputs.case import Case
from tests.bad_inputs.commands import PAGE, into_folder
from tests.bad_inputs.folder import EXPERIMENT, changed

COMPARE = "kd-plugins compare experiment.yml --out out"
CHGNET = "kd-chgnet training.yml"
FAIRCHEM = "kd-fairchem --mode train --config-yml training.yml --cpu"

DYNAMICS = {"structure": "cell.extxyz", "temperature": 300, "steps": 40, "cutoff": 5}

TRAINING = {
    "train": {"structures": ["train.extxyz"], "store": "both"},
    "validation": {"structures": ["test.extxyz"], "store": "both"},
    "loss": {"soft": {"energy": 1, "forces": 1}},
    "optim": {"learning_rate": 0.01, "batch_size": 4, "steps": 1},
    "out": "out",
    "cache": "trunk",
}
"""Of a CHGNet."""

DISTILL: dict[str, Any] = {
    "targets": "targets",
    "student": {"initialize": "scratch"},
    "terms": {"n2n": {"weight": 1.0, "features": "l0", "distance": "squared_sum"}},
}
"""Of fairchem's task."""


def experiment(name: str, key: str, value: object, *says: str) -> Case:
    """Return an experiment with a key set, or taken away."""
    text = changed(json.dumps(EXPERIMENT), key, value)
    return Case(f"experiment_{name}", COMPARE, says, {"experiment.yml": text})


def raw(name: str, text: str | bytes, *says: str) -> list[Case]:
    """Return one text as the YAML of an experiment and of CHGNet."""
    return [
        Case(f"experiment_{name}", COMPARE, ("experiment.yml", *says), {"experiment.yml": text}),
        Case(f"training_{name}", CHGNET, ("training.yml", *says), {"training.yml": text}, needs="chgnet"),
    ]


def training(name: str, key: str, value: object, *says: str, leaves: tuple[str, ...] = ()) -> Case:
    """Return a training of CHGNet with a key set, or taken away."""
    files = {"training.yml": changed(json.dumps(TRAINING), key, value)}
    return Case(f"training_{name}", CHGNET, says, files, leaves=leaves, needs="chgnet")


def distill(name: str, key: str, value: object, *says: str) -> Case:
    """Return fairchem's block with a key set, or taken away."""
    block = changed(json.dumps(DISTILL), key, value)
    return Case(f"distill_{name}", f"read_settings({{'distill': json.loads({block!r})}})", says)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
"""A YAML whose aliases stand for a hundred million values."""

TEXTS = [
    *raw("empty", "", "mapping"),
    *raw("list", "- 1\n- 2\n", "mapping"),
    *raw("text", "hello\n", "mapping"),
    *raw("no_yaml", "a: [1, 2\n", "YAML"),
    *raw("tabs", "a:\n\tb: 1\n", "YAML"),
    *raw("html", PAGE),
    *raw("not_utf8", b"title: \xe9\n", "UTF-8"),
    *raw("python_object", "a: !!python/object/apply:os.system ['true']\n"),
    *raw("key_twice", yaml.safe_dump(EXPERIMENT) + "title: again\n", "title"),
    *raw("aliases", BOMB),
    *raw("deep", "a: " + "[" * 5000 + "\n"),
    *raw("zero_bytes", bytes(300)),
    *raw("key_is_a_list", "? [1, 2]\n: 3\n"),
    *raw("key_is_a_number", "1: 2\n", "1"),
    *raw("self_reference", "a: &a [*a]\n"),
    Case("training_no_file", "kd-chgnet no.yml", ("no.yml", "no such"), needs="chgnet"),
    Case("training_folder", "kd-chgnet runs", ("runs", "folder"), needs="chgnet"),
    Case("experiment_in_a_folders_place", COMPARE, ("experiment.yml", "folder"), {"experiment.yml": into_folder}),
    Case("training_change_without_value", f"{CHGNET} optim.seed", ("optim.seed",), {"training.yml": json.dumps(TRAINING)}, needs="chgnet"),
    Case("training_change_without_key", f"{CHGNET} =3", ("=3",), {"training.yml": json.dumps(TRAINING)}, needs="chgnet"),
    Case("training_change_of_unknown", f"{CHGNET} optim.sede=3", ("optim.sede", "seed"), {"training.yml": json.dumps(TRAINING)}, needs="chgnet"),
    Case("training_change_below_a_number", f"{CHGNET} optim.seed.x=3", ("optim.seed",), {"training.yml": json.dumps(TRAINING)}, needs="chgnet"),
    Case("training_change_no_yaml", f"{CHGNET} 'optim.seed=[1'", ("optim.seed=[1",), {"training.yml": json.dumps(TRAINING)}, needs="chgnet"),
]

EXPERIMENTS = [
    experiment("unknown_key", "colour", "red", "colour"),
    experiment("misspelled_key", "titel", "x", "titel", "title"),
    *(experiment(f"without_{key}", key, ..., key, "missing") for key in ("title", "host", "base", "model", "control", "seeds", "arms", "measure")),
    experiment("unknown_host", "host", "nequip", "host", "nequip", "chgnet"),
    experiment("host_is_a_list", "host", ["script"], "host"),
    experiment("title_is_a_number", "title", 7, "title", "7"),
    experiment("base_is_not_there", "base", "no.py", "base", "no.py"),
    experiment("base_is_a_folder", "base", "runs", "base", "runs"),
    experiment("model_is_misspelled", "model", "emtt", "emtt", "emt"),
    experiment("model_is_empty", "model", "", "model"),
    experiment("model_unknown_field", "model", "ase.calculators.lj:LennardJones rc={rnu}", "rnu"),
    experiment("teacher_is_misspelled", "teacher", "emtt", "emtt", "emt"),
    experiment("teacher_is_a_list", "teacher", ["emt"], "teacher"),
    experiment("control_is_no_arm", "control", "contrl", "contrl", "control"),
    experiment("arms_is_a_list", "arms", ["control"], "arms"),
    experiment("no_arms", "arms", {}, "arm"),
    experiment("one_arm", "arms", {"control": {}}, "arm"),
    experiment("arm_with_slash", "arms", {"control": {}, "a/b": {}}, "a/b"),
    experiment("arm_named_dots", "arms", {"control": {}, "..": {}}, ".."),
    experiment("arm_of_a_number", "arms.student", 7, "student|arms", "7"),
    experiment("arm_sets_ours", "arms.student", {"seed": 3}, "seed"),
    experiment("arm_sets_below_a_number", "arms.student", {"weight": 1, "weight.x": 3}, "weight"),
    experiment("arm_unknown_field", "arms.student", {"weight": "{rnu}/x"}, "rnu"),
    experiment("settings_sets_ours", "settings", {"out": "elsewhere"}, "out"),
    experiment("no_seeds", "seeds", [], "seeds"),
    experiment("seed_twice", "seeds", [0, 0], "seeds", "0"),
    experiment("seed_is_text", "seeds", ["zero"], "seeds", "zero"),
    experiment("seed_is_half", "seeds", [0.5], "seeds", "0.5"),
    experiment("seed_is_true", "seeds", [True], "seeds"),
    experiment("seed_is_minus", "seeds", [-1], "seeds", "-1"),
    experiment("seed_of_400_digits", "seeds", [10**400], "seeds"),
    experiment("seeds_is_a_number", "seeds", 3, "seeds", "3"),
    experiment("settings_is_a_list", "settings", [1], "settings"),
    experiment("provenance_is_text", "provenance", "x", "provenance"),
    experiment("metrics_is_text", "metrics", "force_rmse", "metrics"),
    experiment("no_metrics", "metrics", [], "metrics"),
    experiment("metric_misspelled", "metrics", ["force_rsme"], "force_rsme", "force_rmse"),
    experiment("metric_of_what_is_not_measured", "metrics", ["drift"], "drift"),
    experiment("metric_twice", "metrics", ["force_rmse", "force_rmse"], "force_rmse"),
    experiment("unjudged_is_no_arm", "unjudged", ["big"], "big"),
    experiment("unjudged_control", "unjudged", ["control"], "control"),
    experiment("unjudged_all_others", "unjudged", ["student"], "control"),
    experiment("measure_nothing", "measure", {}, "measure"),
    experiment("measure_is_text", "measure", "all", "measure", "all"),
    experiment("measure_unknown_key", "measure.colour", "red", "colour"),
    experiment("structures_is_text", "measure.structures", "test.extxyz", "structures", "test.extxyz"),
    experiment("structures_of_numbers", "measure.structures", [1], "structures", "1"),
    experiment("structures_not_there", "measure.structures", ["no.xyz"], "no.xyz"),
    experiment("structures_twice", "measure.structures", ["test.extxyz", "test.extxyz"], "test.extxyz|metal/20"),
    experiment("structures_empty", "measure.structures", [], "measure|structures"),
    experiment("ids_is_a_number", "measure.ids", 3, "ids", "3"),
    experiment("ids_unknown", "measure.ids", "mp_id", "mp_id"),
    experiment("dynamics_is_text", "measure.dynamics", "cell.extxyz", "dynamics"),
    experiment("dynamics_without_temperature", "measure.dynamics", {"structure": "cell.extxyz", "steps": 40}, "temperature", "missing"),
    *(
        experiment(f"dynamics_{key}_{tag}", "measure.dynamics", {**DYNAMICS, key: value}, f"{key}|dynamics", *says)
        for key, tag, value, *says in [
            ("structure", "not_there", "no.xyz", "no.xyz"),
            ("structure", "of_several", "test.extxyz", "test.extxyz"),
            ("structure", "is_a_molecule", "molecule.extxyz", "molecule.extxyz"),
            ("temperature", "minus", -300, "-300"),
            ("temperature", "text", "hot", "hot"),
            ("temperature", "true", True),
            ("temperature", "400_digits", 10**400),
            ("temperature", "1e9", 1e9),
            ("steps", "few", 7, "7"),
            ("steps", "minus", -40, "-40"),
            ("steps", "half", 40.5, "40.5"),
            ("steps", "true", True),
            ("timestep", "zero", 0, "0"),
            ("timestep", "minus", -1, "-1"),
            ("timestep", "text", "1 fs", "1 fs"),
            ("timestep", "huge", 1e6),
            ("cutoff", "zero", 0, "0"),
            ("cutoff", "minus", -1, "-1"),
            ("cutoff", "large", 50, "50|rmax"),
            ("bins", "zero", 0, "0"),
            ("bins", "minus", -5, "-5"),
            ("bins", "half", 10.5, "10.5"),
            ("bins", "huge", 10**12, str(10**12)),
            ("repeats", "empty", []),
            ("repeats", "zero", [0], "0"),
            ("repeats", "number", 3, "3"),
            ("repeats", "half", [1.5], "1.5"),
            ("repeats", "huge", [10**9]),
            ("repeats", "twice", [1, 1]),
            ("seeds", "empty", []),
            ("seeds", "minus", [-1], "-1"),
            ("seeds", "twice", [0, 0]),
            ("equilibration", "minus", -1, "-1"),
            ("equilibration", "text", "long", "long"),
        ]
    ),
    experiment("timestep_is_infinite", "measure.dynamics", {**DYNAMICS, "timestep": ".inf"}, "timestep"),
    *(
        experiment(f"crystals_{tag}", "measure.crystals", {"structures": ["crystal.extxyz"], **changes}, *says)
        for tag, changes, *says in [
            ("none", {"structures": []}, "crystals", "structures"),
            ("not_there", {"structures": ["no.xyz"]}, "no.xyz"),
            ("molecule", {"structures": ["molecule.extxyz"]}, "molecule", "periodic"),
            ("one_id_twice", {"structures": ["crystal.extxyz", "crystal.extxyz"]}, "crystal"),
            ("tolerance_zero", {"force_tolerance": 0}, "force_tolerance", "0"),
            ("tolerance_minus", {"force_tolerance": -1}, "force_tolerance", "-1"),
            ("steps_zero", {"max_steps": 0}, "max_steps", "0"),
            ("steps_half", {"max_steps": 1.5}, "max_steps", "1.5"),
            ("elasticity_text", {"elasticity": "yes please"}, "elasticity", "yes please"),
            ("unknown", {"colour": 1}, "colour"),
        ]
    ),
]

TRAININGS = [
    training("unknown_key", "colour", "red", "training.yml", "colour"),
    training("misspelled_key", "optim.leraning_rate", 1, "leraning_rate", "learning_rate"),
    *(training(f"without_{key}", key, ..., key, "missing") for key in ("train", "validation", "loss", "optim", "out", "cache")),
    training("structures_is_text", "train.structures", "train.extxyz", "train.structures"),
    training("no_structures", "train.structures", [], "train.structures"),
    training("structures_not_there", "train.structures", ["no.xyz"], "no.xyz"),
    training("store_not_there", "train.store", "nowhere", "nowhere"),
    training("store_is_a_file", "train.store", "test.extxyz", "test.extxyz"),
    training("store_is_a_number", "train.store", 3, "train.store", "3"),
    training("soft_without_store", "train.store", None, "train", "store"),
    training("validation_without_targets", "validation.store", "targets", "metal/20", "targets"),
    training("validation_is_train", "validation.structures", ["train.extxyz"], "validation", "train"),
    training("unknown_ids", "train.ids", "mp_id", "mp_id"),
    training("unknown_part", "train.part", "test", "train.part", "test", "validation"),
    training("unknown_kind", "train.kind", "metallic", "train.kind", "metallic", "organic"),
    training("kind_of_none", "train.kind", "organic", "organic"),
    training("size_zero", "train.size", 0, "train", "size", "0"),
    training("size_minus", "train.size", -3, "train", "size", "-3"),
    training("size_too_large", "train.size", 999, "size", "999", "12"),
    training("size_half", "train.size", 1.5, "train", "size", "1.5"),
    training("unknown_bad", "train.bad", "ignore", "train.bad", "ignore", "leave_out"),
    training("unknown_missing", "train.missing", ["enrgy"], "missing", "enrgy", "energy"),
    training("no_loss", "loss", {}, "loss"),
    training("unknown_soft", "loss.soft", {"enrgy": 1}, "enrgy", "energy"),
    training("soft_magmoms", "loss.soft", {"magmoms": 1}, "magmoms"),
    training("soft_is_a_list", "loss.soft", ["energy"], "loss.soft"),
    training("weight_minus", "loss.soft.energy", -1, "energy", "-1"),
    training("weight_text", "loss.soft.energy", "high", "energy", "high"),
    training("weight_true", "loss.soft.energy", True, "energy", "True"),
    training("weight_of_400_digits", "loss.soft.energy", 10**400, "energy"),
    training("weight_null", "loss.soft.energy", None, "energy", "None|nothing"),
    training("weights_zero", "loss.soft", {"energy": 0, "forces": 0}, "weight", "soft"),
    training("weight_unknown_schedule", "loss.soft.energy", {"schedule": "liner"}, "liner", "linear"),
    training("weight_schedule_left_out", "loss.soft.energy", {"start": 0}, "energy", "schedule"),
    training("weight_schedule_backwards", "loss.soft.energy", {"schedule": "linear", "start": 0, "end": 1, "first_step": 9, "last_step": 3}, "energy", "9", "3"),
    training("unknown_criterion", "loss.criterion", "RMSE", "criterion", "RMSE", "MAE|MSE"),
    training("delta_zero", "loss.delta", 0, "delta", "0"),
    training("delta_minus", "loss.delta", -1, "delta", "-1"),
    training("select_of_nothing", "loss.select", "hard", "select", "hard"),
    training("learning_rate_zero", "optim.learning_rate", 0, "learning_rate", "0"),
    training("learning_rate_minus", "optim.learning_rate", -0.1, "learning_rate", "-0.1"),
    training("learning_rate_text", "optim.learning_rate", "1e-2 ", "learning_rate"),
    training("learning_rate_true", "optim.learning_rate", True, "learning_rate"),
    training("batch_size_zero", "optim.batch_size", 0, "batch_size", "0"),
    training("batch_size_minus", "optim.batch_size", -1, "batch_size", "-1"),
    training("batch_size_half", "optim.batch_size", 2.5, "batch_size", "2.5"),
    training("steps_zero", "optim.steps", 0, "steps", "0"),
    training("steps_minus", "optim.steps", -1, "steps", "-1"),
    training("steps_and_epochs", "optim.epochs", 3, "steps", "epochs"),
    training("epochs_zero", "optim", {"learning_rate": 0.1, "batch_size": 4, "epochs": 0}, "epochs", "0"),
    training("neither_steps_nor_epochs", "optim.steps", None, "steps", "epochs"),
    training("unknown_schedule", "optim.schedule", "linear", "schedule", "linear"),
    training("seed_text", "optim.seed", "zero", "seed", "zero"),
    training("seed_minus", "optim.seed", -1, "seed", "-1"),
    training("seed_of_400_digits", "optim.seed", 10**400, "seed"),
    training("out_is_a_file", "out", "test.extxyz", "test.extxyz"),
    training("out_is_a_number", "out", 3, "out", "3"),
    training("out_is_cache", "cache", "out", "out"),
    training("cache_is_a_file", "cache", "test.extxyz", "test.extxyz"),
    training("force_share_zero", "force_share", 0, "force_share", "0"),
    training("force_share_above_one", "force_share", 1.5, "force_share", "1.5"),
    training("force_share_text", "force_share", "all", "force_share", "all"),
    training("model_not_there", "student.model", "no.pth.tar", "student.model", "no.pth.tar"),
    training("model_is_text", "student.model", "test.extxyz", "test.extxyz"),
    training("model_is_a_number", "student.model", 3, "student.model", "3"),
    training("nothing_trainable", "student.trainable", [], "trainable"),
    training("unknown_trainable", "student.trainable", ["mpl."], "mpl.", "mlp"),
    training("trainable_is_text", "student.trainable", "mlp.", "trainable"),
    training("align_is_text", "student.align", "yes please", "align", "yes please"),
    training("unknown_allow", "allow", ["energy_unti"], "energy_unti", "energy_unit"),
]

TERM = {"weight": 1.0, "distance": "norm"}

BLOCKS = [
    distill("unknown_key", "colour", "red", "task.distill.colour"),
    distill("misspelled_key", "techer", {}, "techer", "teacher"),
    distill("without_student", "student", ..., "student", "missing"),
    distill("without_terms", "terms", ..., "terms", "missing"),
    distill("student_is_text", "student", "scratch", "student", "scratch"),
    distill("terms_is_null", "terms", None, "terms"),
    distill("terms_is_a_list", "terms", ["crack"], "terms"),
    distill("unknown_term", "terms.crak", {"weight": 1}, "crak", "crack"),
    distill("empty_crack", "terms.crack", None, "crack"),
    distill("crack_is_a_number", "terms.crack", 3, "crack", "3"),
    distill("crack_without_weight", "terms.crack", {"temperature": 0.1}, "crack.weight", "missing"),
    *(
        distill(f"crack_{tag}", "terms.crack", {"weight": 1.0, key: value}, f"crack|{key}", key, *says)
        for tag, key, value, *says in [
            ("unknown_key", "temprature", 1, "temperature"),
            ("weight_minus", "weight", -1, "-1"),
            ("weight_text", "weight", "high", "high"),
            ("weight_true", "weight", True, "True"),
            ("weight_null", "weight", None),
            ("weight_400_digits", "weight", 10**400),
            ("weight_list", "weight", [1]),
            ("temperature_zero", "temperature", 0, "0"),
            ("temperature_minus", "temperature", -0.1, "-0.1"),
            ("temperature_text", "temperature", "low", "low"),
            ("temperature_tiny", "temperature", 1e-320),
            ("unknown_anchor", "anchor", "techer", "teacher"),
            ("unknown_edges", "edges", "both", "both", "directed"),
            ("tolerance_minus", "tolerance", -1, "-1"),
            ("tolerance_text", "tolerance", "small", "small"),
            ("unknown_features", "features", "l1", "l1", "l0", "each"),
            ("lmax_of_l0", "lmax", 2, "lmax", "2", "features: each", "l0"),
            ("excess_text", "excess", "yes please", "yes please"),
            ("unknown_negatives", "negatives", "all", "all", "global"),
            ("negatives_few", "negatives", {"sample": 3}, "negatives.sample", "3", "4"),
            ("negatives_text", "negatives", {"sample": "many"}, "negatives.sample", "many"),
            ("negatives_without_sample", "negatives", {"seed": 3}, "sample", "seed"),
            ("negatives_sample_and_global", "negatives", {"sample": 512, "of": "global"}, "sample", "global"),
            ("schedule_unknown", "weight", {"schedule": "liner"}, "liner", "linear"),
            ("schedule_key_unknown", "weight", {"schedule": "linear", "begin": 0}, "begin"),
            ("schedule_backwards", "weight", {"schedule": "linear", "start": 0, "end": 1, "first_step": 9, "last_step": 3}, "9", "3"),
            ("schedule_half_a_step", "weight", {"schedule": "linear", "start": 0, "end": 1, "first_step": 0.5, "last_step": 3}, "0.5"),
            ("schedule_minus_weight", "weight", {"schedule": "cosine", "start": 0, "end": -1, "first_step": 0, "last_step": 3}, "-1"),
            ("piecewise_lengths", "weight", {"schedule": "piecewise", "steps": [0, 1], "weights": [1.0]}, "steps", "weights"),
            ("piecewise_order", "weight", {"schedule": "piecewise", "steps": [5, 1], "weights": [1.0, 2.0]}, "increase", "5"),
            ("piecewise_empty", "weight", {"schedule": "piecewise", "steps": [], "weights": []}, "steps"),
            ("piecewise_text", "weight", {"schedule": "piecewise", "steps": ["a"], "weights": [1.0]}, "a"),
        ]
    ),
    distill("instance_temperature", "terms.instance", {"weight": 1, "temperature": 0}, "instance", "temperature", "0"),
    distill("instance_features", "terms.instance", {"weight": 1, "features": "l1"}, "instance", "features", "l1", "l0"),
    distill("instance_lmax", "terms.instance", {"weight": 1, "features": "all", "lmax": 1}, "instance", "lmax", "1", "features: each"),
    distill("each_lmax_minus", "terms.n2n", {**TERM, "features": "each", "lmax": -1}, "n2n", "lmax", "-1", "0 or more"),
    distill("each_lmax_half", "terms.n2n", {**TERM, "features": "each", "lmax": 1.5}, "n2n", "lmax", "1.5"),
    distill("each_lmax_text", "terms.crack", {"weight": 1, "features": "each", "lmax": "all"}, "crack", "lmax", "all"),
    distill("n2n_without_distance", "terms.n2n", {"weight": 1, "features": "l0"}, "n2n.distance", "missing"),
    distill("n2n_unknown_distance", "terms.n2n.distance", "squared", "n2n", "squared", "squared_sum"),
    distill("n2n_huber_bare", "terms.n2n.distance", "huber", "n2n", "huber", "delta"),
    distill("n2n_huber_zero", "terms.n2n.distance", {"huber": 0}, "n2n", "huber", "0"),
    distill("n2n_huber_text", "terms.n2n.distance", {"huber": "x"}, "n2n", "x"),
    distill("n2n_distance_mapping", "terms.n2n.distance", {"norm": 1}, "n2n", "norm"),
    distill("energy_features", "terms.energy", {**TERM, "features": "l0"}, "energy", "features"),
    distill("forces_null", "terms.forces", None, "forces"),
    *(
        distill(f"hessian_{tag}", "terms.hessian", {**TERM, "step": 0.005, "probes": 1, **{key: value}}, "hessian", key, *says)
        for tag, key, value, *says in [
            ("step_zero", "step", 0, "0"),
            ("step_large", "step", 1, "1"),
            ("step_text", "step", "small", "small"),
            ("probes_zero", "probes", 0, "0"),
            ("probes_half", "probes", 1.5, "1.5"),
            ("probes_true", "probes", True),
        ]
    ),
    distill("neither_teacher_nor_targets", "targets", ..., "teacher", "targets"),
    distill("targets_is_a_number", "targets", 3, "targets", "3"),
    distill("targets_is_empty", "targets", "", "targets"),
    distill("targets_unknown_key", "targets", {"folder": "x"}, "targets", "folder"),
    distill("targets_auto_of_a_number", "targets", {"auto": 3}, "targets", "3"),
    distill("auto_without_teacher", "targets", "auto", "auto", "teacher.checkpoint"),
    distill("initialize_without_teacher", "student.initialize", "teacher", "initialize", "teacher.checkpoint"),
    distill("unknown_initialize", "student.initialize", "random", "initialize", "random", "scratch"),
    distill("freeze_is_text", "student.freeze", "blocks.*", "freeze", "blocks.*"),
    distill("freeze_of_numbers", "student.freeze", [1], "freeze", "1"),
    distill("teacher_is_text", "teacher", "teacher.pt", "teacher", "teacher.pt"),
    distill("teacher_without_checkpoint", "teacher", {}, "teacher.checkpoint", "missing"),
    distill("checkpoint_is_a_number", "teacher", {"checkpoint": 3}, "checkpoint", "3"),
    distill("unknown_weights", "teacher", {"checkpoint": "x", "weights": "average"}, "weights", "average", "ema"),
    distill("trust_is_text", "teacher", {"checkpoint": "x", "trust_pickle": "yes please"}, "trust_pickle", "yes please"),
    distill("unknown_projection", "projection", "mlp", "projection", "mlp", "linear"),
    distill("seed_is_half", "seed", 0.5, "seed", "0.5"),
    distill("seed_is_true", "seed", True, "seed"),
    distill("seed_is_minus", "seed", -1, "seed", "-1"),
    distill("seed_of_400_digits", "seed", 10**400, "seed"),
    distill("preflight_zero", "preflight", 0, "preflight", "0"),
    distill("preflight_minus", "preflight", -1, "preflight", "-1"),
    distill("preflight_text", "preflight", "all", "preflight", "all"),
    distill("unknown_allow", "allow", ["energy_unti"], "energy_unti", "energy_unit"),
    distill("allow_is_text", "allow", "energy_unit", "allow", "energy_unit"),
    Case("distill_is_missing", "read_settings({})", ("task.distill", "missing")),
    Case("distill_is_a_list", "read_settings({'distill': [1]})", ("task.distill", "mapping")),
    Case("distill_is_null", "read_settings({'distill': None})", ("task.distill", "mapping")),
    Case("distill_nan_weight", "read_settings({'distill': {**DISTILL, 'terms': {'crack': {'weight': nan}}}})", ("crack.weight", "nan")),
    Case("distill_inf_weight", "read_settings({'distill': {**DISTILL, 'terms': {'crack': {'weight': inf}}}})", ("crack.weight", "inf")),
    Case("distill_key_is_a_number", "read_settings({'distill': {**DISTILL, 3: 4}})", ("task.distill.3",)),
]

CASES = [*TEXTS, *EXPERIMENTS, *TRAININGS, *BLOCKS]
