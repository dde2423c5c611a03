"""Files of the hosts that are none, pickles of strangers, and what the adapters' functions refuse."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.bad_inputs.case import Case
from tests.bad_inputs.commands import PAGE, POINTER, into_folder
from tests.bad_inputs.records import put

LABEL = "kd-plugins label test.extxyz --store out --teacher"
DOCTOR = "kd-plugins doctor --labels train.extxyz --store targets --ask-teacher"


class Bomb:
    """Writes a file when it is unpickled, which a case would then find."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return the call that a pickle makes."""
        return (open, ("ran", "w"))


def saved(content: object) -> bytes:
    """Return what torch.save makes of something."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def old(content: object) -> bytes:
    """Return what torch.save made before it wrote zip files."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def zipped() -> bytes:
    """Return a zip file that is no checkpoint."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("hello", "world")
    return file.getvalue()


TENSORS = saved({"state_dict": {"a": torch.zeros(1000)}, "model": {"b": torch.zeros(3)}})

FILES: dict[str, tuple[bytes | str | Callable[[Path], object], tuple[str, ...]]] = {
    "empty": (b"", ("empty|0 bytes",)),
    "zero_bytes": (bytes(3000), ()),
    "html": (PAGE, ("HTML",)),
    "pointer": (POINTER, ("git-lfs|LFS|lfs",)),
    "text": ("hello\n", ()),
    "cut": (TENSORS[:2000], ()),
    "zip": (zipped(), ()),
    "folder": (into_folder, ("folder|directory|nor is that a file|is no file|no such checkpoint",)),
    "number": (saved(3), ()),
    "other_tensors": (TENSORS, ()),
    "bomb": (saved({"model": Bomb()}), ("trust_pickle|code",)),
    "bomb_of_old": (old({"model": Bomb()}), ("trust_pickle|code|pickle|damaged",)),
    "bomb_bare": (pickle.dumps(Bomb()), ()),
    "missing": (lambda path: None, ("no such|not there|missing|nor is that a file|there is no|has no",)),
}
"""What may lie where a checkpoint should, and what the refusal says beside the file's name."""


def checkpoints(tag: str, call: str, file: str, needs: str) -> list[Case]:
    """Return a case for each of `FILES` in the place of a file."""
    beside = {"run/best_model.pt": TENSORS} if needs == "hippynn" else {}
    return [
        Case(f"{tag}_{name}", call, (Path(file).name, *says), {**beside, file: content}, needs=needs)
        for name, (content, says) in FILES.items()
    ]


CHECKPOINTS = [
    *checkpoints("teacher_chgnet", f"{LABEL} chgnet model=x.pth.tar", "x.pth.tar", "chgnet"),
    *checkpoints("teacher_fairchem", f"{LABEL} fairchem checkpoint=x.pt", "x.pt", "fairchem"),
    *checkpoints("teacher_eqv2", f"{LABEL} eqv2 checkpoint=x.pt", "x.pt", "fairchem"),
    *checkpoints("teacher_hippynn", f"{LABEL} hippynn folder=run", "run/experiment_structure.pt", "hippynn"),
    Case("teacher_hippynn_bomb_beside", f"{LABEL} hippynn folder=run", ("run",), {"run/experiment_structure.pt": saved(Bomb()), "run/best_model.pt": saved({})}, needs="hippynn"),
    Case("teacher_hippynn_no_folder", f"{LABEL} hippynn folder=nowhere", ("nowhere",), needs="hippynn"),
    Case("teacher_hippynn_a_file", f"{LABEL} hippynn folder=test.extxyz", ("test.extxyz",), needs="hippynn"),
    Case("teacher_hippynn_unit", f"{LABEL} hippynn folder=run energy_unit=Hartee", ("energy_unit", "Hartee"), {"run/best_model.pt": b""}, needs="hippynn"),
    Case("teacher_hippynn_no_words", f"{LABEL} hippynn", ("hippynn", "folder"), needs="hippynn"),
    Case("teacher_chgnet_unknown", f"{LABEL} chgnet model=0.9.9", ("0.9.9", "0.3.0|chgnet|CHGNet"), needs="chgnet"),
    Case("teacher_chgnet_misspelled", f"{LABEL} chgnet modle=0.3.0", ("modle", "model"), needs="chgnet"),
    Case("teacher_chgnet_a_number", f"{LABEL} chgnet model=3", ("model", "3"), needs="chgnet"),
    Case("teacher_chgnet_trust_text", f"{LABEL} chgnet model=x.pth.tar trust_pickle=maybe", ("trust_pickle", "maybe"), {"x.pth.tar": b""}, needs="chgnet"),
    Case("teacher_fairchem_no_words", f"{LABEL} fairchem", ("fairchem", "checkpoint"), needs="fairchem"),
    Case("teacher_eqv2_weights", f"{LABEL} eqv2 checkpoint=x.pt weights=average", ("weights", "average"), {"x.pt": TENSORS}, needs="fairchem"),
    Case("teacher_pfp_no_words", f"{LABEL} pfp", ("pfp", "model_version")),
    Case("teacher_pfp_not_installed", f"{LABEL} pfp model_version=v5 calc_mode=crystal", ("pfp", "Matlantis")),
    *checkpoints("student_model", "kd-chgnet training.yml student.model=x.pth.tar", "x.pth.tar", "chgnet"),
]


def _trained(case: Case) -> Case:
    """Add the YAML of a training."""
    from tests.bad_inputs.experiments import TRAINING, json

    if not case.call.startswith("kd-chgnet"):
        return case
    return Case(case.name, case.call, case.says, {**case.files, "training.yml": json.dumps(TRAINING)}, needs=case.needs)


STRANGERS = [
    Case("stranger_names_a_pickle", DOCTOR, ("hippynn folder=run",), {**put("targets/manifest.json", "teacher", "hippynn folder=run"), "run/best_model.pt": saved(Bomb()), "run/experiment_structure.pt": saved(Bomb())}),
    Case("stranger_trusts_itself", DOCTOR, ("trust_pickle",), {**put("targets/manifest.json", "teacher", "chgnet model=x trust_pickle=true"), "x": saved(Bomb())}),
    Case("stranger_names_a_checkpoint", DOCTOR, ("chgnet model=x.pth.tar",), {**put("targets/manifest.json", "teacher", "chgnet model=x.pth.tar"), "x.pth.tar": saved(Bomb())}),
    Case("stranger_names_a_module", DOCTOR, ("broken:f",), {**put("targets/manifest.json", "teacher", "broken:f"), "broken.py": "open('ran', 'w')"}),
    Case("stranger_in_an_ensemble", DOCTOR, ("broken:f",), {**put("targets/manifest.json", "teacher", "emt & broken:f"), "broken.py": "open('ran', 'w')"}),
]


def chgnet(name: str, code: str, *says: str) -> Case:
    """Return a case of CHGNet's adapter."""
    return Case(f"chgnet_{name}", CHGNET + code, says, needs="chgnet")


def hippynn(name: str, code: str, *says: str) -> Case:
    """Return a case of hippynn's adapter."""
    return Case(f"hippynn_{name}", HIPPYNN + code, says, needs="hippynn")


CHGNET = "from chgnet.model import CHGNet\nfrom kd_plugins.chgnet import *\nmodel = CHGNet()\n"
HIPPYNN = "from kd_plugins.hippynn import *\nfrom kd_plugins.hippynn import structure_keys\nframes = list(read_structures(['train.extxyz']))\n"
DATA = """
data, other = (
    DistillData(read_structures([f"{name}.extxyz"]), TargetStore.open("both"), soft=["energy"], progress=False)
    for name in ("train", "test")
)
"""
FIT = "distill(model, data, other, settings=FitSettings(epochs=1, batch_size=3), out='out', cache='trunk', soft={'energy': 1}"

ADAPTERS = [
    chgnet("data_without_anything", "DistillData(read_structures(['train.extxyz']), progress=False)", "soft|hard|store"),
    chgnet("data_without_store", "DistillData(read_structures(['train.extxyz']), soft=['energy'], progress=False)", "store", "soft"),
    chgnet("data_store_is_a_path", "DistillData(read_structures(['train.extxyz']), 'targets', soft=['energy'], progress=False)", "store", "targets"),
    chgnet("data_unknown_soft", "DistillData(read_structures(['train.extxyz']), TargetStore.open('targets'), soft=['enrgy'], progress=False)", "enrgy", "energy"),
    chgnet("data_soft_text", "DistillData(read_structures(['train.extxyz']), TargetStore.open('targets'), soft='energy', progress=False)", "soft", "energy"),
    chgnet("data_unknown_bad", "DistillData(read_structures(['train.extxyz']), TargetStore.open('targets'), soft=['energy'], bad='ignore', progress=False)", "bad", "ignore"),
    chgnet("data_of_nothing", "DistillData([], TargetStore.open('targets'), soft=['energy'], progress=False)", "structure"),
    chgnet("data_of_atoms", "DistillData([copper], TargetStore.open('targets'), soft=['energy'], progress=False)", "LabelledStructure"),
    chgnet("data_unlabelled", "DistillData([frame], TargetStore.open('targets'), soft=['energy'], progress=False)", "cu", "targets"),
    chgnet("train_is_a_list", "distill(model, [], [], out='out', cache='trunk', soft={'energy': 1})", "train", "DistillData"),
    chgnet("nothing_to_learn", f"{DATA}distill(model, data, other, settings=FitSettings(epochs=1, batch_size=3), out='out', cache='trunk')", "soft|weight"),
    chgnet("unknown_soft", f"{DATA}distill(model, data, other, settings=FitSettings(epochs=1, batch_size=3), out='out', cache='trunk', soft={{'enrgy': 1}})", "enrgy", "energy"),
    chgnet("soft_not_held", f"{DATA}distill(model, data, other, settings=FitSettings(epochs=1, batch_size=3), out='out', cache='trunk', soft={{'forces': 1}})", "forces"),
    chgnet("model_is_a_name", f"{DATA}distill('0.3.0', data, other, out='out', cache='trunk', soft={{'energy': 1}})", "model", "0.3.0|str"),
    chgnet("unknown_trainable", f"{DATA}{FIT}, trainable=['mpl.'])", "mpl.", "mlp"),
    chgnet("trainable_text", f"{DATA}{FIT}, trainable='mlp.')", "trainable", "mlp."),
    chgnet("out_is_a_file", f"{DATA}distill(model, data, other, settings=FitSettings(epochs=1, batch_size=3), out='test.extxyz', cache='trunk', soft={{'energy': 1}})", "test.extxyz"),
    chgnet("force_share_zero", f"{DATA}{FIT}, force_share=0)", "force_share", "0"),
    chgnet("force_share_nan", f"{DATA}{FIT}, force_share=nan)", "force_share", "nan"),
    chgnet("force_share_text", f"{DATA}{FIT}, force_share='all')", "force_share", "all"),
    chgnet("delta_nan", f"{DATA}{FIT}, delta=nan)", "delta", "nan"),
    chgnet("criterion", f"{DATA}{FIT}, criterion='RMSE')", "criterion", "RMSE"),
    chgnet("select", f"{DATA}{FIT}, select='hard')", "select", "hard"),
    chgnet("allow", f"{DATA}{FIT}, allow=['energy_unti'])", "energy_unti", "energy_unit"),
    chgnet("same_validation", f"{DATA}distill(model, data, data, settings=FitSettings(epochs=1, batch_size=3), out='out', cache='trunk', soft={{'energy': 1}})", "validation"),
    chgnet("settings_is_a_mapping", f"{DATA}distill(model, data, other, out='out', cache='trunk', soft={{'energy': 1}}, settings={{'epochs': 3}})", "settings", "FitSettings"),
    chgnet("epochs_zero", "FitSettings(epochs=0)", "epochs", "0"),
    chgnet("epochs_half", "FitSettings(epochs=1.5)", "epochs", "1.5"),
    chgnet("epochs_true", "FitSettings(epochs=True)", "epochs", "True"),
    chgnet("batch_size_zero", "FitSettings(batch_size=0)", "batch_size", "0"),
    chgnet("batch_size_text", "FitSettings(batch_size='4')", "batch_size", "'4'"),
    chgnet("learning_rate_nan", "FitSettings(learning_rate=nan)", "learning_rate", "nan"),
    chgnet("learning_rate_null", "FitSettings(learning_rate=None)", "learning_rate", "None"),
    chgnet("schedule", "FitSettings(schedule='linear')", "schedule", "linear"),
    chgnet("seed_minus", "FitSettings(seed=-1)", "seed", "-1"),
    chgnet("for_no_steps", "FitSettings.for_steps(0, 10)", "steps", "0"),
    chgnet("for_no_structures", "FitSettings.for_steps(10, 0)", "structures", "0"),
    chgnet("ratios_unknown", "Ratios(soft={'enrgy': 1})", "enrgy", "energy"),
    chgnet("ratios_nan", "Ratios(soft={'energy': nan})", "energy", "nan"),
    chgnet("ratios_list", "Ratios(soft=['energy'])", "soft"),
    chgnet("ratios_none", "Ratios()", "weight|soft"),
    chgnet("freeze_nothing", "freeze_except(model, ['mpl.'])", "mpl.", "mlp"),
    chgnet("freeze_no_model", "freeze_except('0.3.0', ['mlp.'])", "model", "0.3.0|str"),
    chgnet("align_list", "align_references(model, [])", "data|DistillData"),
    chgnet("align_source", f"{DATA}align_references(model, data, 'sofd')", "source", "sofd", "soft"),
    chgnet("align_targets_list", "align_targets(model, [])", "data", "DistillData"),
    chgnet("weight_minus", f"{DATA}data.weighted(-1)", "weight", "-1"),
    chgnet("weight_text", f"{DATA}data.weighted('2')", "weight", "'2'"),
    chgnet("weights_too_few", f"{DATA}data.weighted([1])", "weight", "1"),
    chgnet("weights_of_unknown", f"{DATA}data.weighted(soft={{'enrgy': 1}})", "soft", "enrgy", "energy"),
    chgnet("weights_that_are_a_list", f"{DATA}data.weighted(soft=['energy'])", "soft"),
    chgnet("sources_that_are_one", f"{DATA}DistillData.concatenate(data)", "sources"),
    chgnet("sources_of_paths", "DistillData.concatenate(['train.extxyz'])", "sources", "DistillData"),
    chgnet("l2_to_start_minus", f"{DATA}{FIT}, l2_to_start=-1)", "l2_to_start", "-1"),
    chgnet("l2_to_start_text", f"{DATA}{FIT}, l2_to_start='1')", "l2_to_start", "'1'"),
    chgnet("patience_zero", "FitSettings(patience=0)", "patience", "0"),
    chgnet("patience_half", "FitSettings(patience=1.5)", "patience", "1.5"),
    chgnet("trunk_of_text", "FrozenTrunk('0.3.0')", "model", "0.3.0|str"),
    chgnet("trainer_without_targets", "DistillTrainer(model)", "soft|weight"),
    chgnet("trainer_unknown_target", "DistillTrainer(model, targets='efq', soft={'energy': 1})", "targets"),
    chgnet("trainer_loaders", "DistillTrainer(model, soft={'energy': 1}).train([], [], save_dir='out')", "loader"),
    *(
        Case(f"last_{name}", f"{CHGNET}DistillTrainer.load('last.pth.tar')", ("last.pth.tar", *says), {"last.pth.tar": content}, needs="chgnet")
        for name, (content, says) in FILES.items()
    ),
    hippynn("arrays_of_nothing", "to_arrays([])", "structure|frame"),
    hippynn("arrays_of_atoms", "to_arrays([copper])", "LabelledStructure"),
    hippynn("arrays_unknown_label", "to_arrays(frames, ['enrgy'])", "enrgy", "energy"),
    hippynn("arrays_missing_label", "to_arrays(frames, ['stress'])", "stress"),
    hippynn("arrays_labels_text", "to_arrays(frames, 'energy')", "labels", "energy"),
    hippynn("arrays_dtype", "to_arrays(frames, dtype='int8')", "dtype", "int8"),
    hippynn("arrays_allow_missing", "to_arrays(frames, allow_missing='yes')", "allow_missing", "yes"),
    hippynn("energies_of_no_node", "initialize_energies(None, None)", "energy_node", "NoneType"),
    hippynn("arrays_mixed_periodicity", "to_arrays([frames[0], LabelledStructure('water', molecule('H2O'), {'energy': np.array(1.0), 'forces': np.zeros((3, 3))})])", "water", "periodic"),
    hippynn("keys_of_one_text", "structure_keys('abc')", "ids|list|text"),
    hippynn("targets_no_database", "add_teacher_targets({}, 'run')", "database|Database"),
    hippynn("loss_no_nodes", "distillation_loss(None, None, weights=STUDENT, energies='total')", "node"),
    hippynn("loss_energies", "distillation_loss(None, None, weights=STUDENT, energies='both')", "energies", "both", "total"),
    hippynn("export_nowhere", "export_student('nowhere', 'out')", "nowhere"),
    hippynn("export_into_a_file", "export_student('runs', 'test.extxyz')", "runs|test.extxyz"),
    hippynn("teacher_of_nothing", "HippynnTeacher([])", "model|teacher"),
    hippynn("teacher_of_a_number", "HippynnTeacher(3)", "3|int"),
    hippynn("teacher_batch_size", "HippynnTeacher([], batch_size=0)", "batch_size|model"),
    hippynn("schedule_of_nothing", "LossSchedule(None)", "loss|DistillationLoss"),
    hippynn("cache_no_model", "cache_pairs(None, None)", "model"),
    hippynn("cache_no_images", "cache_pairs(None, None, n_images=0)", "n_images|model"),
]

CASES = [*(_trained(case) for case in CHECKPOINTS), *STRANGERS, *ADAPTERS]
