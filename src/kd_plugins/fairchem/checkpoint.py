"""Reading a fairchem EquiformerV2 checkpoint, of any age, as a hydra model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.settings import TeacherSettings
from kd_plugins.torch_files import load_torch_file

_OLD_NORMALIZERS = {"target": "energy", "grad_target": "forces"}
_OLD_HEADS = {"energy_block": "energy", "force_block": "forces"}
_OTHERS = ("schnet", "painn", "gemnet", "escn", "esen", "scn", "dimenet", "hydra")
"""How the names of fairchem's other backbones begin; some open files that their settings name."""
OTHER_TEACHERS = (
    "to learn from its energies and forces, label once with `kd-plugins label --fairchem X.yml "
    "--teacher fairchem checkpoint={path} --store targets` and train on `targets: targets` in "
    "place of `teacher:`"
)
"""What to do with a teacher of another architecture."""
_UNUSED_OLD_ARGUMENTS = ("num_atoms", "bond_feat_dim", "num_targets")


@dataclass(frozen=True)
class Checkpoint:
    """A teacher as its file describes it, in today's names.

    Args:
        path: of the file.
        model: keyword arguments of fairchem's ``HydraModel``.
        state: parameter and buffer name to tensor, without ``module.`` prefixes.
        normalizers: target name to the state of fairchem's ``Normalizer``.
        elementrefs: target name to the state of fairchem's ``LinearReferences``.
        averages: the averaged weights, if they are to teach, in the order in which the trained
            parameters stand in ``state``; fairchem saves them without names.
    """

    path: Path
    model: Mapping[str, Any]
    state: Mapping[str, Tensor]
    normalizers: Mapping[str, Any]
    elementrefs: Mapping[str, Any]
    averages: Sequence[Tensor] | None = None


def read_checkpoint(settings: TeacherSettings) -> Checkpoint:
    """Read the teacher's checkpoint on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ConfigError: if it is no fairchem checkpoint, holds pickled code that is not trusted, or
            the choice between raw and averaged weights is open.
    """
    raw = _load(settings)
    path = Path(settings.checkpoint).expanduser()
    model, old = _hydra_arguments(raw["config"], path)
    if not settings.trust_pickle:
        check_names(model, path)
    return Checkpoint(
        path=path,
        model=model,
        state={_current_name(key, old): value for key, value in raw["state_dict"].items()},
        normalizers={
            _OLD_NORMALIZERS.get(name, name): value
            for name, value in (raw.get("normalizers") or {}).items()
        },
        elementrefs=raw.get("elementrefs") or {},
        averages=_averages(raw, settings),
    )


def load_checkpoint(path: str | Path, *, trust_pickle: bool, remedy: str) -> dict[str, Any]:
    """Return what fairchem saved, read without running it.

    Args:
        path: of the file.
        trust_pickle: read pickled code, too.
        remedy: how the user says that.

    Raises:
        OSError: if there is no such file, or it may not be read.
        ConfigError: if it is no fairchem checkpoint, or holds pickled code that is not trusted.
    """
    path = Path(path).expanduser()
    try:
        raw = load_torch_file(path, trust_pickle=trust_pickle, remedy=remedy)
    except ValueError as error:
        raise ConfigError(f"{path.name}: not a checkpoint; {error}") from error
    missing = {"config", "state_dict"} - set(raw if isinstance(raw, dict) else ())
    if missing:
        raise ConfigError(
            f"{path.name}: not a fairchem checkpoint, it has no {' and no '.join(sorted(missing))}"
        )
    return raw


def check_names(model: Mapping[str, Any], path: Path) -> None:
    """Refuse a model whose parts are named by a module of Python.

    fairchem looks a name up among its models, and one with a dot anywhere in Python, to call it
    with the rest of the configuration: whoever wrote the file would choose what is run.

    Args:
        model: as the file configures it.
        path: for the message.

    Raises:
        ConfigError: naming the part.
    """
    backbone, heads = model.get("backbone"), model.get("heads")
    names = {"model.name": model.get("name")}
    if isinstance(backbone, Mapping):
        names["model.backbone.model"] = backbone.get("model")
    for head, one in heads.items() if isinstance(heads, Mapping) else ():
        names[f"model.heads.{head}.module"] = one.get("module") if isinstance(one, dict) else one
    for where, name in names.items():
        if name is not None and (not isinstance(name, str) or "." in name):
            raise ConfigError(
                f"{path.name}: its {where} is {name!r}, which would import a module that the file "
                "names and call what is in it; expected the name of a model of fairchem"
            )


def _load(settings: TeacherSettings) -> dict[str, Any]:
    path = Path(settings.checkpoint).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"task.distill.teacher.checkpoint: there is no file {settings.checkpoint!r}"
        )
    remedy = "set task.distill.teacher.trust_pickle: true"
    return load_checkpoint(path, trust_pickle=settings.trust_pickle, remedy=remedy)


def _hydra_arguments(config: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], bool]:
    """Return the arguments of ``HydraModel``, and whether the model was the older single class."""
    model = copy.deepcopy(config.get("model")) if isinstance(config, Mapping) else None
    if isinstance(model, str):
        model = {"name": model, **copy.deepcopy(config.get("model_attributes", {}))}
    if not isinstance(model, dict):
        raise ConfigError(f"{path.name}: not a fairchem checkpoint, its config has no model")
    name = model.pop("name", None)
    if name == "equiformer_v2":
        return _from_single_class(model), True
    backbone = model.get("backbone")
    kind = backbone.get("model") if isinstance(backbone, Mapping) else None
    if name != "hydra" or str(kind).startswith(_OTHERS):
        found = f"a {name!r}" if name != "hydra" else f"a 'hydra' with a {kind!r}"
        raise ConfigError(
            f"{path.name}: the teacher is {found}; expected an EquiformerV2, as 'hydra' or as the "
            f"older 'equiformer_v2'; {OTHER_TEACHERS.format(path=path)}"
        )
    model.pop("finetune_config", None)
    return model, False


def _from_single_class(arguments: dict[str, Any]) -> dict[str, Any]:
    if arguments.get("use_energy_lin_ref"):
        raise ConfigError(
            "the teacher adds per-element references inside the model (use_energy_lin_ref: true), "
            "which today's EquiformerV2 does not; save it with use_energy_lin_ref: false and give "
            "the references as fairchem's elementrefs"
        )
    for unused in _UNUSED_OLD_ARGUMENTS:
        arguments.pop(unused, None)
    heads = {"energy": {"module": "equiformerV2_scalar_head"}}
    if arguments.get("regress_forces", True):
        heads["forces"] = {"module": "equiformerV2_vector_head"}
    return {
        "backbone": {"model": "equiformer_v2_backbone", **arguments},
        "heads": heads,
        "otf_graph": arguments.get("otf_graph", True),
    }


def _current_name(key: str, old: bool) -> str:
    while key.startswith("module."):
        key = key.removeprefix("module.")
    if not old:
        return key
    block = key.split(".")[0]
    return f"output_heads.{_OLD_HEADS[block]}.{key}" if block in _OLD_HEADS else f"backbone.{key}"


def _averages(raw: Mapping[str, Any], settings: TeacherSettings) -> list[Tensor] | None:
    """Return the averaged weights if the settings ask for them."""
    name, averages = Path(settings.checkpoint).name, raw.get("ema")
    if averages is None and settings.weights == "ema":
        raise ConfigError(f"{name}: weights: ema was asked for, but the file has no averages")
    if averages is not None and settings.weights is None:
        raise ConfigError(
            f"{name} holds raw and averaged weights; say which one teaches: "
            "task.distill.teacher.weights: ema (what fairchem validates with) or raw"
        )
    return averages["shadow_params"] if averages and settings.weights == "ema" else None
