"""What ``python -m kd_plugins.chgnet`` does: data, student and training of one YAML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from chgnet.model import CHGNet

from kd_plugins import TargetStore
from kd_plugins.chgnet.data import DataError, DistillData, soft_of
from kd_plugins.chgnet.distilling import distill
from kd_plugins.chgnet.loss import Ratios, Source
from kd_plugins.chgnet.run_folder import check_free, read_model, write_curves
from kd_plugins.chgnet.settings import DataSettings, StudentSettings, TrainingSettings
from kd_plugins.chgnet.student import align_references, in_words
from kd_plugins.exit_codes import describe_error
from kd_plugins.sampling import crystal_of, nested_subset, of_kind, split
from kd_plugins.store.shard import StoreError
from kd_plugins.structures import LabelledStructure, read_structures

PARTS = {"train": 0.9, "validation": 0.1}
"""What a file is split into, by whole materials."""


def run(settings: TrainingSettings) -> None:
    """Train one student."""
    parts = {"train": settings.train, "validation": settings.validation}
    # folders, files, stores and weights first: to convert structures takes long
    check_free(Path(settings.out))
    sources = {name: _source(name, part, settings) for name, part in parts.items()}
    model = _student(settings.student)
    train, validation = (
        _data(name, part, settings, model, *sources[name]) for name, part in parts.items()
    )
    if settings.student.align:
        source: Source = "soft" if "energy" in _taught(settings)["soft"] else "hard"
        print(in_words(align_references(model, train, source)))
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
    write_curves(found.fitted.errors, settings.out)
    best = min(found.fitted.errors, key=lambda errors: errors["val_score"])
    print("  ".join(f"{name} {value:.4g}" for name, value in best.items()))
    print(f"the best student is {Path(settings.out) / 'best.pth.tar'}")


def _student(settings: StudentSettings) -> CHGNet:
    name = settings.model
    path = Path(name).expanduser()
    if not path.is_file():
        try:
            return CHGNet.load(model_name=name)
        except ValueError as error:
            raise ValueError(
                f"student.model: CHGNet has no weights {name!r}, nor is that a file"
            ) from error
    remedy = "set student.trust_pickle: true"
    try:
        return read_model(path, trust_pickle=settings.trust_pickle, remedy=remedy)
    except (OSError, ValueError) as error:
        raise ValueError(f"student.model: {error}") from error


def _source(
    name: str, part: DataSettings, settings: TrainingSettings
) -> tuple[Iterator[LabelledStructure], TargetStore | None]:
    """Return the structures of a part, not read yet, and the store with their targets.

    Raises:
        OSError, ValueError, KeyError, StoreError: for what is not there, or not what is asked for.
    """
    try:
        frames = read_structures(part.structures, part.ids)
        store = None if part.store is None else TargetStore.open(part.store)
        soft_of(store, _taught(settings)["soft"])
    except (ValueError, KeyError, OSError, StoreError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{name}: {describe_error(error)}") from error
    return frames, store


def _taught(settings: TrainingSettings) -> dict[str, tuple[str, ...]]:
    return Ratios(hard=settings.loss.hard, soft=settings.loss.soft).taught


def _data(
    name: str,
    part: DataSettings,
    settings: TrainingSettings,
    model: CHGNet,
    frames: Iterator[LabelledStructure],
    store: TargetStore | None,
) -> DistillData:
    taught = _taught(settings)
    try:
        return DistillData(
            _chosen(frames, part, settings.optim.seed),
            store,
            soft=None if store is None else taught["soft"],
            hard=taught["hard"],
            missing=tuple(quantity for quantity in part.missing if quantity in taught["hard"]),
            converter=model.graph_converter,
            bad=part.bad,
        )
    except (ValueError, KeyError) as error:
        chosen = "" if part.kind is None else f" of kind {part.kind}"
        files = ", ".join(part.structures)
        raise DataError(f"{name}: structures{chosen} of {files}: {describe_error(error)}") from error


def _chosen(
    frames: Iterable[LabelledStructure], part: DataSettings, seed: int
) -> Iterable[LabelledStructure]:
    if part.kind is not None:
        frames = of_kind(frames, part.kind)
    if part.part is not None:
        frames = split(list(frames), PARTS, seed=0, group=_material)[part.part]
    if part.size is None:
        return frames
    held = list(frames)
    chosen = set(nested_subset([frame.structure_id for frame in held], part.size, seed))
    return [frame for frame in held if frame.structure_id in chosen]


def _material(frame: LabelledStructure) -> str:
    return str(frame.atoms.info.get("mp_id") or crystal_of(frame))
