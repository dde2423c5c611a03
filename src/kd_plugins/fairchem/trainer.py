"""fairchem trainers that add a distillation loss to fairchem's own."""

from __future__ import annotations

import copy
import logging
import os
from pathlib import Path
from typing import Any

import torch
from fairchem.core.common import distutils
from fairchem.core.models.equiformer_v2.trainers.forces_trainer import EquiformerV2ForcesTrainer
from fairchem.core.trainers import OCPTrainer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Batch

from kd_plugins.config import ConfigError
from kd_plugins.fairchem import sidecar
from kd_plugins.fairchem.convert import Capture, Units
from kd_plugins.fairchem.distiller import Distiller
from kd_plugins.fairchem.filling import online
from kd_plugins.fairchem.host import check_host, naming_misfit, naming_setup
from kd_plugins.fairchem.preflight import check_batch, check_dataset
from kd_plugins.fairchem.random_state import StepState
from kd_plugins.fairchem.settings import read_settings
from kd_plugins.fairchem.source import Source
from kd_plugins.fairchem.student import check_pair, freeze, start_from_teacher
from kd_plugins.fairchem.teacher_check import check_teacher
from kd_plugins.fairchem.watching import Fault, FaultFirst, Needs, Watched, naming_lone_atoms


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
        if not self.settings.terms.loss().terms:
            logging.warning("task.distill.terms is empty: this run learns from the labels alone")
        self._source = Source.of(self.settings, kwargs.get("dataset") or {})
        self._needs = Needs()
        with naming_setup():
            super().__init__(task, *args, **kwargs)

    def get_dataloader(self, dataset: Any, sampler: Any, workers: int | None = None) -> Any:
        """Load as fairchem does; bad structures are noticed, and targets from a store read."""
        if dataset is self.test_dataset:
            return super().get_dataloader(dataset, sampler, workers)
        name = "train" if dataset is self.train_dataset else "val"
        collate = self.collater
        self.collater = FaultFirst(self._source.collater(collate))
        try:
            return super().get_dataloader(Watched(dataset, name, self._needs), sampler, workers)
        finally:
            self.collater = collate

    def load_model(self) -> None:
        """Build the student as fairchem does, then the teacher; start and freeze the student."""
        super().load_model()
        student = Capture(self._unwrapped_model, "student")
        terms = self.settings.terms.loss().terms
        teacher = self._source.teacher(self.device, self._checkpoint_folder / "targets", terms)
        check_pair(student, teacher, self.settings, self.output_targets)
        if self.settings.student.initialize == "teacher":
            model, self._units = self._source.origin(teacher, self.device)
            start_from_teacher(self._unwrapped_model, model)
        if self.settings.student.freeze:
            freeze(self._unwrapped_model, self.settings.student.freeze)
            self._wrap_again()
        labels = [name for name in ("energy", "forces") if name in self.output_targets]
        self.distiller = Distiller(self.settings, student, teacher, self.device, labels)
        self._needs.elements = self.distiller.known_elements()
        self.step_state = StepState(self._checkpoint_folder, distutils.get_rank())

    def _wrap_again(self) -> None:
        """Have DistributedDataParallel forget the parameters that are now frozen."""
        if isinstance(self.model, DistributedDataParallel):
            self.model = DistributedDataParallel(self._unwrapped_model)

    def load_references_and_normalizers(self) -> None:
        """Load them as fairchem does; a student that starts as its teacher speaks its units."""
        super().load_references_and_normalizers()
        if self.settings.student.initialize == "teacher":
            _adopt(self.normalizers, self._units.normalizers, "normalizer")
            _adopt(self.elementrefs, self._units.elementrefs, "references")

    def load_loss(self) -> None:
        """Load it as fairchem does; from now on each structure must have the labels."""
        super().load_loss()
        unknown = [name for name in self._labels if name not in self.output_targets]
        if unknown:
            raise ConfigError(
                f"loss_functions: {unknown[0]!r} is no output; the YAML's outputs: "
                f"{', '.join(self.output_targets)}"
            )
        self._needs.labels = tuple(self._labels)

    def load_optimizer(self) -> None:
        """Add an optimizer of the projection's own; fairchem's keeps its shape on disk."""
        super().load_optimizer()
        self.distiller.load_optimizer(self.config["optim"])

    def train(self, *args: Any, **kwargs: Any) -> None:
        """Check the labels and the teacher against them, then train as fairchem does."""
        if self.train_loader is None or len(self.train_loader) == 0:
            raise ConfigError("dataset.train: no src to train on, or no batch in it")
        both = {"train": self.train_dataset, "val": self.val_dataset}
        datasets = {name: dataset for name, dataset in both.items() if dataset is not None}
        for name, dataset in datasets.items():
            check_dataset(
                dataset, name, self._labels, self._needs.elements, self.settings.preflight
            )
        self._source.check_datasets(datasets, self.settings.preflight, self.device)
        check_teacher(
            self.train_dataset,
            online(self.distiller.teacher) or self.distiller.teacher,
            self.distiller.loss.terms,
            self.settings.preflight,
            self.device,
            self.settings.allow,
        )
        super().train(*args, **kwargs)

    @property
    def _labels(self) -> list[str]:
        return [name for name, _ in self.loss_functions]

    def _forward(self, batch: Batch | Fault) -> dict[str, Tensor]:
        if isinstance(batch, Fault):
            raise ConfigError(batch.reason)
        if self.model.training:
            self.step_state.at_step(self._between_steps)
        self.distiller.before_student()
        with naming_lone_atoms(self._unwrapped_model.backbone, batch, "student"):
            return super()._forward(batch)

    def _compute_loss(self, out: dict[str, Tensor], batch: Batch) -> Tensor:
        check_batch(batch, self._labels)
        loss = super()._compute_loss(out, batch)
        self._task_loss = float(loss)
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
        metrics = super()._compute_metrics(out, batch, evaluator, metrics)
        metrics = evaluator.update("task_loss", self._task_loss, metrics)
        for name, value in self.distiller.take_metrics().items():
            metrics = evaluator.update(name, value, metrics)
        return metrics

    def _backward(self, loss: Tensor) -> None:
        self.distiller.zero_grad()
        scale = self.scaler.get_scale() if self.scaler else 1.0
        learning_rate = self.scheduler.get_lr()
        super()._backward(loss)
        overflowed = self.scaler is not None and self.scaler.get_scale() < scale
        if not overflowed:
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
        partial, pending = target.with_name(f"{target.name}.partial"), sidecar.pending_path(target)
        state = {"step": self.step if training_state else 0, **self.distiller.state_dict()}
        written = None
        with sidecar.writing(target, partial, pending):
            if distutils.is_master() and not self.is_debug:
                sidecar.write_atomically(state, pending)
            written = super().save(metrics, partial.name, training_state)
            if written is not None:
                os.replace(partial, target)
                os.replace(pending, sidecar.sidecar_path(target))
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
            checkpoint = sidecar.read_checkpoint_file(path, self.settings.student.trust_pickle)
        with naming_misfit(path):
            super().load_checkpoint(str(path), checkpoint, inference_only)
        if inference_only:
            return
        state = sidecar.read_sidecar(path, self.step)
        own_run = path.parent == self._checkpoint_folder
        if state is not None and not sidecar.fits(
            state, self.distiller.teacher.fingerprint, path, refuse=own_run
        ):
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


def _adopt(ours: dict[str, Any], theirs: dict[str, Any], kind: str) -> None:
    """Replace the student's units of energy and forces by copies of its teacher's and say so."""
    for name in ("energy", "forces"):
        here, there = ours.pop(name, None), theirs.get(name)
        if here is not None and (there is None or _values(here) != _values(there)):
            logging.warning(
                f"{kind} of {name}: the student starts from its teacher and takes over the "
                f"teacher's {_values(there)} in place of {_values(here)}"
            )
        if there is not None:
            ours[name] = copy.deepcopy(there)


def _values(module: torch.nn.Module | None) -> str:
    if module is None:
        return "none"
    return ", ".join(
        f"{name} {value.item():.6g}"
        if value.numel() == 1
        else f"{name} summing to {value.sum():.6g}"
        for name, value in module.state_dict().items()
    )


class DistillTrainer(DistillMixin, OCPTrainer):
    """`OCPTrainer` with distillation: ``trainer: kd_plugins.fairchem.DistillTrainer``."""


class EqV2DistillTrainer(DistillMixin, EquiformerV2ForcesTrainer):
    """`EquiformerV2ForcesTrainer` (cosine schedule in epochs) with distillation.

    In YAML: ``trainer: kd_plugins.fairchem.EqV2DistillTrainer``.
    """
