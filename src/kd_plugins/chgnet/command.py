"""What ``python -m kd_plugins.chgnet`` does: data, student and training of one YAML."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from chgnet.model import CHGNet

from kd_plugins import TargetStore
from kd_plugins.chgnet.data import DataError, DistillData, choose_soft
from kd_plugins.chgnet.distilling import distill
from kd_plugins.chgnet.run_folder import (
    BEST,
    check_not_in_use,
    read_model,
    write_learning_curves,
)
from kd_plugins.chgnet.settings import DataSettings, StudentSettings, TrainingSettings
from kd_plugins.chgnet.student import align_references, align_targets, describe_offsets
from kd_plugins.doctor.references import References
from kd_plugins.exit_codes import describe_error
from kd_plugins.sampling import crystal_of, nested_subset, of_kind, split
from kd_plugins.store import StoreError
from kd_plugins.structures import LabelledStructure, read_structures

PARTS = {"train": 0.9, "validation": 0.1}
"""What a file is split into, by whole materials."""


def run(settings: TrainingSettings) -> None:
    """Train one student, write its learning curves, and print its errors."""
    # Folders, files, stores and weights are checked first, since converting structures takes long.
    check_not_in_use(Path(settings.out))
    opened = {
        name: _open_source(name, source, settings)
        for sources in settings.sources.values()
        for name, source in sources.items()
    }
    model = _load_student(settings.student)
    data = {
        part: {
            name: _convert_source(name, source, settings, model, *opened[name])
            for name, source in sources.items()
        }
        for part, sources in settings.sources.items()
    }

    train, validation = (
        DistillData.concatenate(list(sources.values())) for sources in _align(model, settings, data)
    )
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
        l2_to_start=settings.loss.l2_to_start,
        settings=settings.optim.resolved(len(train)),
        force_share=settings.force_share,
        allow=settings.allow,
        way=settings.way,
        device=settings.device,
        workers=settings.workers,
    )

    write_learning_curves(found.fitted.errors, settings.out, found.fitted.untrained)
    print(f"the best student is {Path(settings.out) / BEST}")


def _align(
    model: CHGNet, settings: TrainingSettings, data: Mapping[str, dict[str, DistillData]]
) -> tuple[dict[str, DistillData], dict[str, DistillData]]:
    """Move the student's zero, then the teachers' energies of those sources that are to follow it.

    Args:
        model: the student, changed in place where ``student.align`` is set.
        settings: of the training.
        data: ``train`` and ``validation`` to their sources.

    Returns:
        The sources of both.
    """
    follows = {
        name for part in settings.sources.values() for name, one in part.items() if one.align
    }
    if settings.student.align:
        print(describe_offsets(_align_student(model, data["train"], follows)))

    # A teacher has one zero, so what training data tell of it holds for validation data as well.
    fitted: dict[str, References] = {}
    moved: dict[str, dict[str, DistillData]] = {"train": {}, "validation": {}}
    for part, sources in data.items():
        for name, one in sources.items():
            moved[part][name] = one
            if name not in follows or one.store is None or "energy" not in one.soft:
                continue
            teacher = one.store.manifest.fingerprint
            try:
                moved[part][name], fitted[teacher] = align_targets(
                    model, one, "soft", fitted.get(teacher)
                )
            except ValueError as error:
                raise ValueError(f"{name}: {describe_error(error)}") from error
            print(describe_offsets(fitted[teacher], f"{name}: the teacher's energies lowered by"))
    return moved["train"], moved["validation"]


def _align_student(
    model: CHGNet, sources: Mapping[str, DistillData], follows: Collection[str]
) -> References:
    """Move the student's element references to the energies of the sources that do not follow it.

    Raises:
        ValueError: if there are no such energies.
    """
    taught = [one for name, one in sources.items() if name not in follows and "energy" in one.soft]
    if taught:
        return align_references(model, DistillData.concatenate(taught), "soft")

    labelled = [one for one in sources.values() if "energy" in one.hard]
    if not labelled:
        raise ValueError(
            "student.align: there are no energies to align with, since every source with a teacher "
            "has align: true and none has labels; take one of these away"
        )
    return align_references(model, DistillData.concatenate(labelled), "hard")


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


def _open_source(
    name: str, source: DataSettings, settings: TrainingSettings
) -> tuple[Iterator[LabelledStructure], TargetStore | None]:
    """Return the structures of a source, not read yet, and the store with their targets.

    Raises:
        OSError, ValueError: naming the source, for what is not there or lacks a quantity.
    """
    try:
        structures = read_structures(source.structures, source.ids)
        store = None if source.store is None else TargetStore.open(source.store)
        choose_soft(store, _soft(source, settings) if store is not None else None)
    except (ValueError, KeyError, OSError, StoreError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{name}: {describe_error(error)}") from error
    return structures, store


def _soft(source: DataSettings, settings: TrainingSettings) -> tuple[str, ...]:
    """Return the quantities that the loss compares with the teacher in a source."""
    return tuple(name for name in settings.loss.weighted["soft"] if source.soft.get(name, 1.0) != 0)


def _convert_source(
    name: str,
    source: DataSettings,
    settings: TrainingSettings,
    model: CHGNet,
    structures: Iterator[LabelledStructure],
    store: TargetStore | None,
) -> DistillData:
    """Read the structures of a source, with the labels and targets that have a weight."""
    try:
        chosen: Iterable[LabelledStructure] = _select(structures, source, settings.optim.seed)
        hard = tuple(
            quantity
            for quantity in settings.loss.weighted["hard"]
            if source.hard.get(quantity, 1.0) != 0
        )
        # In a list of sources one may have labels and another none; one alone must have them.
        if hard and name not in settings.sources:
            chosen = list(chosen)
            hard = tuple(one for one in hard if any(one in made.labels for made in chosen))

        data = DistillData(
            chosen,
            store,
            soft=None if store is None else _soft(source, settings),
            hard=hard,
            missing=tuple(quantity for quantity in source.missing if quantity in hard),
            converter=model.graph_converter,
            bad=source.bad,
        )
        weighted = data.weighted(
            source.weight,
            soft={one: factor for one, factor in source.soft.items() if one in data.soft},
            hard={one: factor for one, factor in source.hard.items() if one in data.hard},
        )
    except (ValueError, KeyError) as error:
        kind = "" if source.kind is None else f" of kind {source.kind}"
        files = ", ".join(source.structures)
        message = f"{name}: structures{kind} of {files}: {describe_error(error)}"
        raise DataError(message) from error

    print(
        f"{name}: {len(data)} structures, weight {source.weight:g}; from the teacher: "
        f"{', '.join(data.soft) or 'nothing'}; labels: {', '.join(data.hard) or 'none'}"
    )
    return weighted


def _select(
    structures: Iterable[LabelledStructure], source: DataSettings, seed: int
) -> Iterable[LabelledStructure]:
    """Return the structures of the kind, the part and the random subset that are set."""
    if source.kind is not None:
        structures = of_kind(structures, source.kind)
    if source.part is not None:
        # The same split for every seed, so that students of all seeds are compared on one set.
        structures = split(list(structures), PARTS, seed=0, group=_material)[source.part]
    if source.size is None:
        return structures

    held = list(structures)
    ids = [structure.structure_id for structure in held]
    chosen = set(nested_subset(ids, source.size, seed))
    return [structure for structure in held if structure.structure_id in chosen]


def _material(structure: LabelledStructure) -> str:
    """Return what all structures of one material have in common."""
    return str(structure.atoms.info.get("mp_id") or crystal_of(structure))
