"""Reading a fairchem EquiformerV2 checkpoint, of any age, as a hydra model."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.settings import TeacherSettings

_OLD_NORMALIZERS = {"target": "energy", "grad_target": "forces"}
_OLD_HEADS = {"energy_block": "energy", "force_block": "forces"}
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
    model, old = _hydra_arguments(raw["config"], settings.checkpoint)
    return Checkpoint(
        path=Path(settings.checkpoint),
        model=model,
        state={_current_name(key, old): value for key, value in raw["state_dict"].items()},
        normalizers={
            _OLD_NORMALIZERS.get(name, name): value
            for name, value in (raw.get("normalizers") or {}).items()
        },
        elementrefs=raw.get("elementrefs") or {},
        averages=_averages(raw, settings),
    )


def _load(settings: TeacherSettings) -> dict[str, Any]:
    path = Path(settings.checkpoint)
    if not path.is_file():
        raise FileNotFoundError(
            f"task.distill.teacher.checkpoint: there is no file {settings.checkpoint!r}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch guesses at files that are not its own
            raw = torch.load(path, map_location="cpu", weights_only=not settings.trust_pickle)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path.name}: not a checkpoint of plain tensors ({_first_line(error)}); if you trust "
            "where the file comes from, set task.distill.teacher.trust_pickle: true"
        ) from error
    except Exception as error:  # whatever reading a foreign file leads to
        raise ConfigError(f"{path.name}: not a torch file ({_first_line(error)})") from error
    missing = {"config", "state_dict"} - set(raw if isinstance(raw, dict) else ())
    if missing:
        raise ConfigError(
            f"{path.name}: not a fairchem checkpoint, it has no {' and no '.join(sorted(missing))}"
        )
    return raw


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def _hydra_arguments(config: Mapping[str, Any], path: str) -> tuple[dict[str, Any], bool]:
    """Return the arguments of ``HydraModel``, and whether the model was the older single class."""
    model = copy.deepcopy(config["model"])
    if isinstance(model, str):
        model = {"name": model, **copy.deepcopy(config.get("model_attributes", {}))}
    name = model.pop("name", None)
    if name == "hydra":
        model.pop("finetune_config", None)
        return model, False
    if name == "equiformer_v2":
        return _from_single_class(model), True
    raise ConfigError(
        f"{Path(path).name}: the teacher is a {name!r}; expected an EquiformerV2, as 'hydra' or "
        "as the older 'equiformer_v2'"
    )


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
