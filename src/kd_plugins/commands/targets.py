"""The commands that make teacher targets and check them."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kd_plugins.structures.readers import LabelledStructure

IDS = (
    "how structures are named: auto (structure_id, frame_id, sid/fid, or the file's name), path, "
    "or keys of their info such as mp_id,step"
)


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``label``, ``import``, ``doctor``, ``export``, ``verify`` and ``merge``."""
    _add_label(commands)
    _add_import(commands)
    _add_doctor(commands)

    command = commands.add_parser("export", help="write a store as extended xyz")
    command.add_argument("store")
    command.add_argument("file", help="to write, such as targets.extxyz")
    command.set_defaults(run=_export)

    command = commands.add_parser("verify", help="read everything and report what is damaged")
    command.add_argument("store")
    command.set_defaults(run=_verify)

    command = commands.add_parser("merge", help="copy stores of one teacher into one")
    command.add_argument("stores", nargs="+")
    command.add_argument("--into", required=True, metavar="DIR")
    command.set_defaults(run=_merge)


def _label(arguments: argparse.Namespace) -> int:
    from kd_plugins import teachers
    from kd_plugins.teachers.registry import check_different, parse_teachers, teacher_name

    specs = [spec for words in arguments.teacher for spec in parse_teachers(words)]
    check_different(specs)
    structures, total = _structures_to_label(arguments)

    report = teachers.label(
        structures,
        teacher_name(specs),
        arguments.store,
        _quantities(arguments.quantities),
        device=arguments.device,
        engine=arguments.engine,
        workers=arguments.workers,
        total=total,
    )

    print(
        f"labelled {report.labelled}, there already {report.skipped}, failed {len(report.failed)}"
        f" in {report.seconds:.1f} s on {report.device}: {arguments.store}"
    )
    if report.failed:
        print(f"why they failed stands in {arguments.store}/failures.jsonl", file=sys.stderr)
    return 1 if report.failed else 0


def _structures_to_label(
    arguments: argparse.Namespace,
) -> tuple[Iterable[LabelledStructure], int | None]:
    """Return the structures with their ids, and how many there are if that is known."""
    if arguments.fairchem and (arguments.structures or arguments.ids != "auto"):
        raise ValueError(
            "--fairchem names the structures, and its trainer their ids; leave out "
            + (f"{arguments.structures[0]!r}" if arguments.structures else "--ids")
        )
    if arguments.fairchem:
        # fairchem may be missing, and needs its stand-ins before anything of it is imported.
        from kd_plugins.fairchem import read_datasets

        datasets = read_datasets(arguments.fairchem, arguments.trust_pickle)
        return datasets, len(datasets)

    if not arguments.structures:
        raise ValueError("no structures to label; name files with structures, or --fairchem X.yml")
    if arguments.trust_pickle:
        raise ValueError(
            "--trust-pickle is for data sets of fairchem; give them as --fairchem DATA"
        )

    from kd_plugins.structures import read_structures
    from kd_plugins.structures.readers import count_structures

    structures = read_structures(arguments.structures, arguments.ids)
    return structures, count_structures(arguments.structures)


def _quantities(words: Sequence[str] | None) -> dict[str, str] | None:
    """Read ``energy node_embeddings:float16`` as quantity to dtype; None for all quantities."""
    from kd_plugins.core.quantities import quantity
    from kd_plugins.store.manifest import DEFAULT_DTYPES

    pairs = [word.partition(":") for word in words or ()]
    names = [name for name, _, _ in pairs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"--quantities: {repeated[0]!r} is named twice; name each once")

    chosen = {name: dtype or DEFAULT_DTYPES[quantity(name).name] for name, _, dtype in pairs}
    return chosen or None


def _import(arguments: argparse.Namespace) -> int:
    from kd_plugins.structures import import_labels

    store = import_labels(
        arguments.labels,
        arguments.store,
        arguments.teacher,
        arguments.quantities,
        arguments.optional,
        arguments.ids,
    )
    print(f"{arguments.store} holds {len(store)} structures")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from kd_plugins import TargetStore
    from kd_plugins.structures import export_extxyz

    export_extxyz(TargetStore.open(arguments.store), arguments.file)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from kd_plugins import TargetStore
    from kd_plugins.store import StoreError
    from kd_plugins.teachers import failures

    store = TargetStore.open(arguments.store)
    manifest, faults = store.manifest, store.verify()
    quantities = ", ".join(f"{name} ({dtype})" for name, dtype in manifest.dtypes.items())
    print(f"teacher:     {manifest.teacher}")
    print(f"fingerprint: {manifest.fingerprint}")
    print(f"quantities:  {quantities}")

    try:
        print(f"structures:  {len(store)}, failed to be labelled: {len(failures(store))}")
        for shard in store.uncounted():
            print(f"{shard}: how many records it should hold was not kept by its version")
    except StoreError as error:
        if str(error) not in faults:  # a damaged shard is among the faults already
            faults.append(str(error))

    if not faults and store.is_empty():
        faults.append(
            f"{arguments.store} holds no record: nothing was labelled yet, or its shards, *.lmdb, "
            "were removed; restore them from a copy, or label its structures again"
        )

    print("\n".join(faults) or "every record is whole")
    return 1 if faults else 0


def _doctor(arguments: argparse.Namespace) -> int:
    from kd_plugins import TargetStore
    from kd_plugins.doctor.align import align
    from kd_plugins.doctor.diagnosis import diagnose, stored_structures
    from kd_plugins.doctor.report import format_added_offsets, format_diagnosis
    from kd_plugins.structures import read_structures
    from kd_plugins.teachers import load_teacher

    store = TargetStore.open(arguments.store)
    teacher = _teacher_to_load(arguments.ask_teacher, store.manifest.teacher)
    if arguments.labels:
        labels = read_structures(arguments.labels, arguments.ids)
    else:
        labels = stored_structures(store)

    diagnosis = diagnose(
        labels,
        store,
        None if teacher is None else load_teacher(teacher, arguments.device),
        arguments.limit,
        arguments.seed,
        allow=arguments.allow,
        student_receptive_field=_student_receptive_field(arguments),
    )
    print(format_diagnosis(diagnosis), end="")
    if arguments.fix is None:
        return diagnosis.exit_code

    diagnosis.check_fixable()
    aligned = align(store, diagnosis.references, arguments.fix)
    print(f"{arguments.fix} holds the same targets with the labels' energy zero")
    print(format_added_offsets(aligned.manifest))
    return diagnosis.exit_code


def _student_receptive_field(arguments: argparse.Namespace) -> float | None:
    """Return how far the student reaches, in Å, as the options give it; None without them."""
    from kd_plugins.numbers import check_number, check_whole

    cutoff, layers = arguments.student_cutoff, arguments.student_layers
    if arguments.student is None and cutoff is None and layers is None:
        return None
    if arguments.student is None:
        if cutoff is None or layers is None:
            raise ValueError("give --student-cutoff and --student-layers together, or --student")
        check_whole("--student-layers", layers, least=1)
        return check_number("--student-cutoff", cutoff, above=0, unit="Å") * layers

    from kd_plugins.teachers import load_teacher
    from kd_plugins.teachers.registry import parse_teachers

    if cutoff is not None or layers is not None:
        raise ValueError("give --student, or --student-cutoff and --student-layers, not both")
    student = load_teacher(parse_teachers(arguments.student), arguments.device)
    found = getattr(student, "receptive_field", None)
    if found is None:
        raise ValueError(
            f"--student {' '.join(arguments.student)}: how far it reaches is not known; give "
            "--student-cutoff and --student-layers instead"
        )
    return found


def _teacher_to_load(words: Sequence[str] | None, stored_name: str) -> str | None:
    """Return the name of the teacher to load; None if there is none to load.

    Args:
        words: of ``--ask-teacher``; None without it, empty for the teacher that the store names.
        stored_name: the store's teacher. Only an installed short name without arguments is taken
            from there: anything else would import a module or open a file that whoever made the
            store has chosen.
    """
    from kd_plugins.teachers.registry import is_bare, parse_teachers, teacher_name
    from kd_plugins.teachers.teacher import TeacherError

    if words is None:
        return None
    if words:
        return teacher_name(parse_teachers(words))

    shown = stored_name if stored_name.isprintable() else repr(stored_name)
    try:
        specs = parse_teachers(stored_name)
    except TeacherError:
        raise ValueError(
            f"the store says that its teacher is {shown}, which is no name of a teacher here; name "
            "the one to ask: --ask-teacher NAME key=value"
        ) from None

    if not all(is_bare(spec) for spec in specs):
        typed = shown if len(specs) == 1 else shlex.quote(shown)
        raise ValueError(
            f"the store says that its teacher is {shown}, and what a store names is neither "
            f"imported nor opened unless you name it; if you trust it: --ask-teacher {typed}"
        )
    return stored_name


def _merge(arguments: argparse.Namespace) -> int:
    from kd_plugins import TargetStore
    from kd_plugins.store.manifest import check_same_teacher

    stores = [TargetStore.open(folder) for folder in arguments.stores]
    for store in stores:
        check_same_teacher(store.manifest, stores[0].manifest, store.folder)
        next(store.ids(), None)  # refuses a damaged store before anything is written

    merged = TargetStore.create(arguments.into, stores[0].manifest)
    merged.merge(stores)
    print(f"{arguments.into} holds {len(merged)} structures")
    return 0


def _add_label(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "label",
        help="label structures with a teacher",
        description="Label structures into a store. Run it again to go on after a stop.",
    )
    command.add_argument("structures", nargs="*", help="any file ASE reads, or an MPtrj JSON")
    command.add_argument(
        "--fairchem",
        nargs="+",
        metavar="DATA",
        help="in place of structures: a YAML of fairchem, whose dataset.train and dataset.val are "
        "labelled by the ids that its trainer sees, or data sets (an ASE database, an LMDB)",
    )
    command.add_argument(
        "--trust-pickle",
        action="store_true",
        help="read data sets of --fairchem that are pickles, as OC20's LMDBs, which may run any "
        "code",
    )
    command.add_argument(
        "--teacher",
        required=True,
        nargs="+",
        action="append",
        metavar=("NAME", "KEY=VALUE"),
        help="a short name (emt, chgnet, chgnet+d3, eqv2, pfp, ...) or package.module:factory of "
        "an ASE calculator, then its arguments, in one quoted word or in several; given several "
        "times, an ensemble",
    )
    command.add_argument("--store", required=True, metavar="DIR")
    command.add_argument(
        "--quantities",
        nargs="+",
        metavar="NAME[:DTYPE]",
        help="what to keep, such as energy forces node_embeddings:float16",
    )
    command.add_argument("--ids", default="auto", help=IDS)
    command.add_argument(
        "--device",
        default="auto",
        help="where the teacher computes: auto (CUDA where there is one), cpu, cuda or cuda:1",
    )
    command.add_argument("--engine", choices=("serial", "process", "ray"), default="serial")
    command.add_argument("--workers", type=int, default=1, metavar="N")
    command.set_defaults(run=_label)


def _add_import(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "import",
        help="take in labels that a teacher made elsewhere",
        description="Take in labels, in eV, eV/Å and eV/Å³, from any file with labelled "
        "structures: extended xyz, an ASE database, an MPtrj JSON, the output of a DFT code.",
    )
    command.add_argument("labels", nargs="+")
    command.add_argument("--teacher", required=True, metavar="NAME", help="with version and mode")
    command.add_argument("--store", required=True, metavar="DIR")
    command.add_argument("--quantities", nargs="+", metavar="NAME", help="all must have")
    command.add_argument("--optional", nargs="+", default=(), metavar="NAME", help="some have")
    command.add_argument("--ids", default="auto", help=IDS)
    command.set_defaults(run=_import)


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "doctor",
        help="find wrong units, signs, references and mix-ups",
        description="Examine a store beside the labels. Exit code 1 if something is wrong for "
        "certain, 0 for warnings or nothing.",
    )
    command.add_argument(
        "--labels", nargs="+", metavar="DATA", help="left out, the store is examined by itself"
    )
    command.add_argument("--store", required=True, metavar="DIR")
    command.add_argument("--ids", default="auto", help=IDS)
    command.add_argument(
        "--ask-teacher",
        nargs="*",
        metavar=("NAME", "KEY=VALUE"),
        help="also compare forces and stress with differences of the teacher's energy; without a "
        "name, of the teacher that the store names",
    )
    command.add_argument(
        "--allow",
        nargs="+",
        default=(),
        metavar="NAME",
        help="errors to overrule, such as energy_unit: they become warnings",
    )
    command.add_argument(
        "--student",
        nargs="+",
        metavar=("NAME", "KEY=VALUE"),
        help="who will learn, such as hippynn folder=run: for advice on atomic energies",
    )
    command.add_argument(
        "--student-cutoff", type=float, metavar="Å", help="of a student that is not made yet"
    )
    command.add_argument(
        "--student-layers", type=int, metavar="N", help="of it that pass messages between atoms"
    )
    command.add_argument("--fix", metavar="DIR", help="write a store with the labels' energy zero")
    command.add_argument(
        "--device", default="auto", help="of --ask-teacher and --student, see label --help"
    )
    command.add_argument("--limit", type=int, default=2000, help="structures to examine")
    command.add_argument("--seed", type=int, default=0, help="of the sample")
    command.set_defaults(run=_doctor)
