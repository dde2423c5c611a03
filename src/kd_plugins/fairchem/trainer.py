"""fairchem trainers that add a distillation loss to fairchem's own."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.datasets.base_dataset import Subset
from fairchem.core.models.base import HydraModel
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer
from fairchem.core.trainers import OCPTrainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError
from kd_plugins.fairchem.checkpointing import (
    StepState,
    is_of_teacher,
    naming_failed_write,
    pending_path,
    read_sidecar,
    read_student_checkpoint,
    sidecar_path,
    write_state,
)
from kd_plugins.fairchem.convert import (
    STRESS_PARTS,
    EmbeddingHooks,
    EnergyOffsets,
    Units,
    naming_lone_atoms,
)
from kd_plugins.fairchem.data import (
    CheckedDataset,
    Collater,
    Requirements,
    TargetInputs,
    UnusableStructure,
)
from kd_plugins.fairchem.loss import Distiller, check_pair
from kd_plugins.fairchem.preflight import (
    EXAMINED,
    check_covered,
    check_dataset,
    check_teacher,
    fit_energy_offsets,
)
from kd_plugins.fairchem.settings import check_host, read_settings
from kd_plugins.fairchem.unlabelled import (
    SPLIT,
    MixedDataset,
    is_mixed,
    labelled_part,
    loss_of_none,
    open_unlabelled,
    settings_of,
)
from kd_plugins.store import StoreError

_WHERE = "the same command with --debug shows where"


class DistillMixin:
    """Distillation for an `OCPTrainer`, through the methods that fairchem has for extending it.

    The teacher and the projection stand outside ``self.model``, so fairchem's EMA, clipping,
    counting and saving see the student alone. While every weight is zero nothing is computed in
    training, and the run is fairchem's own to the last bit.
    """

    def __init__(self, task: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        if kwargs.get("gp_gpus") is not None:
            raise ConfigError("gp_gpus: distillation needs whole graphs on each rank; leave it out")
        check_host(kwargs)

        self.settings = read_settings(task)
        self._loss = self.settings.terms.loss()
        if not self._loss.terms:
            logging.warning("task.distill.terms is empty: this run learns from the labels alone")

        # Before fairchem sets anything up, so that a wrong path costs no minutes.
        dataset = kwargs.get("dataset") or {}
        self._unlabelled = settings_of(dataset)
        if self._unlabelled is not None and not self._loss.terms:
            raise ConfigError(
                f"dataset.{SPLIT}: task.distill.terms is empty, so nothing is learnt of structures "
                "without labels; give a term, or leave them out"
            )
        self._inputs = TargetInputs.from_settings(self.settings, self._loss.terms, dataset)
        self._requirements = Requirements()
        self._is_training = False
        with naming_setup():
            super().__init__(task, *args, **kwargs)

    def load_datasets(self) -> None:
        """Load them as fairchem does, mix in those without labels, label what `auto` lacks."""
        super().load_datasets()
        if self._unlabelled is not None and self.train_dataset is not None:
            self._mix_in(open_unlabelled(self._unlabelled))
        self._inputs.label_missing(self._datasets(), self.device)

    def _mix_in(self, unlabelled: Any) -> None:
        """Train on unlabelled structures as well, in one sampler and loader of fairchem's."""
        labelled = self.train_dataset
        self.train_dataset = MixedDataset(labelled, unlabelled, self.output_targets)
        logging.info(
            f"training on {len(labelled)} structures with labels and {len(unlabelled)} that only "
            "the teacher labels"
        )

        batch_size = self.config["optim"].get("batch_size", 1)
        self.train_sampler = self.get_sampler(self.train_dataset, batch_size, shuffle=True)
        self.train_loader = self.get_dataloader(self.train_dataset, self.train_sampler)

    def get_dataloader(self, dataset: Any, sampler: Any, workers: int | None = None) -> Any:
        """Load as fairchem does, with targets from a store; unusable structures are noticed."""
        if dataset is self.test_dataset:
            return super().get_dataloader(dataset, sampler, workers)

        name = "train" if dataset is self.train_dataset else "val"
        checked = CheckedDataset(dataset, name, self._requirements)

        # fairchem gives its loader the trainer's collater, which other loaders go on using.
        collate = self.collater
        self.collater = Collater(collate, self._inputs)
        try:
            return super().get_dataloader(checked, sampler, workers)
        finally:
            self.collater = collate

    def load_model(self) -> None:
        """Build the student as fairchem does, then the teacher; start and freeze the student."""
        super().load_model()
        terms = self._loss.terms
        student = EmbeddingHooks(self._unwrapped_model, "student")
        folder = self._checkpoint_folder / "targets"
        teacher = self._inputs.provider(terms, folder, self.device)
        check_pair(student, teacher, terms, self.settings.projection, self.output_targets)

        if self.settings.student.initialize == "teacher":
            model = self._inputs.starting_model(teacher, self.device)
            self._teacher_units = model.units
            start_from_teacher(self._unwrapped_model, model.model)
        if self.settings.student.freeze:
            freeze(self._unwrapped_model, self.settings.student.freeze)
            self._wrap_again()

        labels = [name for name in ("energy", "forces") if name in self.output_targets]
        self.distiller = Distiller(self.settings, self._loss, student, teacher, self.device, labels)
        self._requirements.elements = self.distiller.known_elements()
        self.step_state = StepState(self._checkpoint_folder, distutils.get_rank())

    def _datasets(self) -> dict[str, Any]:
        """Return the data sets whose structures have targets, by their names in the YAML."""
        train = self.train_dataset
        parts = train.parts if isinstance(train, MixedDataset) else {"train": train}
        every = {**parts, "val": self.val_dataset}
        return {name: dataset for name, dataset in every.items() if dataset is not None}

    def _wrap_again(self) -> None:
        """Make DistributedDataParallel forget the parameters that are now frozen."""
        if isinstance(self.model, DistributedDataParallel):
            self.model = DistributedDataParallel(self._unwrapped_model)

    def load_references_and_normalizers(self) -> None:
        """Load them as fairchem does; a student that starts as its teacher takes its units."""
        # Those that are fitted are fitted to labels.
        every = self.train_dataset
        self.train_dataset = self._datasets().get("train")
        super().load_references_and_normalizers()
        self.train_dataset = every

        if self.settings.student.initialize == "teacher":
            _take_over(self.normalizers, self._teacher_units.normalizers, "normalizer")
            _take_over(self.elementrefs, self._teacher_units.elementrefs, "references")

    def load_loss(self) -> None:
        """Load it as fairchem does; from now on each structure must have the labels."""
        super().load_loss()
        unknown = [name for name in self._labels if name not in self.output_targets]
        if unknown:
            raise ConfigError(
                f"loss_functions: {unknown[0]!r} is no output; the YAML's outputs: "
                f"{', '.join(self.output_targets)}"
            )
        self._requirements.labels = tuple(self._labels)

    def load_optimizer(self) -> None:
        """Add an optimizer of the projection's own; fairchem's keeps its shape on disk."""
        super().load_optimizer()
        self.distiller.load_optimizer(self.config["optim"])

    def train(self, *args: Any, **kwargs: Any) -> None:
        """Check the labels and the teacher against them, then train as fairchem does."""
        self._preflight()
        self._is_training = True
        try:
            super().train(*args, **kwargs)
        finally:
            self._is_training = False

    def validate(self, split: str = "val", *args: Any, **kwargs: Any) -> Any:
        """Validate as fairchem does; in training on a part of the structures, where one is set."""
        if self.settings.align and self.distiller.teacher.energy_offsets is None:
            self._preflight()

        part = self._validation_part if self._is_training and split == "val" else None
        if part is None:
            return super().validate(split, *args, **kwargs)

        whole, self.val_loader = self.val_loader, part
        try:
            return super().validate(split, *args, **kwargs)
        finally:
            self.val_loader = whole

    @cached_property
    def _validation_part(self) -> Any:
        """Return a loader of the structures that validations in training are of, None for all."""
        wanted, dataset = self.settings.validation_structures, self.val_dataset
        if wanted is None or dataset is None or wanted >= len(dataset):
            return None

        generator = torch.Generator().manual_seed(self.settings.seed)
        drawn = torch.randperm(len(dataset), generator=generator)[:wanted].sort().values
        # fairchem's data sets are subsets, whose sizes of structures it cannot find through two.
        indices = [dataset.indices[place] for place in drawn.tolist()]
        part = Subset(dataset.dataset, indices, dataset.metadata)
        logging.info(
            f"validating on {wanted} of {len(dataset)} structures in training, drawn by seed "
            f"{self.settings.seed} (task.distill.validation_structures)"
        )

        optim = self.config["optim"]
        batch_size = optim.get("eval_batch_size", optim.get("batch_size", 1))
        return self.get_dataloader(part, self.get_sampler(part, batch_size, shuffle=False))

    def _preflight(self) -> None:
        """Check labels and targets, and align the teacher's zero of energy where it is to be."""
        if self.train_loader is None or len(self.train_loader) == 0:
            raise ConfigError("dataset.train: no src to train on, or no batch in it")

        settings, datasets, teacher = self.settings, self._datasets(), self.distiller.teacher
        limit = settings.preflight
        samples = {
            name: check_dataset(
                dataset,
                name,
                () if name == SPLIT else self._labels,
                self._requirements.elements,
                limit,
                limit if settings.align else EXAMINED,
            )
            for name, dataset in datasets.items()
        }
        n_workers = self.config["optim"].get("num_workers", 0)
        self._inputs.check_datasets(datasets, settings, self.device, n_workers)

        # The offset is what alignment takes away.
        ignored = ("energy-offset",) if settings.align else ()
        teacher.energy_offsets = None
        inputs = check_teacher(
            samples["train"],
            teacher,
            self._loss.terms,
            self.device,
            settings.allow,
            ignored,
            unlabelled=samples.get(SPLIT, ())[:EXAMINED],
        )
        if settings.align:
            references = fit_energy_offsets(inputs)
            for name in samples.keys() - {"train"}:
                check_covered(samples[name], name, references)
            teacher.energy_offsets = EnergyOffsets.of(references.offsets)

    @property
    def _labels(self) -> list[str]:
        return [name for name, _ in self.loss_functions]

    def _forward(self, batch: Batch | UnusableStructure) -> dict[str, Tensor]:
        if isinstance(batch, UnusableStructure):
            raise ConfigError(batch.reason)

        # Validations draw random rolls, too, but belong to no step.
        if self.model.training:
            self.step_state.at_step(self._between_steps)

        self.distiller.before_student()
        with naming_lone_atoms(self._unwrapped_model.backbone, batch, "student"):
            return super()._forward(batch)

    def _compute_loss(self, out: dict[str, Tensor], batch: Batch) -> Tensor:
        loss = self._label_loss(out, batch)

        # It stays on the device until the metrics are copied, all at once.
        self._task_loss = loss.detach()
        distillation = self.distiller(
            out,
            batch,
            step=self.step,
            training=self.model.training,
            units=Units(self.normalizers, self.elementrefs),
            masks=self._free_atoms(batch),
            evaluated=self._evaluated_atoms(batch),
        )
        return loss if distillation is None else loss + distillation

    def _label_loss(self, out: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return fairchem's own loss, of the structures that have labels."""
        if not is_mixed(batch):
            return super()._compute_loss(out, batch)
        if len(batch.kd_labelled_structures) == 0:
            return loss_of_none(out, batch, self.loss_functions)
        return super()._compute_loss(*labelled_part(out, batch, self.output_targets))

    def _free_atoms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the atoms whose forces count, by the same rule as fairchem's own loss."""
        forces = self.output_targets.get("forces", {})
        if not forces.get("train_on_free_atoms", True):
            return {}
        return dict.fromkeys(("forces", "force_derivatives"), batch.fixed == 0)

    def _evaluated_atoms(self, batch: Batch) -> Tensor:
        """Return the atoms whose forces fairchem's own metrics are of."""
        if self.output_targets.get("forces", {}).get("eval_on_free_atoms", True):
            return batch.fixed == 0
        return torch.ones_like(batch.fixed, dtype=torch.bool)

    def _compute_metrics(
        self, out: dict[str, Tensor], batch: Batch, evaluator: Any, metrics: Any = None
    ) -> dict[str, Any]:
        if not is_mixed(batch):
            metrics = super()._compute_metrics(out, batch, evaluator, metrics)
        elif len(batch.kd_labelled_structures):
            part = labelled_part(out, batch, self.output_targets)
            metrics = super()._compute_metrics(*part, evaluator, metrics)
        else:
            metrics = {} if metrics is None else metrics

        for name, value in self.distiller.take_metrics(task_loss=self._task_loss).items():
            metrics = evaluator.update(name, value, metrics)
        return metrics

    def _backward(self, loss: Tensor) -> None:
        self.distiller.zero_grad()
        scale = self.scaler.get_scale() if self.scaler else None
        learning_rate = self.scheduler.get_lr()
        super()._backward(loss)

        # fairchem's scaler leaves a step out and halves its scale where a gradient overflowed.
        if scale is None or self.scaler.get_scale() >= scale:
            self.distiller.step(learning_rate, scale, self.clip_grad_norm)

    @property
    def _checkpoint_folder(self) -> Path:
        return Path(self.config["cmd"]["checkpoint_dir"])

    def save(
        self,
        metrics: Any = None,
        checkpoint_file: str = "checkpoint.pt",
        training_state: bool = True,
    ) -> str | None:
        """Save as fairchem does, but whole or not at all, and the distillation state beside it."""
        target = self._checkpoint_folder / checkpoint_file
        partial, pending = target.with_name(f"{target.name}.partial"), pending_path(target)
        state = {"step": self.step if training_state else 0, **self.distiller.state_dict()}

        written = None
        with naming_failed_write(target, partial, pending):
            # The new state is there before fairchem's file is replaced: a run that is killed in
            # between finds the one that fits, by its step.
            if distutils.is_master() and not self.is_debug:
                write_state(state, pending)
            written = super().save(metrics, partial.name, training_state)
            if written is not None:
                os.replace(partial, target)
                os.replace(pending, sidecar_path(target))

        if training_state and not self.is_debug:
            self.step_state.checkpoint_written(self.step)
        return None if written is None else str(target)

    def load_checkpoint(
        self, checkpoint_path: str, checkpoint: Any = None, inference_only: bool = False
    ) -> None:
        """Load as fairchem does, then the projection and what fairchem's file lacks."""
        path = Path(checkpoint_path).expanduser()
        if checkpoint is None:
            logging.info(f"loading checkpoint {path}")
            checkpoint = read_student_checkpoint(path, self.settings.student.trust_pickle)
        with naming_misfit(path):
            super().load_checkpoint(str(path), checkpoint, inference_only)
        if inference_only:
            return

        # Of another run's checkpoint the student goes on, and the projection starts afresh.
        state, fingerprint = read_sidecar(path, self.step), self.distiller.teacher.fingerprint
        is_resumed = path.parent == self._checkpoint_folder
        if state and not is_of_teacher(state, fingerprint, path, is_resumed=is_resumed):
            state = None
        self.distiller.load_state_dict(state, path)

        between = self.step_state.checkpoint_read(self.step, path.parent) if self.step else None
        if between is not None:
            self._set_between_steps(between)

    def _between_steps(self) -> dict[str, Any]:
        """Return what fairchem changes between its checkpoint and its next step."""
        schedule = getattr(self.scheduler, "scheduler", None)
        return {
            "best_val_metric": self.best_val_metric,
            "learning_rates": [group["lr"] for group in self.optimizer.param_groups],
            "schedule": schedule.state_dict() if schedule else None,
        }

    def _set_between_steps(self, between: dict[str, Any]) -> None:
        self.best_val_metric = between["best_val_metric"]

        for group, rate in zip(self.optimizer.param_groups, between["learning_rates"], strict=True):
            group["lr"] = rate

        if between["schedule"] is not None:
            self.scheduler.scheduler.load_state_dict(between["schedule"])


class DistillTrainer(DistillMixin, OCPTrainer):
    """`OCPTrainer` with distillation: ``trainer: kd_plugins.fairchem.DistillTrainer``."""

    def load_extras(self) -> None:
        """Load them as fairchem does, which has another place for a warm-up in steps."""
        if (self.config["optim"].get("scheduler_params") or {}).get("warmup_steps") is not None:
            raise ConfigError(
                "optim.scheduler_params.warmup_steps: this trainer reads optim.warmup_steps; write "
                "it there, or take EqV2DistillTrainer"
            )
        super().load_extras()


class EqV2DistillTrainer(DistillMixin, EquiformerV2ForcesTrainer):
    """`EquiformerV2ForcesTrainer` (cosine schedule in epochs) with distillation.

    In YAML: ``trainer: kd_plugins.fairchem.EqV2DistillTrainer``.
    """

    def load_extras(self) -> None:
        """Load them as fairchem does; a warm-up in steps is turned into fairchem's in epochs."""
        optim = self.config["optim"]
        schedule = dict(optim.get("scheduler_params") or {})
        steps = schedule.pop("warmup_steps", None)
        if steps is not None:
            # fairchem multiplies by the steps of an epoch of each rank and rounds down.
            steps_an_epoch = 1 if self.train_loader is None else len(self.train_loader)
            schedule["warmup_epochs"] = (steps + 0.5) / steps_an_epoch
            self.config["optim"] = {**optim, "scheduler_params": schedule}
        super().load_extras()


def start_from_teacher(student: HydraModel, teacher: HydraModel) -> None:
    """Copy every student tensor from the teacher's tensor of the same name.

    A shallower student gets the teacher's first blocks, its norm and its heads.

    Raises:
        ConfigError: if a tensor has no counterpart of its shape, or energies are scaled otherwise.
    """
    source = teacher.state_dict()
    unmatched = [
        f"{name}: student {tuple(tensor.shape)}, teacher {_shape(source.get(name))}"
        for name, tensor in student.state_dict().items()
        if name not in source or source[name].shape != tensor.shape
    ]
    if unmatched:
        raise ConfigError(
            f"student.initialize: teacher needs a student that differs from its teacher in "
            f"num_layers only; {len(unmatched)} tensors have no counterpart, first {unmatched[0]}"
        )

    # The heads divide by these: with other values the same weights give other energies.
    for name in ("avg_num_nodes", "avg_degree"):
        ours, theirs = getattr(student.backbone, name), getattr(teacher.backbone, name)
        if ours != theirs:
            raise ConfigError(
                f"student.initialize: teacher needs the teacher's model.backbone.{name}: "
                f"{theirs}, got {ours}"
            )

    student.load_state_dict({name: source[name] for name in student.state_dict()})
    logging.info(f"student started from {len(student.state_dict())} tensors of its teacher")


def _shape(tensor: Tensor | None) -> tuple[int, ...] | str:
    return "none" if tensor is None else tuple(tensor.shape)


def freeze(student: nn.Module, patterns: Sequence[str]) -> int:
    """Stop training the parameters whose names match a shell-style pattern; return how many.

    Raises:
        ConfigError: if a pattern matches nothing, or nothing is left to train.
    """
    parameters = dict(student.named_parameters())
    for pattern in patterns:
        matching = [name for name in parameters if fnmatchcase(name, pattern)]
        if not matching:
            raise ConfigError(
                f"student.freeze: {pattern!r} matches no parameter; names look like "
                f"{next(iter(parameters))!r}"
            )
        for name in matching:
            parameters[name].requires_grad_(False)

    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError("student.freeze leaves no parameter to train")
    frozen = sum(p.numel() for p in parameters.values() if not p.requires_grad)
    logging.info(f"student: {frozen} of {sum(p.numel() for p in parameters.values())} frozen")
    return frozen


def _take_over(ours: dict[str, Any], theirs: dict[str, Any], kind: str) -> None:
    """Replace the student's units by copies of its teacher's, and log it."""
    for name in ("energy", "forces", "stress", *STRESS_PARTS):
        here, there = ours.pop(name, None), theirs.get(name)
        if here is not None and (there is None or _numbers(here) != _numbers(there)):
            logging.warning(
                f"{kind} of {name}: the student starts from its teacher and takes over the "
                f"teacher's {_numbers(there)} in place of {_numbers(here)}"
            )
        if there is not None:
            # A copy, since loading a checkpoint of the student overwrites it in place.
            ours[name] = copy.deepcopy(there)


def _numbers(module: nn.Module | None) -> str:
    if module is None:
        return "none"
    return ", ".join(
        f"{name} {value.item():.6g}"
        if value.numel() == 1
        else f"{name} summing to {value.sum():.6g}"
        for name, value in module.state_dict().items()
    )


@contextmanager
def naming_setup() -> Iterator[None]:
    """Turn an error in fairchem's own set-up into one about the YAML.

    Raises:
        ConfigError: in place of errors that name nothing of the user's; others pass.
    """
    try:
        yield
    except (ConfigError, StoreError, ImportError):
        raise
    except Exception as error:  # whatever fairchem meets in a YAML that it does not check
        # Such an error names a file, which is the user's.
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise ConfigError(
            f"fairchem cannot set up this run by its YAML: {_shortened(error)}; {_WHERE}"
        ) from error


@contextmanager
def naming_misfit(path: Path) -> Iterator[None]:
    """Turn an error while a checkpoint is loaded into one that names the file.

    Raises:
        ConfigError: naming the file.
    """
    try:
        yield
    except (ConfigError, OSError):
        raise
    except Exception as error:  # of the optimizer, the averages, the model, a normalizer
        raise ConfigError(
            f"checkpoint {path} does not fit this run ({_shortened(error)}); give one of the same "
            f"model and optim, or start from scratch under a new --timestamp-id; {_WHERE}"
        ) from error


def _shortened(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, ZeroDivisionError):
        # Its cosine schedule divides by the steps of the warm-up, rounded down.
        text += " (is optim.scheduler_params.warmup_epochs less than one step of this data set?)"
    return f"{type(error).__name__}: {text[:300]}"
