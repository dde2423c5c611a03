"""Checkpoints: reading a teacher's of any age, and what a run keeps beside fairchem's own.

fairchem's checkpoint of the student stays a plain one. Beside it lie ``kd_checkpoint.pt`` with the
projection, and one ``kd_step_state_rank<i>.pt`` a rank with random states.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.settings import TeacherSettings
from kd_plugins.files import whole_file
from kd_plugins.numbers import shown
from kd_plugins.torch_files import load_torch_file

_OLD_NORMALIZERS = {"target": "energy", "grad_target": "forces"}
_OLD_HEADS = {"energy_block": "energy", "force_block": "forces"}
_UNUSED_OLD_ARGUMENTS = ("num_atoms", "bond_feat_dim", "num_targets")
_OTHERS = ("schnet", "painn", "gemnet", "escn", "esen", "scn", "dimenet", "hydra")
"""How the names of fairchem's other backbones begin; some open files that their settings name."""
OTHER_TEACHERS = (
    "to learn from its energies and forces, label once with `kd-plugins label --fairchem X.yml "
    "--teacher fairchem checkpoint={path} --store targets` and train on `targets: targets` in "
    "place of `teacher:`"
)
"""The remedy for a teacher of another architecture."""
NEW_RUN = "delete it and start under a new --timestamp-id"
"""The remedy for a file of a run's own that this package did not write."""


class CheckpointError(OSError):
    """A checkpoint that could not be written; the one before it is whole."""


@dataclass(frozen=True)
class Checkpoint:
    """A teacher's checkpoint in the names of today's fairchem.

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
        ConfigError: if it is no fairchem checkpoint of an EquiformerV2, holds pickled code that is
            not trusted, or the choice between raw and averaged weights is open.
    """
    path = Path(settings.checkpoint).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"task.distill.teacher.checkpoint: there is no file {settings.checkpoint!r}"
        )

    remedy = "set task.distill.teacher.trust_pickle: true"
    raw = load_checkpoint(path, trust_pickle=settings.trust_pickle, remedy=remedy)

    model, is_old = _hydra_arguments(raw["config"], path)
    if not settings.trust_pickle:
        check_model_names(model, path)

    return Checkpoint(
        path=path,
        model=model,
        state={_current_name(key, is_old): value for key, value in raw["state_dict"].items()},
        normalizers={
            _OLD_NORMALIZERS.get(name, name): value
            for name, value in (raw.get("normalizers") or {}).items()
        },
        elementrefs=raw.get("elementrefs") or {},
        averages=_averages(raw, settings),
    )


def load_checkpoint(path: str | Path, *, trust_pickle: bool, remedy: str) -> dict[str, Any]:
    """Return what fairchem saved, read without running code that it may hold.

    Args:
        path: of the file.
        trust_pickle: read pickled code, too.
        remedy: how the user turns that on, for the message.

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


def check_model_names(model: Mapping[str, Any], path: Path) -> None:
    """Refuse a model with parts that are named by a module of Python.

    fairchem looks a name up among its models, and one with a dot anywhere in Python, to call it
    with the rest of the configuration: the author of the file would choose what is run.

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


def _hydra_arguments(config: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], bool]:
    """Return the arguments of ``HydraModel``, and whether the model was the older single class."""
    # fairchem pops keys out of a configuration, so nothing of the file's own is handed out.
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

    # It would open the checkpoint that the teacher itself was started from.
    model.pop("finetune_config", None)
    return model, False


def _from_single_class(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the hydra arguments of a model of fairchem's older single class."""
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


def _current_name(key: str, is_old: bool) -> str:
    # DistributedDataParallel adds a prefix; files of 2023 have two.
    while key.startswith("module."):
        key = key.removeprefix("module.")
    if not is_old:
        return key

    block = key.split(".")[0]
    return f"output_heads.{_OLD_HEADS[block]}.{key}" if block in _OLD_HEADS else f"backbone.{key}"


def _averages(raw: Mapping[str, Any], settings: TeacherSettings) -> list[Tensor] | None:
    """Return the averaged weights if the settings choose them."""
    name, averages = Path(settings.checkpoint).name, raw.get("ema")
    if averages is None and settings.weights == "ema":
        raise ConfigError(f"{name}: weights: ema was asked for, but the file has no averages")
    if averages is not None and settings.weights is None:
        raise ConfigError(
            f"{name} holds raw and averaged weights; say which one teaches: "
            "task.distill.teacher.weights: ema (what fairchem validates with) or raw"
        )
    return averages["shadow_params"] if averages and settings.weights == "ema" else None


def read_student_checkpoint(path: Path, trust_pickle: bool) -> Mapping[str, Any]:
    """Return the checkpoint of fairchem from which a student goes on, on the CPU.

    Raises:
        ConfigError: if it is not there, damaged, something else, or holds pickled code that is not
            trusted.
    """
    remedy = "set task.distill.student.trust_pickle: true"
    try:
        state = load_torch_file(path, trust_pickle=trust_pickle, remedy=remedy)
    except FileNotFoundError as error:
        raise ConfigError(f"--checkpoint: there is no file {str(path)!r}") from error
    except ValueError as error:
        raise ConfigError(f"checkpoint {error}") from error

    missing = [
        name
        for name in ("state_dict", "normalizers")
        if not isinstance(state, Mapping) or not isinstance(state.get(name), Mapping)
    ]
    if missing:
        raise ConfigError(f"checkpoint {path}: not of a fairchem trainer, it has no {missing[0]}")

    # fairchem opens, and unpickles, a file that stands in the place of the scale factors.
    if not isinstance(state.get("scale_dict") or {}, Mapping):
        raise ConfigError(
            f"checkpoint {path}: scale_dict: expected numbers by name, got "
            f"{shown(state['scale_dict'])}; save it without"
        )
    return state


def sidecar_path(checkpoint: Path) -> Path:
    """Return the path of the distillation state beside a checkpoint."""
    return checkpoint.with_name(f"kd_{checkpoint.name}")


def pending_path(checkpoint: Path) -> Path:
    """Return the path of that state while fairchem's checkpoint is being replaced."""
    return checkpoint.with_name(f"kd_{checkpoint.name}.pending")


def write_state(state: dict[str, Any], path: Path) -> None:
    """Save a state so that a killed run leaves either the old file or the new one.

    Raises:
        CheckpointError: naming the file, as on a full disk.
    """
    with naming_failed_write(path), whole_file(path) as file:
        torch.save(state, file)


@contextmanager
def naming_failed_write(path: Path, *partial: Path) -> Iterator[None]:
    """Name the checkpoint that could not be written, and remove its parts.

    Args:
        path: of the checkpoint.
        partial: files in which it is being made.

    Raises:
        CheckpointError: for an error of the disk; any other error as it was.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        for file in partial:
            with suppress(OSError):
                file.unlink(missing_ok=True)
        if isinstance(error, CheckpointError) or not _is_of_the_disk(error):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CheckpointError(
            f"{path} could not be written: {' '.join(str(reason).split())}; the checkpoint before "
            "it is whole: make room and resume with the same --timestamp-id"
        ) from error


def _is_of_the_disk(error: OSError | RuntimeError) -> bool:
    # torch's own writer raises a RuntimeError with a path of its C++ source and the word "write".
    return isinstance(error, OSError) or "write" in str(error).lower()


def read_state(path: Path) -> Mapping[str, Any]:
    """Return what `write_state` wrote beside a checkpoint.

    Raises:
        ConfigError: if it is damaged or something else.
    """
    try:
        state = load_torch_file(path, trust_pickle=False, remedy=NEW_RUN)
    except ValueError as error:
        raise ConfigError(f"{error}; or {NEW_RUN}") from error
    if not isinstance(state, Mapping):
        raise ConfigError(f"{path}: expected a mapping; {NEW_RUN}")
    return state


def read_sidecar(checkpoint: Path, step: int) -> Mapping[str, Any] | None:
    """Return the distillation state that belongs to a checkpoint of a step, or None.

    A run that was killed between the two files has it in the pending one.

    Raises:
        ConfigError: if it is damaged.
    """
    for path in (pending_path(checkpoint), sidecar_path(checkpoint)):
        if path.is_file():
            # Either file may be older than the checkpoint, so the step decides.
            state = read_state(path)
            if state.get("step") == step and isinstance(state.get("teacher"), str):
                return state
    return None


def is_of_teacher(
    state: Mapping[str, Any], fingerprint: str, checkpoint: Path, *, is_resumed: bool
) -> bool:
    """Return whether a state was written with this teacher.

    Args:
        state: beside the checkpoint.
        fingerprint: of the teacher of this run.
        checkpoint: for messages.
        is_resumed: whether the checkpoint is this run's own, which must keep its teacher.

    Raises:
        ConfigError: if a run is to be resumed with another teacher than it had.
    """
    found = state["teacher"]
    if found != fingerprint and is_resumed:
        raise ConfigError(
            f"{checkpoint.name} was written with another teacher (weights {found[:12]}, now "
            f"{fingerprint[:12]}); resume with that teacher or start under a new --timestamp-id"
        )
    return bool(found == fingerprint)


def random_state(device: torch.device) -> Tensor:
    """Return the state of the random generator of a device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def drawing_from(state: Tensor | None, device: torch.device) -> Iterator[None]:
    """Draw random numbers from a given state (or from seed 0), then restore the outer state."""
    # Without devices, fork_rng would save the state of every GPU there is.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if state is None:
            torch.manual_seed(0)
        elif device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
        yield


class StepState:
    """Random states, best metric and learning rates, which fairchem's checkpoint lacks.

    EquiformerV2 rolls every edge at random, so without the random state a resumed run is another
    run; and fairchem saves before it validates and steps its schedule, so its file holds the best
    metric and the learning rate of one step before. All are written at the first training step
    *after* a checkpoint and restored at that step of the resumed run.

    Args:
        folder: the checkpoint folder.
        rank: of this process; each has its own file.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.name = folder, f"kd_step_state_rank{rank}.pt"
        self._after: int | None = None
        self._restored: Mapping[str, Any] | None = None
        self._is_missing = False

    def checkpoint_written(self, step: int) -> None:
        """Note that the state has to be written before the next training step."""
        self._after = step

    def checkpoint_read(self, step: int, folder: Path) -> dict[str, Any] | None:
        """Return what belongs to a checkpoint of a step in a folder, if it is there."""
        path = folder / self.name
        if path.is_file():
            state = read_state(path)
            self._restored = state if state.get("after") == step else None
        self._is_missing = self._restored is None
        return self._restored["host"] if self._restored else None

    def at_step(self, host: Callable[[], dict[str, Any]]) -> None:
        """Restore or write the state; to be called before each training step's forward.

        Args:
            host: returns fairchem's best metric and schedule; called only to write them.
        """
        if self._restored is not None:
            _restore_random_states(self._restored)
        elif self._is_missing:
            logging.warning(
                "no random state was kept for this checkpoint (its run stopped before the next "
                "step): training goes on, but not bit for bit as if it had not been stopped"
            )
        self._restored, self._is_missing = None, False

        if self._after is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            state = {"after": self._after, "host": host(), **_random_states()}
            write_state(state, self.folder / self.name)
            self._after = None


def _random_states() -> dict[str, Any]:
    """Return the states of torch, CUDA, numpy and Python, as types that need no pickled code."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, numbers, next_gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "python": [version, list(numbers), next_gauss],
    }


def _restore_random_states(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])

    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))

    version, numbers, next_gauss = state["python"]
    random.setstate((version, tuple(numbers), next_gauss))
