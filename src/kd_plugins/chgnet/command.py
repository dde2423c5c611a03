"""What ``python -m kd_plugins.chgnet`` does: data, student and training of one YAML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from chgnet.model import CHGNet

from kd_plugins import TargetStore
from kd_plugins.chgnet.alignment import align_references, in_words
from kd_plugins.chgnet.curves import write_curves
from kd_plugins.chgnet.data import DistillData, soft_of
from kd_plugins.chgnet.distilling import distill
from kd_plugins.chgnet.run_folder import check_free
from kd_plugins.chgnet.settings import DataSettings, TrainingSettings
from kd_plugins.chgnet.weights import Ratios
from kd_plugins.crystals import crystal_of, nested_subset, of_kind, split
from kd_plugins.teachers import Frame, read_structures

PARTS = {"train": 0.9, "validation": 0.1}
"""What a file is split into, by whole materials."""


def run(settings: TrainingSettings) -> None:
    """Train one student."""
    parts = (settings.train, settings.validation)
    # folders, files, stores and weights first: to convert structures takes long
    check_free(Path(settings.out))
    sources = [_source(part, settings) for part in parts]
    model = _student(settings.student.model)
    train, validation = (
        _data(part, settings, model, *source) for part, source in zip(parts, sources, strict=True)
    )
    if settings.student.align:
        print(in_words(align_references(model, train)))
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


def _student(name: str) -> CHGNet:
    if not Path(name).is_file():
        try:
            return CHGNet.load(model_name=name)
        except ValueError as error:
            raise ValueError(
                f"student.model: CHGNet has no weights {name!r}, nor is that a file"
            ) from error
    try:
        return CHGNet.from_file(name)
    except Exception as error:  # whatever reading a foreign file leads to
        raise ValueError(
            f"student.model: {name} is no CHGNet checkpoint ({type(error).__name__})"
        ) from error


def _source(
    part: DataSettings, settings: TrainingSettings
) -> tuple[Iterator[Frame], TargetStore | None]:
    """Return the structures of a part, not read yet, and the store with their targets.

    Raises:
        OSError, ValueError, KeyError, StoreError: for what is not there, or not what is asked for.
    """
    frames = read_structures(part.structures, part.ids)
    store = None if part.store is None else TargetStore.open(part.store)
    soft_of(store, _taught(settings)["soft"])
    return frames, store


def _taught(settings: TrainingSettings) -> dict[str, tuple[str, ...]]:
    return Ratios(hard=settings.loss.hard, soft=settings.loss.soft).taught


def _data(
    part: DataSettings,
    settings: TrainingSettings,
    model: CHGNet,
    frames: Iterator[Frame],
    store: TargetStore | None,
) -> DistillData:
    taught = _taught(settings)
    return DistillData(
        _chosen(frames, part, settings.optim.seed),
        store,
        soft=None if store is None else taught["soft"],
        hard=taught["hard"],
        missing=tuple(name for name in part.missing if name in taught["hard"]),
        converter=model.graph_converter,
        bad=part.bad,
    )


def _chosen(frames: Iterable[Frame], part: DataSettings, seed: int) -> Iterable[Frame]:
    if part.kind is not None:
        frames = of_kind(frames, part.kind)
    if part.part is not None:
        frames = split(list(frames), PARTS, seed=0, group=_material)[part.part]
    if part.size is None:
        return frames
    held = list(frames)
    chosen = set(nested_subset([frame.structure_id for frame in held], part.size, seed))
    return [frame for frame in held if frame.structure_id in chosen]


def _material(frame: Frame) -> str:
    return str(frame.atoms.info.get("mp_id") or crystal_of(frame))
