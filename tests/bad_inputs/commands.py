"""Bad words, files and folders for every command of ``kd-plugins``."""

from __future__ import annotations

import gzip
import json
import lzma
import os
from pathlib import Path

import ase.io
from ase import Atoms

from tests.bad_inputs.case import Case

LABEL = "kd-plugins label test.extxyz --teacher emt --store out"
DOCTOR = "kd-plugins doctor --labels train.extxyz --store targets"
EVALUATE = "kd-plugins evaluate --student emt --out out"
DYNAMICS = f"{EVALUATE} --dynamics cell.extxyz --cutoff 5"
SAMPLE = "kd-plugins sample crystal.extxyz --out out.extxyz"
SELECT = "kd-plugins select train.extxyz --out out.extxyz --count 3"
COMPARE = "kd-plugins compare experiment.yml --out out"
PAGE = "<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in</body></html>"
POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f"
    "32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
PROMISE = '100000000\nProperties=species:S:1:pos:R:3 pbc="F F F"\nCu 0 0 0\n'
"""An extended xyz that promises more atoms than it has."""
BIG = "9" * 400
DEEP = "[" * 100_000
CUBE = 'Lattice="4 0 0 0 4 0 0 0 4" pbc="T T T"'


def xyz(*atoms: str, line: str = CUBE, columns: str = "species:S:1:pos:R:3") -> str:
    """Return an extended xyz of one structure."""
    return "\n".join([str(len(atoms)), f"{line} Properties={columns}", *atoms, ""])


def cut(path: Path, share: float = 0.5) -> None:
    """Cut a file short."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def into_folder(path: Path) -> None:
    """Put a folder in the place of a file."""
    if path.exists():
        path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    """Make a link that leads nowhere."""
    path.symlink_to("gone.extxyz")


def circular(path: Path) -> None:
    """Make a link to itself."""
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    """Make a named pipe, at which a reader would wait for ever."""
    os.mkfifo(path)


def twice(path: Path) -> None:
    """Write two structures of one id that are not the same."""
    frames = [Atoms("Cu", cell=[size] * 3, pbc=True) for size in (4, 5)]
    for frame in frames:
        frame.info["structure_id"] = "same"
    ase.io.write(path, frames)


STRUCTURES = [
    Case("label_no_file", "kd-plugins label no.xyz --teacher emt --store out", ("no.xyz", "no such")),
    Case("label_second_file_missing", LABEL.replace("test.extxyz", "test.extxyz no.xyz"), ("no.xyz",)),
    Case("label_a_folder", LABEL.replace("test.extxyz", "targets"), ("targets", "folder")),
    Case("label_empty_file", LABEL, ("test.extxyz",), {"test.extxyz": ""}),
    Case("label_blank_lines", LABEL, ("test.extxyz",), {"test.extxyz": "\n\n\n"}),
    Case("label_random_bytes", LABEL, ("test.extxyz",), {"test.extxyz": bytes(range(256)) * 8}),
    Case("label_zero_bytes", LABEL, ("test.extxyz",), {"test.extxyz": bytes(5000)}),
    Case("label_html", LABEL, ("test.extxyz",), {"test.extxyz": PAGE}),
    Case("label_lfs_pointer", LABEL, ("test.extxyz",), {"test.extxyz": POINTER}),
    Case("label_latin1", LABEL, ("test.extxyz", "UTF-8"), {"test.extxyz": xyz("Cu 0 0 0", line=CUBE + ' name="\xe9"').encode("latin1")}),
    Case("label_utf16", LABEL, ("test.extxyz",), {"test.extxyz": xyz("Cu 0 0 0").encode("utf-16")}),
    Case("label_cut_short", LABEL, ("test.extxyz",), {"test.extxyz": lambda path: cut(path, 0.85)}, leaves=("out", "out/*")),
    Case("label_promise_of_atoms", LABEL, ("test.extxyz",), {"test.extxyz": PROMISE}),
    Case("label_negative_atoms", LABEL, ("test.extxyz",), {"test.extxyz": PROMISE.replace("100000000", "-3")}),
    Case("label_400_digits_of_atoms", LABEL, ("test.extxyz",), {"test.extxyz": PROMISE.replace("100000000", BIG)}),
    Case("label_no_atoms", LABEL, ("atom",), {"test.extxyz": xyz()}, code=(1, 2), leaves=("out", "out/*")),
    Case("label_unknown_element", LABEL, ("test.extxyz",), {"test.extxyz": xyz("Qq 0 0 0")}),
    Case("label_nan_position", LABEL, ("positions", "NaN"), {"test.extxyz": xyz("Cu nan 0 0")}, code=(1, 2), leaves=("out", "out/*")),
    Case("label_inf_position", LABEL, ("positions", "inf"), {"test.extxyz": xyz("Cu inf 0 0")}, code=(1, 2), leaves=("out", "out/*")),
    Case("label_letters_for_a_position", LABEL, ("test.extxyz",), {"test.extxyz": xyz("Cu a b c")}),
    Case("label_nan_cell", LABEL, ("cell", "NaN"), {"test.extxyz": xyz("Cu 0 0 0", line='Lattice="nan 0 0 0 4 0 0 0 4" pbc="T T T"')}, code=(1, 2), leaves=("out", "out/*")),
    Case("label_short_lattice", LABEL, ("test.extxyz",), {"test.extxyz": xyz("Cu 0 0 0", line='Lattice="4 0 0 0 4 0" pbc="T T T"')}),
    Case("label_bad_columns", LABEL, ("test.extxyz",), {"test.extxyz": xyz("Cu 0 0 0", columns="species:S:1:pos:R:9")}),
    Case("label_no_gz", LABEL.replace("test.extxyz", "x.extxyz.gz"), ("x.extxyz.gz",), {"x.extxyz.gz": b"hello"}),
    Case("label_cut_gz", LABEL.replace("test.extxyz", "x.extxyz.gz"), ("x.extxyz.gz",), {"x.extxyz.gz": gzip.compress(os.urandom(9000))[:4000]}),
    Case("label_cut_xz", LABEL.replace("test.extxyz", "x.extxyz.xz"), ("x.extxyz.xz",), {"x.extxyz.xz": lzma.compress(os.urandom(9000))[:4000]}),
    Case("label_no_bz2", LABEL.replace("test.extxyz", "x.extxyz.bz2"), ("x.extxyz.bz2",), {"x.extxyz.bz2": b"BZh9hello"}),
    Case("label_unknown_format", LABEL.replace("test.extxyz", "x.foo"), ("x.foo",), {"x.foo": "hello"}),
    Case("label_no_suffix", LABEL.replace("test.extxyz", "hello"), ("hello",), {"hello": "hello"}),
    Case("label_no_database", LABEL.replace("test.extxyz", "x.db"), ("x.db",), {"x.db": b"SQLite format 3\0" + bytes(200)}),
    Case("label_empty_database", LABEL.replace("test.extxyz", "x.db"), ("x.db",), {"x.db": b""}),
    Case("label_text_as_database", LABEL.replace("test.extxyz", "x.db"), ("x.db",), {"x.db": "hello"}),
    Case("label_json_of_a_list", LABEL.replace("test.extxyz", "x.json"), ("x.json",), {"x.json": "[1, 2]"}),
    Case("label_json_cut", LABEL.replace("test.extxyz", "x.json"), ("x.json",), {"x.json": '{"mp-1": {"mp-1-0-0": {"structure": {'}),
    Case("label_json_deep", LABEL.replace("test.extxyz", "x.json"), ("x.json",), {"x.json": '{"mp-1": ' + DEEP}),
    Case("label_mptrj_without_structure", LABEL.replace("test.extxyz", "x.json"), ("x.json",), {"x.json": '{"mp-1": {"mp-1-0-0": {"energy_per_atom": -1}}}'}),
    Case("label_mptrj_of_numbers", LABEL.replace("test.extxyz", "x.json"), ("x.json",), {"x.json": '{"mp-1": {"mp-1-0-0": {"structure": 7}}}'}),
    Case("label_bad_cif", LABEL.replace("test.extxyz", "x.cif"), ("x.cif",), {"x.cif": "data_x\n_cell_length_a foo\n"}),
    Case("label_bad_poscar", LABEL.replace("test.extxyz", "POSCAR"), ("POSCAR",), {"POSCAR": "hello\nworld\n"}),
    Case("label_bad_traj", LABEL.replace("test.extxyz", "x.traj"), ("x.traj",), {"x.traj": b"- of Ulm" + bytes(20)}),
    Case("label_dangling_link", LABEL.replace("test.extxyz", "x.extxyz"), ("x.extxyz",), {"x.extxyz": dangling}),
    Case("label_circular_link", LABEL.replace("test.extxyz", "x.extxyz"), ("x.extxyz",), {"x.extxyz": circular}),
    Case("label_named_pipe", LABEL.replace("test.extxyz", "x.extxyz"), ("x.extxyz",), {"x.extxyz": pipe}),
    Case("label_device", LABEL.replace("test.extxyz", "/dev/null"), ("/dev/null",)),
    Case("label_long_name", LABEL.replace("test.extxyz", "x" * 300), ("x" * 40,)),
    Case("label_one_id_twice", LABEL, ("same", "two|twice|already"), {"test.extxyz": twice}, leaves=("out", "out/*")),
    Case("label_no_such_ids", f"{LABEL} --ids mp_id", ("mp_id", "metal/20|test:0")),
    Case("label_empty_ids", f"{LABEL} --ids ''", ("ids",)),
    Case("label_long_id", LABEL, ("id", "bytes"), {"test.extxyz": xyz("Cu 0 0 0", line=f"{CUBE} structure_id={'x' * 600}")}),
]

TEACHERS = [
    Case("label_no_teacher_word", "kd-plugins label test.extxyz --store out --teacher", ("--teacher", "expected")),
    Case("label_no_teacher", "kd-plugins label test.extxyz --store out", ("--teacher", "required")),
    Case("label_misspelled_teacher", LABEL.replace("emt", "emtt"), ("emtt", "did you mean", "emt")),
    Case("label_empty_teacher", LABEL.replace("emt", "''"), ("teacher",)),
    Case("label_no_module", LABEL.replace("emt", "no_module:f"), ("no_module", "import")),
    Case("label_no_factory", LABEL.replace("emt", "ase.calculators.emt:EMTT"), ("EMTT", "did you mean", "EMT")),
    Case("label_factory_left_out", LABEL.replace("emt", "ase.calculators.emt:"), ("ase.calculators.emt:",)),
    Case("label_module_left_out", LABEL.replace("emt", ":EMT"), (":EMT",)),
    Case("label_relative_module", LABEL.replace("emt", ".emt:EMT"), (".emt",)),
    Case("label_factory_no_function", LABEL.replace("emt", "ase.calculators.emt:parameters"), ("parameters", "call|function")),
    Case("label_factory_returns_text", LABEL.replace("emt", "os:getcwd"), ("os:getcwd", "calculator")),
    Case("label_module_raises", LABEL.replace("emt", "broken:f"), ("broken", "oh no"), {"broken.py": "raise RuntimeError('oh no')"}),
    Case("label_module_syntax", LABEL.replace("emt", "broken:f"), ("broken",), {"broken.py": "def f(:"}),
    Case("label_module_exits", LABEL.replace("emt", "broken:f"), ("broken",), {"broken.py": "raise SystemExit(0)"}),
    Case("label_factory_raises", LABEL.replace("emt", "broken:f"), ("broken:f", "oh no"), {"broken.py": "def f(): raise RuntimeError('oh no')"}),
    Case("label_factory_exits", LABEL.replace("emt", "broken:f"), ("broken:f",), {"broken.py": "def f(): raise SystemExit(0)"}),
    Case("label_unknown_argument", LABEL.replace("emt", "emt colour=red"), ("colour", "emt")),
    Case("label_argument_without_value", LABEL.replace("emt", "emt asap_cutoff"), ("asap_cutoff", "key=value")),
    Case("label_argument_twice", LABEL.replace("emt", "ase.calculators.lj:LennardJones rc=3 rc=4"), ("rc",)),
    Case("label_file_as_argument", LABEL.replace("emt", "emt test.extxyz"), ("test.extxyz", "key=value")),
    Case("label_teacher_lacks_quantity", f"{LABEL} --quantities magmoms", ("emt|EMT", "magmoms"), leaves=("out", "out/*")),
    Case("label_unknown_quantity", f"{LABEL} --quantities enrgy", ("enrgy", "did you mean", "energy")),
    Case("label_unknown_dtype", f"{LABEL} --quantities forces:float8", ("forces", "float8", "float16")),
    Case("label_quantity_twice", f"{LABEL} --quantities forces forces:float16", ("forces", "twice|once")),
    Case("label_empty_quantity", f"{LABEL} --quantities ''", ("quantity",)),
    Case("label_spread_of_one", f"{LABEL} --quantities energy_std", ("energy_std",)),
    Case("label_same_teacher_twice", f"{LABEL} --teacher emt", ("emt", "twice|two|different")),
    Case("label_workers_of_serial", f"{LABEL} --workers 2", ("workers", "serial", "2")),
    Case("label_no_workers", f"{LABEL} --engine process --workers 0", ("workers", "0")),
    Case("label_minus_workers", f"{LABEL} --engine process --workers -1", ("workers", "-1")),
    Case("label_words_for_workers", f"{LABEL} --workers many", ("workers", "many")),
    Case("label_half_a_worker", f"{LABEL} --workers 1.5", ("workers", "1.5")),
    Case("label_unknown_engine", f"{LABEL} --engine dask", ("engine", "dask", "serial")),
    Case("label_unknown_option", f"{LABEL} --enigne serial", ("--enigne",)),
    Case("label_fails_everywhere", LABEL, ("failed 2", "failures.jsonl"), {"test.extxyz": xyz("U 0 0 0") + xyz("Pu 0 0 0")}, code=1, leaves=("out", "out/*")),
]

STORES = [
    Case("label_into_a_file", LABEL.replace("out", "test.extxyz"), ("test.extxyz", "folder|written|directory")),
    Case("label_below_a_file", LABEL.replace("out", "test.extxyz/out"), ("test.extxyz",)),
    Case("label_into_another_folder", LABEL.replace("out", "runs"), ("runs", "not empty", "manifest.json")),
    Case("label_into_another_teachers", LABEL.replace("out", "imported"), ("imported", "PFP", "emt", "another")),
    Case("label_other_quantities", f"{LABEL.replace('out', 'targets')} --quantities energy", ("targets", "another", "energy")),
    Case("label_into_proc", LABEL.replace("out", "/proc/kd"), ("/proc/kd",)),
    Case("label_into_long_name", LABEL.replace("out", "y" * 300), ("y" * 40,)),
    Case("label_into_nul", LABEL.replace("out", "'a\0b'"), ("store|folder|null|NUL",)),
    Case("verify_nothing", "kd-plugins verify nowhere", ("nowhere", "no target store")),
    Case("verify_a_file", "kd-plugins verify test.extxyz", ("test.extxyz", "store")),
    Case("verify_an_experiment", "kd-plugins verify runs", ("runs", "manifest.json")),
    Case("verify_two", "kd-plugins verify targets imported", ("imported",)),
    Case("export_nothing", "kd-plugins export nowhere out.extxyz", ("nowhere", "no target store")),
    Case("export_into_folder", "kd-plugins export targets runs", ("runs", "expected|folder")),
    Case("export_into_proc", "kd-plugins export targets /proc/out.extxyz", ("/proc",)),
    Case("export_another_format", "kd-plugins export targets out.cif", ("out.cif", "xyz")),
    Case("export_over_its_own_store", "kd-plugins export targets targets/manifest.json", ("manifest.json",)),
    Case("export_over_its_own_shard", "kd-plugins export targets targets/main.lmdb", ("main.lmdb",)),
    Case("export_empty", "kd-plugins export empty out.extxyz", ("empty", "no structure|nothing|no record"), {"empty/manifest.json": json.dumps({"teacher": "t", "fingerprint": "f", "dtypes": {"energy": "float64"}, "format": 1})}),
    Case("merge_nothing", "kd-plugins merge nowhere --into out", ("nowhere", "no target store")),
    Case("merge_second_missing", "kd-plugins merge targets nowhere --into out", ("nowhere", "no target store")),
    Case("merge_two_teachers", "kd-plugins merge targets imported --into out", ("another teacher", "PFP", "emt", "imported")),
    Case("merge_into_another", "kd-plugins merge targets --into imported", ("imported", "another teacher", "PFP", "emt")),
    Case("merge_into_a_file", "kd-plugins merge targets --into test.extxyz", ("test.extxyz",)),
    Case("merge_into_other_folder", "kd-plugins merge targets --into runs", ("runs", "not empty")),
    Case("merge_nowhere_said", "kd-plugins merge targets", ("--into", "required")),
    Case("import_no_file", "kd-plugins import no.xyz --teacher PFP --store out", ("no.xyz", "no such")),
    Case("import_no_labels", "kd-plugins import bare.extxyz --teacher PFP --store out", ("bare", "labels")),
    Case("import_lacks_quantity", "kd-plugins import train.extxyz --teacher PFP --store out --quantities stress", ("stress", "metal/0")),
    Case("import_unknown_quantity", "kd-plugins import train.extxyz --teacher PFP --store out --quantities enrgy", ("enrgy", "energy")),
    Case("import_unknown_optional", "kd-plugins import train.extxyz --teacher PFP --store out --optional enrgy", ("enrgy", "energy")),
    Case("import_empty_teacher", "kd-plugins import train.extxyz --teacher '' --store out", ("teacher",)),
    Case("import_other_teacher", "kd-plugins import test.extxyz --teacher PFP --store targets", ("targets", "emt", "PFP", "another")),
    Case("import_other_quantities", "kd-plugins import train.extxyz --teacher PFP --store imported --quantities energy", ("imported", "another")),
    Case("import_nan_energy", "kd-plugins import test.extxyz --teacher PFP --store out", ("energy", "test", "nan|NaN|finite"), {"test.extxyz": xyz("Cu 0 0 0", line=f"{CUBE} energy=nan")}),
    Case("import_inf_forces", "kd-plugins import test.extxyz --teacher PFP --store out", ("forces", "test", "finite|inf"), {"test.extxyz": xyz("Cu 0 0 0 inf 0 0", line=f"{CUBE} energy=-1", columns="species:S:1:pos:R:3:forces:R:3")}),
    Case("import_text_energy", "kd-plugins import test.extxyz --teacher PFP --store out", ("energy", "test"), {"test.extxyz": xyz("Cu 0 0 0", line=f"{CUBE} energy=low")}),
    Case("import_huge_energy", "kd-plugins import test.extxyz --teacher PFP --store out", ("test",), {"test.extxyz": xyz("Cu 0 0 0", line=f"{CUBE} energy={BIG}")}),
    Case("import_forces_beyond_float32", "kd-plugins import test.extxyz --teacher PFP --store out", ("forces", "test"), {"test.extxyz": xyz("Cu 0 0 0 1e300 0 0", line=f"{CUBE} energy=-1", columns="species:S:1:pos:R:3:forces:R:3")}),
    Case("import_position_beyond_float32", "kd-plugins import test.extxyz --teacher PFP --store out", ("positions", "test"), {"test.extxyz": xyz("Cu 1e300 0 0", line=f"{CUBE} energy=-1")}),
    Case("import_same_ids_other_labels", "kd-plugins import test.extxyz --teacher PFP --store imported", ("metal/0", "another|already|differ"), {"test.extxyz": xyz("Cu 0 0 0 0 0 0", line=f"{CUBE} structure_id=metal/0 energy=-1", columns="species:S:1:pos:R:3:forces:R:3")}),
]

DOCTORS = [
    Case("doctor_no_store", "kd-plugins doctor --store nowhere", ("nowhere", "no target store")),
    Case("doctor_no_labels_file", DOCTOR.replace("train.extxyz", "no.xyz"), ("no.xyz", "no such")),
    Case("doctor_other_structures", DOCTOR.replace("train.extxyz", "bare.extxyz"), ("bare:0|bare", "targets"), code=1),
    Case("doctor_zero_limit", f"{DOCTOR} --limit 0", ("limit", "0")),
    Case("doctor_minus_limit", f"{DOCTOR} --limit -1", ("limit", "-1")),
    Case("doctor_word_limit", f"{DOCTOR} --limit all", ("limit", "all")),
    Case("doctor_minus_seed", f"{DOCTOR} --seed -1", ("seed", "-1")),
    Case("doctor_huge_seed", f"{DOCTOR} --seed {BIG}", ("seed",)),
    Case("doctor_asks_nobody", "kd-plugins doctor --store imported --ask-teacher", ("PFP",)),
    Case("doctor_asks_misspelled", f"{DOCTOR} --ask-teacher emtt", ("emtt", "emt")),
    Case("doctor_fix_without_labels", "kd-plugins doctor --store targets --fix out", ("fix|labels",)),
    Case("doctor_fix_into_itself", f"{DOCTOR} --fix targets", ("targets",)),
    Case("doctor_fix_into_file", f"{DOCTOR} --fix test.extxyz", ("test.extxyz",)),
    Case("doctor_unknown_ids", f"{DOCTOR} --ids mp_id", ("mp_id", "metal/0|train:0")),
    Case("doctor_allows_nothing_known", f"{DOCTOR} --allow energy_unti", ("energy_unti", "did you mean", "energy_unit")),
    Case("doctor_allows_empty", f"{DOCTOR} --allow ''", ("allow",)),
    Case("doctor_half_a_student", f"{DOCTOR} --student-cutoff 5.5", ("--student-cutoff", "--student-layers", "together")),
    Case("doctor_student_minus_cutoff", f"{DOCTOR} --student-cutoff -5 --student-layers 1", ("--student-cutoff", "above 0 Å", "-5")),
    Case("doctor_student_huge_cutoff", f"{DOCTOR} --student-cutoff 1e400 --student-layers 1", ("--student-cutoff", "inf")),
    Case("doctor_student_no_layers", f"{DOCTOR} --student-cutoff 5 --student-layers 0", ("--student-layers", "1 or more", "0")),
    Case("doctor_student_word", f"{DOCTOR} --student-layers two", ("--student-layers", "two")),
    Case("doctor_two_students", f"{DOCTOR} --student emt --student-cutoff 5", ("--student", "not both")),
    Case("doctor_student_of_no_reach", f"{DOCTOR} --student emt", ("--student emt", "--student-cutoff")),
    Case("doctor_student_misspelled", f"{DOCTOR} --student emtt", ("emtt", "did you mean", "emt")),
]

EVALUATIONS = [
    Case("evaluate_no_student", "kd-plugins evaluate --out out --reference test.extxyz", ("--student", "required")),
    Case("evaluate_no_out", "kd-plugins evaluate --student emt --reference test.extxyz", ("--out", "required")),
    Case("evaluate_nothing", EVALUATE, ("nothing to measure", "--reference|structures")),
    Case("evaluate_misspelled_student", f"{EVALUATE.replace('emt', 'emtt')} --reference test.extxyz", ("emtt", "emt")),
    Case("evaluate_unknown_device", f"{EVALUATE} --reference test.extxyz --device gpu", ("device", "auto, cpu, cuda", "'gpu'")),
    Case("evaluate_misspelled_teacher", f"{EVALUATE} --teacher emtt --reference test.extxyz", ("emtt", "emt")),
    Case("evaluate_no_reference_file", f"{EVALUATE} --reference no.xyz", ("no.xyz", "no such")),
    Case("evaluate_no_labels", f"{EVALUATE} --reference bare.extxyz", ("bare", "labels|teacher")),
    Case("evaluate_empty_reference", f"{EVALUATE} --reference test.extxyz", ("test.extxyz",), {"test.extxyz": ""}),
    Case("evaluate_unknown_ids", f"{EVALUATE} --reference test.extxyz --ids mp_id", ("mp_id",)),
    Case("evaluate_same_file_twice", f"{EVALUATE} --reference test.extxyz test.extxyz", ("test.extxyz", "once|twice")),
    Case("evaluate_rigid_alone", f"{EVALUATE} --reference test.extxyz --rigid", ("rigid", "crystals")),
    Case("evaluate_list_without_folder", f"{EVALUATE} --crystals-from ids.txt", ("--cifs",), {"ids.txt": "a"}),
    Case("evaluate_list_of_nothing", f"{EVALUATE} --crystals-from ids.txt --cifs .", ("ids.txt", "id"), {"ids.txt": "# none"}),
    Case("evaluate_list_of_a_path", f"{EVALUATE} --crystals-from ids.txt --cifs .", ("ids.txt", "'../a'"), {"ids.txt": "../a"}),
    Case("evaluate_listed_file_missing", f"{EVALUATE} --crystals-from ids.txt --cifs .", ("2000001.cif", "no such file"), {"ids.txt": "2000001"}),
    Case("evaluate_rigid_and_elastic", f"{EVALUATE} --crystals crystal.extxyz --rigid --elasticity", ("rigid", "elasticity")),
    Case("evaluate_stiffness_alone", f"{EVALUATE} --crystals crystal.extxyz --stiffness t.csv", ("stiffness", "elasticity")),
    Case("evaluate_no_workers", f"{EVALUATE} --crystals crystal.extxyz --workers 0", ("workers", "0")),
    Case("mptrj_unknown_kind", "kd-plugins mptrj m.json --kind organics --out o.json", ("organics", "organic"), {"m.json": "{}"}),
    Case("mptrj_no_json", "kd-plugins mptrj m.json --kind organic --out o.json", ("m.json",), {"m.json": "[1]"}),
    Case("evaluate_elasticity_alone", f"{EVALUATE} --reference test.extxyz --elasticity", ("elasticity", "crystals")),
    Case("evaluate_steps_alone", f"{EVALUATE} --reference test.extxyz --steps 100", ("steps", "dynamics")),
    Case("evaluate_few_steps", f"{DYNAMICS} --steps 7", ("steps", "7", "40")),
    Case("evaluate_minus_steps", f"{DYNAMICS} --steps -40", ("steps", "-40")),
    Case("evaluate_minus_temperature", f"{DYNAMICS} --steps 40 --temperature -300", ("temperature", "-300")),
    Case("evaluate_nan_temperature", f"{DYNAMICS} --steps 40 --temperature nan", ("temperature", "nan")),
    Case("evaluate_inf_temperature", f"{DYNAMICS} --steps 40 --temperature inf", ("temperature", "inf")),
    Case("evaluate_word_temperature", f"{DYNAMICS} --temperature hot", ("temperature", "hot")),
    Case("evaluate_nan_cutoff", f"{DYNAMICS} --steps 40 --cutoff nan", ("cutoff", "nan")),
    Case("evaluate_zero_cutoff", f"{DYNAMICS} --steps 40 --cutoff 0", ("cutoff", "0")),
    Case("evaluate_minus_cutoff", f"{DYNAMICS} --steps 40 --cutoff -2", ("cutoff", "-2")),
    Case("evaluate_large_cutoff", f"{DYNAMICS} --steps 40 --cutoff 50", ("cell.extxyz", "50|rmax")),
    Case("evaluate_zero_repeats", f"{DYNAMICS} --repeats 0", ("repeats", "0")),
    Case("evaluate_many_repeats", f"{DYNAMICS} --repeats {10**12}", ("repeats", str(10**12))),
    Case("evaluate_minus_equilibration", f"{DYNAMICS} --steps 40 --equilibration -1", ("equilibration", "-1")),
    Case("evaluate_several_to_move", f"{EVALUATE} --dynamics test.extxyz", ("test.extxyz", "one structure", "3")),
    Case("evaluate_molecule_to_move", f"{EVALUATE} --dynamics molecule.extxyz", ("molecule.extxyz", "periodic")),
    Case("evaluate_molecule_as_crystal", f"{EVALUATE} --crystals molecule.extxyz", ("molecule", "periodic")),
    Case("evaluate_alien_to_move", f"{EVALUATE} --dynamics x.extxyz --repeats 1", ("U", "emt|x.extxyz"), {"x.extxyz": xyz("U 0 0 0")}),
    Case("evaluate_alien_reference", f"{EVALUATE} --reference x.extxyz", ("U", "emt|x"), {"x.extxyz": xyz("U 0 0 0", line=f"{CUBE} energy=-1")}, leaves=("out", "out/*")),
    Case("evaluate_crystal_id_twice", f"{EVALUATE} --crystals x.extxyz", ("same",), {"x.extxyz": twice}),
    Case("evaluate_no_bar", f"{EVALUATE} --reference test.extxyz --require force_rmse", ("force_rmse", "number")),
    Case("evaluate_nan_bar", f"{EVALUATE} --reference test.extxyz --require 'force_rmse<nan'", ("force_rmse<nan", "number")),
    Case("evaluate_unknown_bar", f"{EVALUATE} --reference test.extxyz --require 'force_rsme<1'", ("force_rsme", "force_rmse")),
    Case("evaluate_bar_of_what_is_not_measured", f"{EVALUATE} --reference test.extxyz --require 'drift<1'", ("drift", "dynamics|measured")),
    Case("evaluate_equals_bar", f"{EVALUATE} --reference test.extxyz --require 'force_rmse=1'", ("force_rmse=1",)),
    Case("evaluate_bar_missed", f"{EVALUATE} --reference test.extxyz --require 'force_rmse>1'", ("force_rmse", "> 1"), code=1, leaves=("out", "out/*")),
    Case("evaluate_into_a_file", f"{EVALUATE.replace('out out', 'out test.extxyz')} --reference test.extxyz", ("test.extxyz",)),
    Case("evaluate_into_anothers", "kd-plugins evaluate --student ase.calculators.lj:LennardJones --reference test.extxyz --out evaluated", ("evaluated", "another")),
    Case("evaluate_other_structures", "kd-plugins evaluate --student emt --reference train.extxyz --out evaluated", ("evaluated", "structures")),
    Case("evaluate_changed_structures", "kd-plugins evaluate --student emt --reference test.extxyz --out evaluated", ("test.extxyz", "changed"), {"test.extxyz": lambda path: path.write_bytes(Path("train.extxyz").read_bytes())}),
]

COMPARISONS = [
    Case("compare_no_file", "kd-plugins compare no.yml --out out", ("no.yml", "no such")),
    Case("compare_a_folder", "kd-plugins compare runs --out out", ("runs",)),
    Case("compare_no_out", "kd-plugins compare experiment.yml", ("--out", "required")),
    Case("compare_zero_workers", f"{COMPARE} --workers 0", ("workers", "0")),
    Case("compare_unknown_device", f"{COMPARE} --device gpu", ("device", "auto, cpu, cuda", "'gpu'")),
    Case("compare_minus_workers", f"{COMPARE} --workers -2", ("workers", "-2")),
    Case("compare_bar_without_arm", f"{COMPARE} --require 'force_rmse<1'", ("--arm", "student")),
    Case("compare_bar_of_unknown_arm", f"{COMPARE} --require 'force_rmse<1' --arm studnet", ("studnet|--arm", "student")),
    Case("compare_unknown_arm", f"{COMPARE} --arm studnet", ("--arm",)),
    Case("compare_bad_bar", f"{COMPARE} --require force_rmse --arm student", ("force_rmse", "number")),
    Case("compare_unknown_bar", f"{COMPARE} --require 'force_rsme<1' --arm student", ("force_rsme", "force_rmse")),
    Case("compare_into_a_file", COMPARE.replace("out out", "out test.extxyz"), ("test.extxyz",)),
    Case("compare_into_evaluation", COMPARE.replace("out out", "out targets"), ("targets",)),
    Case("compare_script_fails", COMPARE, ("control, seed 0", "exit code", "oh no"), {"train.py": "raise SystemExit('oh no')"}, leaves=("out", "out/*")),
    Case("compare_script_changed", COMPARE.replace("out out", "out compared"), ("train.py", "changed"), {"train.py": "print('other')"}),
]

REPORTS = [
    Case("report_no_folder", "kd-plugins report nowhere -o page.html", ("nowhere",)),
    Case("report_empty_folder", "kd-plugins report empty -o page.html", ("empty", "experiment.json"), {"empty/x": ""}),
    Case("report_a_file", "kd-plugins report test.extxyz -o page.html", ("test.extxyz",)),
    Case("report_no_page", "kd-plugins report runs", ("-o", "required")),
    Case("report_page_is_a_folder", "kd-plugins report runs -o targets", ("targets", "folder|directory|html")),
    Case("report_page_below_a_file", "kd-plugins report runs -o test.extxyz/page.html", ("test.extxyz",)),
    Case("report_page_in_proc", "kd-plugins report runs -o /proc/page.html", ("/proc",)),
    Case("report_page_no_html", "kd-plugins report runs -o page.pdf", ("page.pdf", "html")),
    Case("report_page_over_an_input", "kd-plugins report runs -o runs/experiment.json", ("experiment.json",)),
    Case("report_same_twice", "kd-plugins report runs runs -o page.html", ("runs",)),
    Case("report_second_missing", "kd-plugins report runs nowhere -o page.html", ("nowhere",)),
    Case("report_a_store", "kd-plugins report targets -o page.html", ("targets", "experiment.json")),
]

SAMPLING = [
    Case("sample_no_file", SAMPLE.replace("crystal", "no") + " --strain 2", ("no.extxyz", "no such")),
    Case("sample_no_out", "kd-plugins sample crystal.extxyz --strain 2", ("--out", "required")),
    Case("sample_nothing", SAMPLE, ("nothing to sample", "strain", "md")),
    Case("sample_zero", f"{SAMPLE} --strain 0", ("nothing to sample",)),
    Case("sample_minus", f"{SAMPLE} --strain -3", ("strain", "count", "-3")),
    Case("sample_half", f"{SAMPLE} --strain 1.5", ("--strain", "1.5")),
    Case("sample_no_atoms", f"{SAMPLE} --strain 2 --atoms 0", ("atoms", "0")),
    Case("sample_minus_seed", f"{SAMPLE} --strain 2 --seed -1", ("seed", "-1")),
    Case("sample_minus_distance", f"{SAMPLE} --strain 2 --min-distance -1", ("min_distance", "-1")),
    Case("sample_nan_distance", f"{SAMPLE} --strain 2 --min-distance nan", ("min_distance", "nan")),
    Case("sample_no_force", f"{SAMPLE} --strain 2 --potential emt --max-force 0", ("max_force", "0")),
    Case("sample_force_without_potential", f"{SAMPLE} --strain 2 --max-force 9", ("--max-force", "--potential")),
    Case("sample_md_without_potential", f"{SAMPLE} --md 2 --temperatures 300", ("md", "potential")),
    Case("sample_md_without_temperature", f"{SAMPLE} --md 2 --potential emt", ("md", "temperatures")),
    Case("sample_temperature_without_md", f"{SAMPLE} --strain 2 --temperatures 300", ("md", "temperatures", "count")),
    Case("sample_minus_temperature", f"{SAMPLE} --md 2 --potential emt --temperatures -5", ("temperatures", "-5")),
    Case("sample_inf_temperature", f"{SAMPLE} --md 2 --potential emt --temperatures inf", ("temperatures", "inf")),
    Case("sample_misspelled_potential", f"{SAMPLE} --md 2 --potential emtt --temperatures 300", ("emtt", "did you mean", "emt")),
    Case("sample_potential_fails", f"{SAMPLE} --strain 2 --potential emt", ("out|crystal|structure", "EMT|emt"), {"crystal.extxyz": xyz("U 0 0 0")}),
    Case("sample_ensemble_moves_nothing", f"{SAMPLE} --md 2 --temperatures 300 --potential 'emt & ase.calculators.lj:LennardJones'", ("ensemble", "calculator")),
    Case("sample_molecule_repeated", f"{SAMPLE.replace('crystal', 'molecule')} --strain 2 --atoms 32", ("molecule", "periodic", "32")),
    Case("sample_molecule_cut", f"{SAMPLE.replace('crystal', 'molecule')} --surface 2", ("molecule", "periodic"), leaves=("out.extxyz.partial*",)),
    Case("sample_metal_without_molecules", f"{SAMPLE} --molecules 2", ("crystal/molecules", "bound"), leaves=("out.extxyz.partial*",)),
    Case("sample_packing_of_a_crystal", f"{SAMPLE} --packing 2", ("crystal/packing", "periodic", "one molecule"), leaves=("out.extxyz.partial*",)),
    Case("sample_too_many_copies", f"{SAMPLE} --packing 2 --settings s.yml", ("copies", "5"), {"s.yml": "packing: {copies: 5}"}),
    Case("sample_all_taken_out", f"{SAMPLE} --vacancy 2 --settings s.yml", ("missing", "4"), {"s.yml": "vacancy: {missing: 4}"}, leaves=("out.extxyz.partial*",)),
    Case("sample_always_too_near", f"{SAMPLE} --strain 2 --min-distance 3", ("crystal/strain", "50", "min_distance"), leaves=("out.extxyz.partial*",)),
    Case("sample_two_of_one_id", f"{SAMPLE} --strain 2", ("same", "--ids"), {"crystal.extxyz": twice}),
    Case("sample_no_settings", f"{SAMPLE} --strain 2 --settings no.yml", ("no.yml", "no such")),
    Case("sample_unknown_setting", f"{SAMPLE} --strain 2 --settings s.yml", ("s.yml", "linaer", "linear"), {"s.yml": "strain: {linaer: [0, 1]}"}),
    Case("sample_unknown_method", f"{SAMPLE} --strain 2 --settings s.yml", ("s.yml", "stain", "strain"), {"s.yml": "stain: {count: 1}"}),
    Case("sample_count_is_no_block", f"{SAMPLE} --strain 2 --settings s.yml", ("strain", "7"), {"s.yml": "strain: 7"}),
    Case("sample_range_reversed", f"{SAMPLE} --settings s.yml", ("rattle", "std", "0.2", "0.1"), {"s.yml": "rattle: {count: 1, std: [0.2, 0.1]}"}),
    Case("sample_range_of_one", f"{SAMPLE} --settings s.yml", ("rattle", "std"), {"s.yml": "rattle: {count: 1, std: [0.2]}"}),
    Case("sample_strain_of_minus_one", f"{SAMPLE} --settings s.yml", ("linear", "-1"), {"s.yml": "strain: {count: 1, linear: [-1, 0]}"}),
    Case("sample_miller_of_two", f"{SAMPLE} --settings s.yml", ("miller", "three"), {"s.yml": "surface: {count: 1, miller: [[1, 0]]}"}),
    Case("sample_miller_of_zeros", f"{SAMPLE} --settings s.yml", ("miller", "0"), {"s.yml": "surface: {count: 1, miller: [[0, 0, 0]]}"}),
    Case("sample_no_scales", f"{SAMPLE} --settings s.yml", ("length_scales",), {"s.yml": "md: {count: 1, temperatures: [300], length_scales: []}"}),
    Case("sample_another_format", "kd-plugins sample crystal.extxyz --out out.cif --strain 2", ("out.cif", ".extxyz")),
    Case("sample_over_a_file", "kd-plugins sample crystal.extxyz --out test.extxyz --strain 2", ("test.extxyz", "there already", "--out")),
    Case("sample_over_its_seed", "kd-plugins sample crystal.extxyz --out crystal.extxyz --strain 2", ("crystal.extxyz", "there already")),
    Case("sample_into_a_folder", "kd-plugins sample crystal.extxyz --out x.extxyz --strain 2", ("x.extxyz", "folder"), {"x.extxyz/a": ""}),
    Case("sample_below_a_file", "kd-plugins sample crystal.extxyz --out test.extxyz/out.extxyz --strain 2", ("test.extxyz", "file")),
    Case("sample_foreign_partial_folder", f"{SAMPLE} --strain 2", ("out.extxyz.partial", "remove"), {"out.extxyz.partial/a": ""}),
    Case("sample_damaged_call", f"{SAMPLE} --strain 2", ("call.json", "JSON"), {"out.extxyz.partial/call.json": "{"}),
    Case("sample_half_made_by_another", f"{SAMPLE} --strain 2", ("another call", "seed"), {"out.extxyz.partial/call.json": '{"seed": 7}'}),
]

SELECTING = [
    Case("select_no_file", SELECT.replace("train", "no"), ("no.extxyz", "no such")),
    Case("select_no_count", "kd-plugins select train.extxyz --out out.extxyz", ("--count", "required")),
    Case("select_no_out", "kd-plugins select train.extxyz --count 3", ("--out", "required")),
    Case("select_none", f"{SELECT} --by random --count 0", ("count", "0")),
    Case("select_too_many", f"{SELECT} --by random --count 13", ("count", "12", "13")),
    Case("select_too_many_beside", f"{SELECT} --by random --beside train.extxyz", ("count", "0 structures", "12", "3")),
    Case("select_unknown_method", f"{SELECT} --by farthest", ("--by", "farthest", "distance")),
    Case("select_seed_of_distance", f"{SELECT} --seed 1", ("--seed", "random")),
    Case("select_minus_seed", f"{SELECT} --by random --seed -1", ("seed", "-1")),
    Case("select_store_of_random", f"{SELECT} --by random --store targets", ("--store", "distance")),
    Case("select_no_store", f"{SELECT} --store nowhere", ("nowhere", "no target store")),
    Case("select_no_embeddings", f"{SELECT} --store targets", ("targets", "node_embeddings", "energy", "SOAP")),
    Case("select_spread_without_store", f"{SELECT} --by spread", ("spread", "--store", "ensemble")),
    Case("select_no_spread", f"{SELECT} --by spread --store targets", ("targets", "spread", "energy", "ensemble")),
    Case("select_not_stored", "kd-plugins select test.extxyz --out out.extxyz --count 1 --by spread --store spreads", ("3 of 3", "metal/20", "label"), {"spreads/manifest.json": json.dumps({"teacher": "t", "fingerprint": "f", "dtypes": {"energy": "float64", "energy_std": "float64"}, "format": 1})}),
    Case("select_one_id_twice", "kd-plugins select test.extxyz --out out.extxyz --count 1 --by random", ("pool", "same", "two"), {"test.extxyz": twice}),
    Case("select_over_the_pool", "kd-plugins select train.extxyz --out train.extxyz --count 1 --by random", ("train.extxyz", "another name")),
    Case("select_over_beside", "kd-plugins select train.extxyz --out test.extxyz --count 1 --by random --beside test.extxyz", ("test.extxyz", "another name")),
    Case("select_another_format", "kd-plugins select train.extxyz --out out.cif --count 1 --by random", ("out.cif", ".extxyz")),
    Case("select_into_a_folder", "kd-plugins select train.extxyz --out x.extxyz --count 1 --by random", ("x.extxyz", "folder"), {"x.extxyz/a": ""}),
]

WORDS = [
    Case("no_command", "kd-plugins ", ("COMMAND",)),
    Case("misspelled_command", "kd-plugins lable", ("lable", "label")),
    Case("label_without_words", "kd-plugins label", ("required", "--teacher")),
]

CASES = [
    *STRUCTURES,
    *TEACHERS,
    *STORES,
    *DOCTORS,
    *EVALUATIONS,
    *COMPARISONS,
    *REPORTS,
    *SAMPLING,
    *SELECTING,
    *WORDS,
]
