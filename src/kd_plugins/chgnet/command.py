"""What ``python -m kd_plugins.chgnet`` does: data, student and training of one YAML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from chgnet.model import CHGNet

from kd_plugins import TargetStore
from kd_plugins.chgnet.data import DataError, DistillData, choose_soft
from kd_plugins.chgnet.distilling import distill
from kd_plugins.chgnet.loss import TargetKind
from kd_plugins.chgnet.run_folder import (
    BEST,
    check_not_in_use,
    read_model,
    write_learning_curves,
)
from kd_plugins.chgnet.settings import DataSettings, StudentSettings, TrainingSettings
from kd_plugins.chgnet.student import align_references, describe_offsets
from kd_plugins.exit_codes import describe_error
from kd_plugins.sampling import crystal_of, nested_subset, of_kind, split
from kd_plugins.store import StoreError
from kd_plugins.structures import LabelledStructure, read_structures

PARTS = {"train": 0.9, "validation": 0.1}
"""What a file is split into, by whole materials."""


def run(settings: TrainingSettings) -> None:
    """Train one student, write its learning curves, and print its errors."""
    parts = {"train": settings.train, "validation": settings.validation}

    # Folders, files, stores and weights are checked first, since converting structures takes long.
    check_not_in_use(Path(settings.out))
    sources = {name: _open_part(name, part, settings) for name, part in parts.items()}
    model = _load_student(settings.student)
    train, validation = (
        _convert_part(name, part, settings, model, *sources[name]) for name, part in parts.items()
    )

    if settings.student.align:
        source: TargetKind = "soft" if "energy" in settings.loss.weighted["soft"] else "hard"
        print(describe_offsets(align_references(model, train, source)))

    found = distill(
        model,
        train,
        validation,
        out=settings.out,
        cache=settings.cache,
        soft=settings.loss.soft,
        hard=settings.loss.hard,
        trainable=settings.student.trainable,
        criterion=settings.loss.criterion,
        delta=settings.loss.delta,
        select=settings.loss.select,
        settings=settings.optim.resolved(len(train)),
        force_share=settings.force_share,
        allow=settings.allow,
    )

    write_learning_curves(found.fitted.errors, settings.out)
    best = min(found.fitted.errors, key=lambda errors: errors["val_score"])
    print("  ".join(f"{name} {value:.4g}" for name, value in best.items()))
    print(f"the best student is {Path(settings.out) / BEST}")


def _load_student(settings: StudentSettings) -> CHGNet:
    """Return pretrained CHGNet, or the model of a checkpoint."""
    path = Path(settings.model).expanduser()
    if not path.is_file():
        try:
            return CHGNet.load(model_name=settings.model)
        except ValueError as error:
            raise ValueError(
                f"student.model: CHGNet has no weights {settings.model!r}, nor is that a file"
            ) from error

    remedy = "set student.trust_pickle: true"
    try:
        return read_model(path, trust_pickle=settings.trust_pickle, remedy=remedy)
    except (OSError, ValueError) as error:
        raise ValueError(f"student.model: {error}") from error


def _open_part(
    name: str, part: DataSettings, settings: TrainingSettings
) -> tuple[Iterator[LabelledStructure], TargetStore | None]:
    """Return the structures of a part, not read yet, and the store with their targets.

    Raises:
        OSError, ValueError: naming the part, for what is not there or lacks a quantity.
    """
    try:
        structures = read_structures(part.structures, part.ids)
        store = None if part.store is None else TargetStore.open(part.store)
        choose_soft(store, settings.loss.weighted["soft"])
    except (ValueError, KeyError, OSError, StoreError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{name}: {describe_error(error)}") from error
    return structures, store


def _convert_part(
    name: str,
    part: DataSettings,
    settings: TrainingSettings,
    model: CHGNet,
    structures: Iterator[LabelledStructure],
    store: TargetStore | None,
) -> DistillData:
    """Read the structures of a part, with the labels and targets that have a weight."""
    weighted = settings.loss.weighted
    try:
        return DistillData(
            _select(structures, part, settings.optim.seed),
            store,
            soft=None if store is None else weighted["soft"],
            hard=weighted["hard"],
            missing=tuple(quantity for quantity in part.missing if quantity in weighted["hard"]),
            converter=model.graph_converter,
            bad=part.bad,
        )
    except (ValueError, KeyError) as error:
        kind = "" if part.kind is None else f" of kind {part.kind}"
        files = ", ".join(part.structures)
        message = f"{name}: structures{kind} of {files}: {describe_error(error)}"
        raise DataError(message) from error


def _select(
    structures: Iterable[LabelledStructure], part: DataSettings, seed: int
) -> Iterable[LabelledStructure]:
    """Return the structures of the kind, the part and the random subset that are set."""
    if part.kind is not None:
        structures = of_kind(structures, part.kind)
    if part.part is not None:
        # The same split for every seed, so that students of all seeds are compared on one set.
        structures = split(list(structures), PARTS, seed=0, group=_material)[part.part]
    if part.size is None:
        return structures

    held = list(structures)
    ids = [structure.structure_id for structure in held]
    chosen = set(nested_subset(ids, part.size, seed))
    return [structure for structure in held if structure.structure_id in chosen]


def _material(structure: LabelledStructure) -> str:
    """Return what all structures of one material have in common."""
    return str(structure.atoms.info.get("mp_id") or crystal_of(structure))
