"""What our public functions are given, and must refuse."""

from __future__ import annotations

from typing import Any

from tests.bad_inputs.case import Case
from tests.bad_inputs.experiments import DISTILL


def names() -> dict[str, Any]:
    """Return what the Python of a case may use: our public names, and a few sound objects."""
    found: dict[str, Any] = {"DISTILL": DISTILL}
    exec(compile(PRELUDE, "prelude", "exec"), found)
    return found


PRELUDE = """
import json
from math import inf, nan
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

import kd_plugins
from kd_plugins import core, evaluate, sampling, store, structures, teachers

# Their names are imported when they are asked for, which `import *` does not.
for room in (core, store, structures, teachers, sampling, evaluate):
    globals().update({name: getattr(room, name) for name in dir(room) if name[0] != "_"})

from kd_plugins.doctor.examine import *
from kd_plugins.core.quantities import quantity
from kd_plugins.doctor.references import Compositions, fit_references
from kd_plugins.torch_files import load_torch_file
from kd_plugins.files import read_json
from kd_plugins.fairchem.settings import read_settings
from kd_plugins.config import distance, weight
from kd_plugins.evaluate.settings import CrystalSettings, DynamicsSettings, EvaluationSettings
from kd_plugins.evaluate.dynamics import thermal_velocities
from kd_plugins.evaluate.requirements import Requirement, faults
from kd_plugins.evaluate.similarity import rmsd15
from kd_plugins.report import write_report
from kd_plugins.teachers.registry import TeacherSpec, parse_teachers
from kd_plugins.structures.readers import to_atoms, to_structure
from kd_plugins.doctor.diagnosis import diagnose
from kd_plugins.doctor.align import align
from kd_plugins.compare import Comparison, read_experiment

BIG = 10**400
cu = Structure([29], [[0.0, 0.0, 0.0]], np.eye(3) * 4, [True] * 3)
one = Record("one", cu, {"energy": torch.tensor(-1.0)})
manifest = Manifest("EMT", "ase.emt", {"energy": "float64", "forces": "float32"})
student, teacher = torch.ones(3, 4), torch.zeros(3, 4)
edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
copper = bulk("Cu", cubic=True)
frame = LabelledStructure("cu", copper)

def open_store():
    return TargetStore.open("targets")

def new_store():
    import tempfile
    return TargetStore.create(Path(tempfile.mkdtemp()) / "store", manifest)

def energy(value, n=1):
    return TeacherTargets(("a",), torch.tensor([n]), {"energy": value})
"""


def python(name: str, code: str, *says: str, needs: str | None = None) -> Case:
    """Return a case of Python."""
    return Case(name, code, says, needs=needs)


STORE = [
    python("store_open_nowhere", "TargetStore.open('nowhere')", "nowhere", "no target store"),
    python("store_open_a_number", "TargetStore.open(3)", "3"),
    python("store_open_null", "TargetStore.open(None)", "None"),
    python("store_create_in_runs", "TargetStore.create('runs', manifest)", "runs", "not empty"),
    python(
        "store_create_of_another", "TargetStore.create('targets', manifest)", "targets", "another"
    ),
    python(
        "store_create_without_manifest",
        "TargetStore.create('out', {'teacher': 'x'})",
        "Manifest|manifest",
    ),
    python("store_append_a_float", "open_store().append(3.0)", "Record|record"),
    python("store_append_floats", "new_store().append([3.0])", "Record|record", "3.0"),
    python("store_append_one_record", "new_store().append(one)", "Record|record"),
    python("store_append_twice", "new_store().append([one, one])", "'one'", "already|twice"),
    python(
        "store_append_known",
        "s = new_store(); s.append([one]); s.append([one])",
        "'one'",
        "already",
    ),
    python(
        "store_append_unknown_quantity",
        "new_store().append([Record('a', cu, {'stress': torch.zeros(6)})])",
        "'a'",
        "stress",
        "energy",
    ),
    python(
        "store_append_misspelled_quantity",
        "new_store().append([Record('a', cu, {'enrgy': torch.tensor(1.0)})])",
        "'a'",
        "enrgy",
    ),
    python(
        "store_append_no_values",
        "new_store().append([Record('a', cu, {})])",
        "'a'",
        "value|quantit",
    ),
    python(
        "store_append_nan",
        "new_store().append([Record('a', cu, {'energy': torch.tensor(nan)})])",
        "'a'",
        "energy",
        "finite",
    ),
    python(
        "store_append_inf",
        "new_store().append([Record('a', cu, {'forces': torch.full((1, 3), inf)})])",
        "'a'",
        "forces",
        "finite",
    ),
    python(
        "store_append_beyond_float32",
        "new_store().append([Record('a', cu, {'forces': torch.full((1, 3), 1e300, dtype=torch.float64)})])",
        "'a'",
        "forces",
        "float32",
    ),
    python(
        "store_append_complex",
        "new_store().append([Record('a', cu, {'energy': torch.tensor(1 + 2j)})])",
        "'a'",
        "energy",
        "complex",
    ),
    python(
        "store_append_text_value",
        "new_store().append([Record('a', cu, {'energy': 'low'})])",
        "'a'",
        "energy",
        "tensor",
    ),
    python(
        "store_append_bool_value",
        "new_store().append([Record('a', cu, {'energy': torch.tensor(True)})])",
        "'a'",
        "energy",
        "bool",
    ),
    python(
        "store_append_a_float_value",
        "new_store().append([Record('a', cu, {'energy': -1.0})])",
        "'a'",
        "energy",
        "tensor",
    ),
    python(
        "store_append_wrong_shape",
        "new_store().append([Record('a', cu, {'forces': torch.zeros(2, 3)})])",
        "forces",
        "(2, 3)",
    ),
    python(
        "store_append_energy_of_a_batch",
        "new_store().append([Record('a', cu, {'energy': torch.zeros(1)})])",
        "energy",
    ),
    python(
        "store_append_needs_grad",
        "new_store().append([Record('a', cu, {'energy': torch.tensor(1.0, requires_grad=True)})])",
        "energy",
        "grad",
    ),
    python(
        "store_append_no_structure",
        "new_store().append([Record('a', None, {'energy': torch.tensor(1.0)})])",
        "'a'",
        "tructure",
    ),
    python(
        "store_append_empty_id",
        "new_store().append([Record('', cu, {'energy': torch.tensor(1.0)})])",
        "id",
        "bytes|empty",
    ),
    python(
        "store_append_long_id",
        "new_store().append([Record('x' * 600, cu, {'energy': torch.tensor(1.0)})])",
        "id",
        "600",
    ),
    python(
        "store_append_number_id",
        "new_store().append([Record(7, cu, {'energy': torch.tensor(1.0)})])",
        "id",
        "7",
    ),
    python(
        "store_append_lone_surrogate",
        "new_store().append([Record('a\\ud800', cu, {'energy': torch.tensor(1.0)})])",
        "id",
    ),
    python(
        "store_append_element_0",
        "new_store().append([Record('a', Structure([0], [[0.0] * 3], np.eye(3), [True] * 3), {'energy': torch.tensor(1.0)})])",
        "0",
        "atomic",
    ),
    python(
        "store_append_element_70000",
        "new_store().append([Record('a', Structure([70000], [[0.0] * 3], np.eye(3), [True] * 3), {'energy': torch.tensor(1.0)})])",
        "70000",
    ),
    python(
        "store_append_beyond_float32_position",
        "new_store().append([Record('a', Structure([29], [[1e300] * 3], np.eye(3), [True] * 3), {'energy': torch.tensor(1.0)})])",
        "position",
    ),
    python("store_shard_name", "open_store().append([one], shard='../x')", "../x"),
    python("store_shard_dots", "open_store().append([one], shard='..')", ".."),
    python("store_shard_empty", "open_store().append([one], shard='')", "shard"),
    python("store_shard_number", "open_store().append([one], shard=3)", "shard", "3"),
    python("store_record_unknown", "open_store().record('nobody')", "nobody", "targets"),
    python("store_item_unknown", "open_store()['nobody']", "nobody", "targets"),
    python("store_item_number", "open_store()[0]", "0", "id"),
    python(
        "store_read_another_structure",
        "open_store().read('metal/0', cu)",
        "metal/0",
        "4 atoms|1 atoms|atoms",
    ),
    python("store_read_atoms", "open_store().read('metal/0', copper)", "Structure|structure"),
    python("store_merge_a_path", "new_store().merge(['targets'])", "TargetStore|store", "targets"),
    python("store_merge_another", "new_store().merge([open_store()])", "another"),
    python("store_merge_itself_alone", "new_store().merge(open_store())", "store|list"),
]

RECORDS = [
    python("manifest_no_quantity", "Manifest('a', 'b', {})", "quantity"),
    python("manifest_list_of_dtypes", "Manifest('a', 'b', ['energy'])", "dtypes"),
    python("manifest_misspelled", "Manifest('a', 'b', {'enrgy': 'float32'})", "enrgy", "energy"),
    python("manifest_dtype", "Manifest('a', 'b', {'energy': 'float8'})", "float8", "float16"),
    python(
        "manifest_torch_dtype", "Manifest('a', 'b', {'energy': torch.float32})", "energy", "float32"
    ),
    python("manifest_teacher_null", "Manifest(None, 'b', {'energy': 'float32'})", "teacher"),
    python("manifest_teacher_empty", "Manifest('', 'b', {'energy': 'float32'})", "teacher"),
    python(
        "manifest_offset_nan",
        "Manifest('a', 'b', {'energy': 'float32'}, energy_offsets={'Cu': nan})",
        "Cu",
        "nan",
    ),
    python(
        "structure_nan", "Structure([29], [[nan, 0, 0]], np.eye(3), [True] * 3)", "positions", "NaN"
    ),
    python(
        "structure_inf_cell", "Structure([29], [[0.0, 0, 0]], np.eye(3) * inf, [True] * 3)", "cell"
    ),
    python(
        "structure_shape",
        "Structure([29], [[0.0, 0.0]], np.eye(3), [True] * 3)",
        "positions",
        "(1, 2)",
    ),
    python(
        "structure_two_elements",
        "Structure([29, 29], [[0.0, 0.0, 0.0]], np.eye(3), [True] * 3)",
        "positions",
        "(1, 3)",
    ),
    python("structure_no_atoms", "Structure([], np.zeros((0, 3)), np.eye(3), [True] * 3)", "atom"),
    python(
        "structure_text_element",
        "Structure(['Cu'], [[0.0, 0.0, 0.0]], np.eye(3), [True] * 3)",
        "atomic_numbers",
        "Cu",
    ),
    python(
        "structure_half_element",
        "Structure([29.5], [[0.0, 0.0, 0.0]], np.eye(3), [True] * 3)",
        "atomic_numbers",
        "29.5",
    ),
    python(
        "structure_element_0",
        "Structure([0], [[0.0, 0.0, 0.0]], np.eye(3), [True] * 3)",
        "atomic_numbers",
        "0",
    ),
    python(
        "structure_element_minus",
        "Structure([-1], [[0.0, 0.0, 0.0]], np.eye(3), [True] * 3)",
        "atomic_numbers",
        "-1",
    ),
    python(
        "structure_element_119",
        "Structure([119], [[0.0, 0.0, 0.0]], np.eye(3), [True] * 3)",
        "atomic_numbers",
        "119",
    ),
    python(
        "structure_element_70000",
        "Structure([70000], [[0.0, 0.0, 0.0]], np.eye(3), [True] * 3)",
        "atomic_numbers",
        "70000",
    ),
    python(
        "structure_element_huge",
        "Structure([BIG], [[0.0, 0.0, 0.0]], np.eye(3), [True] * 3)",
        "atomic_numbers",
    ),
    python(
        "structure_text_positions",
        "Structure([29], [['a', 'b', 'c']], np.eye(3), [True] * 3)",
        "positions",
    ),
    python(
        "structure_ragged_positions",
        "Structure([29, 29], [[0.0, 0.0], [0.0]], np.eye(3), [True] * 3)",
        "positions",
    ),
    python(
        "structure_complex_positions",
        "Structure([29], [[1j, 0, 0]], np.eye(3), [True] * 3)",
        "positions",
        "complex|real",
    ),
    python(
        "structure_pbc_of_numbers",
        "Structure([29], [[0.0, 0.0, 0.0]], np.eye(3), [7, 8, 9])",
        "pbc",
        "7",
    ),
    python(
        "structure_pbc_of_text",
        "Structure([29], [[0.0, 0.0, 0.0]], np.eye(3), ['no', 'no', 'no'])",
        "pbc",
        "no",
    ),
    python("structure_one_pbc", "Structure([29], [[0.0, 0.0, 0.0]], np.eye(3), True)", "pbc"),
    python(
        "structure_cell_lengths",
        "Structure([29], [[0.0, 0.0, 0.0]], [1, 2, 3], [True] * 3)",
        "cell",
        "(3,)",
    ),
    python(
        "targets_ids", "TeacherTargets(('a', 'b'), torch.tensor([1]), {})", "structure_ids", "2"
    ),
    python(
        "targets_ids_are_one_text",
        "TeacherTargets('a', torch.tensor([1]), {'energy': torch.zeros(1)})",
        "structure_ids",
    ),
    python("targets_counts", "TeacherTargets(('a',), torch.tensor([1.5]), {})", "n_atoms"),
    python(
        "targets_minus_count", "TeacherTargets(('a',), torch.tensor([-1]), {})", "n_atoms", "-1"
    ),
    python(
        "targets_list_of_counts",
        "TeacherTargets(('a',), [1], {'energy': torch.zeros(1)})",
        "n_atoms",
    ),
    python(
        "targets_misspelled",
        "TeacherTargets(('a',), torch.tensor([1]), {'enrgy': torch.zeros(1)})",
        "enrgy",
        "energy",
    ),
    python("targets_shape", "energy(torch.zeros(2))", "energy", "(2,)"),
    python("targets_nan", "energy(torch.tensor([nan]))", "energy", "'a'", "finite"),
    python("targets_list", "energy([1.0])", "energy", "tensor"),
    python("targets_array", "energy(np.zeros(1))", "energy", "tensor"),
    python("targets_whole_numbers", "energy(torch.tensor([1]))", "energy", "int64"),
    python("targets_complex", "energy(torch.tensor([1j]))", "energy", "complex"),
    python("targets_grad", "energy(torch.zeros(1, requires_grad=True))", "energy", "grad"),
    python(
        "targets_presence_shape",
        "TeacherTargets(('a',), torch.tensor([1]), {'energy': torch.zeros(1)}, {'energy': torch.ones(2, dtype=torch.bool)})",
        "present",
        "energy",
    ),
    python(
        "targets_presence_of_numbers",
        "TeacherTargets(('a',), torch.tensor([1]), {'energy': torch.zeros(1)}, {'energy': torch.ones(1)})",
        "present",
        "energy",
        "bool",
    ),
    python(
        "targets_presence_of_another",
        "TeacherTargets(('a',), torch.tensor([1]), {'energy': torch.zeros(1)}, {'forces': torch.ones(1, dtype=torch.bool)})",
        "present",
        "forces",
    ),
    python("targets_mask_of_another", "energy(torch.zeros(1)).mask('forces')", "forces", "energy"),
    python("quantity_misspelled", "quantity('enrgy')", "enrgy", "energy"),
    python("quantity_number", "quantity(3)", "3"),
]

LOSSES = [
    *(
        python(f"{name}_shapes", f"{name}(student, torch.zeros(2, 4))", "(3, 4)", "(2, 4)")
        for name in (
            "squared_sum",
            "squared_mean",
            "absolute_sum",
            "absolute_mean",
            "norm",
            "cosine_similarity",
        )
    ),
    python("squared_sum_of_a_list", "squared_sum([[1.0]], [[1.0]])", "student", "tensor"),
    python("huber_shapes", "Huber(1.0)(student, torch.zeros(2, 4))", "(3, 4)", "(2, 4)"),
    python("crack_shapes", "crack_loss(student, torch.zeros(2, 4), edges)", "3", "2"),
    python("crack_widths", "crack_loss(student, torch.zeros(3, 5), edges)", "4", "5"),
    python("crack_list", "crack_loss([[1.0]], teacher, edges)", "student", "tensor"),
    python(
        "crack_edges_outside",
        "crack_loss(student, teacher, torch.tensor([[0], [9]]))",
        "edge_index",
        "9",
    ),
    python(
        "crack_edges_minus",
        "crack_loss(student, teacher, torch.tensor([[0], [-1]]))",
        "edge_index",
        "-1",
    ),
    python("crack_edges_shape", "crack_loss(student, teacher, edges.T)", "edge_index", "(3, 2)"),
    python(
        "crack_edges_float", "crack_loss(student, teacher, edges.float())", "edge_index", "float32"
    ),
    python("crack_edges_list", "crack_loss(student, teacher, [[0], [1]])", "edge_index", "tensor"),
    python(
        "crack_anchor",
        "crack_loss(student, teacher, edges, anchor='techer')",
        "anchor",
        "techer",
        "teacher",
    ),
    python(
        "crack_edges_kind",
        "crack_loss(student, teacher, edges, edges='both')",
        "edges",
        "both",
        "directed",
    ),
    python("crack_negatives", "Crack(negatives='all')", "negatives", "all", "local"),
    python("crack_negatives_mapping", "Crack(negatives={'sample': 9})", "negatives", "sample"),
    python("sampled_one", "SampledNegatives(1)", "negatives.sample", "1", "4"),
    python("sampled_half", "SampledNegatives(8.5)", "negatives.sample", "8.5"),
    python("sampled_seed", "SampledNegatives(8, seed=-1)", "negatives.seed", "-1"),
    python(
        "crack_nan_student",
        "crack_loss(torch.full((3, 4), nan), teacher, edges)",
        "student",
        "NaN|nan|finite",
    ),
    python(
        "crack_integer_student",
        "crack_loss(student.long(), teacher.long(), edges)",
        "student",
        "int64",
    ),
    python("instance_shapes", "instance_loss(student, torch.zeros(2, 4))", "3", "2"),
    python("instance_anchor", "Instance(anchor='techer')", "anchor", "techer", "teacher"),
    python("mean_shapes", "masked_mean(torch.ones(3), torch.ones(2, dtype=torch.bool))", "3", "2"),
    python("mean_of_numbers", "masked_mean(torch.ones(3), torch.ones(3))", "mask", "bool"),
    python(
        "projection_shape",
        "Projection(4, 4, 1, 0)(torch.zeros(2, 3, 4))",
        "embeddings",
        "(2, 3, 4)",
    ),
    python("projection_rows", "Projection(4, 4, 1, 0)(torch.zeros(2, 4))", "embeddings", "(2, 4)"),
    python(
        "term_misspelled_quantity",
        "DistanceTerm('a', 'enrgy', norm, Constant(1.0))",
        "enrgy",
        "energy",
    ),
    python("term_weight_is_a_number", "DistanceTerm('a', 'energy', norm, 1.0)", "weight", "1.0"),
    python(
        "term_distance_is_a_name",
        "DistanceTerm('a', 'energy', 'norm', Constant(1.0))",
        "distance",
        "norm",
    ),
    python("term_empty_name", "DistanceTerm('', 'energy', norm, Constant(1.0))", "name"),
    python(
        "loss_two_terms_of_one_name",
        "DistillationLoss((DistanceTerm('a', 'energy', norm, Constant(1.0)),) * 2)",
        "'a'",
    ),
    python(
        "loss_of_a_term",
        "DistillationLoss(DistanceTerm('a', 'energy', norm, Constant(1.0)))",
        "term",
    ),
    python("weight_misspelled", "weight({'schedule': 'liner'})", "liner", "linear"),
    python("weight_list", "weight([1])", "[1]"),
    python("distance_misspelled", "distance('nrom')", "nrom", "norm"),
    python("distance_number", "distance(3)", "3"),
    python("schedule_steps_text", "Piecewise(steps=('a',), weights=(1.0,))", "'a'"),
    python("schedule_order", "Piecewise(steps=(3, 3), weights=(1.0, 2.0))", "increase", "[3, 3]"),
    python("schedule_first_minus", "Linear(0.0, 1.0, -1, 3)", "first_step", "-1"),
    python("references_lengths", "fit_references([[29]], [1.0], [1.0, 2.0])", "1", "2"),
    python("compositions_empty", "Compositions.of([np.array([], dtype=int)])", "atom"),
]

TEACHERS = [
    python("label_no_frames", "label([], 'emt', 'out', progress=False)", "structure|frame"),
    python("label_atoms", "label([copper], 'emt', 'out', progress=False)", "LabelledStructure"),
    python(
        "label_one_frame", "label(frame, 'emt', 'out', progress=False)", "LabelledStructure|frames"
    ),
    python(
        "label_a_path",
        "label('train.extxyz', 'emt', 'out', progress=False)",
        "LabelledStructure|read_structures",
    ),
    python("label_misspelled", "label([frame], 'emtt', 'out', progress=False)", "emtt", "emt"),
    python(
        "label_a_calculator",
        "label([frame], EMT(), 'out', progress=False)",
        "CalculatorTeacher|calculator",
    ),
    python("label_teacher_null", "label([frame], None, 'out', progress=False)", "teacher", "None"),
    python(
        "label_engine",
        "label([frame], 'emt', 'out', engine='dask', progress=False)",
        "engine",
        "dask",
        "serial",
    ),
    python(
        "label_workers_zero",
        "label([frame], 'emt', 'out', engine='process', workers=0, progress=False)",
        "workers",
        "0",
    ),
    python(
        "label_workers_half",
        "label([frame], 'emt', 'out', engine='process', workers=1.5, progress=False)",
        "workers",
        "1.5",
    ),
    python(
        "label_quantities_text",
        "label([frame], 'emt', 'out', 'energy', progress=False)",
        "quantities",
        "energy",
    ),
    python("label_quantities_empty", "label([frame], 'emt', 'out', [], progress=False)", "quantit"),
    python(
        "label_quantities_twice",
        "label([frame], 'emt', 'out', ['energy', 'energy'], progress=False)",
        "energy",
        "twice|once|different",
    ),
    python(
        "label_calculator_in_processes",
        "label([frame], CalculatorTeacher(EMT()), 'out', engine='process', workers=2, progress=False)",
        "process",
    ),
    python("calculator_of_none", "CalculatorTeacher(None)", "calculator", "None"),
    python("calculator_of_text", "CalculatorTeacher('emt')", "calculator", "emt"),
    python("calculator_class", "CalculatorTeacher(EMT)", "EMT", "class|calculator"),
    python(
        "calculator_asked_for_magmoms",
        "CalculatorTeacher(EMT())(copper, ['magmoms'])",
        "EMT",
        "magmoms",
    ),
    python("ensemble_of_one", "Ensemble([CalculatorTeacher(EMT())])", "two|2", "1|one"),
    python("ensemble_of_none", "Ensemble([])", "two|2"),
    python("ensemble_of_names", "Ensemble(['emt', 'emt'])", "teacher", "emt"),
    python("read_no_files", "list(read_structures([]))", "file"),
    python("read_missing", "list(read_structures(['no.xyz']))", "no.xyz", "no such"),
    python("read_number", "list(read_structures([3]))", "3"),
    python("read_ids", "list(read_structures(['train.extxyz'], ids='mp_id'))", "mp_id"),
    python("read_ids_number", "list(read_structures(['train.extxyz'], ids=3))", "ids", "3"),
    python("import_no_paths", "import_labels([], 'out', 'PFP')", "file|path"),
    python(
        "import_quantities_text",
        "import_labels(['train.extxyz'], 'out', 'PFP', 'energy')",
        "quantities",
        "energy",
    ),
    python("import_teacher_null", "import_labels(['train.extxyz'], 'out', None)", "teacher"),
    python(
        "export_a_path", "export_extxyz('targets', 'out.extxyz')", "store|TargetStore", "targets"
    ),
    python("export_suffix", "export_extxyz(open_store(), 'out.cif')", "out.cif", "xyz"),
    python("export_unknown_ids", "export_extxyz(open_store(), 'out.extxyz', ['nobody'])", "nobody"),
    python(
        "export_ids_text", "export_extxyz(open_store(), 'out.extxyz', 'metal/0')", "ids", "metal/0"
    ),
    python("export_no_ids", "export_extxyz(open_store(), 'out.extxyz', [])", "id|structure"),
    python("spec_empty", "TeacherSpec.parse('')", "teacher"),
    python("spec_quotes", "TeacherSpec.parse('emt \"x')", "quot"),
    python("spec_number", "TeacherSpec.parse(3)", "3"),
    python("load_misspelled", "load_teacher('emtt')", "emtt", "emt"),
    python("load_number", "load_teacher(3)", "3"),
    python("failures_of_a_path", "failures('targets')", "targets", "store"),
    python("diagnose_a_path", "diagnose([], 'targets')", "targets", "store"),
    python("diagnose_limit", "diagnose([], open_store(), limit=0)", "limit", "0"),
    python(
        "align_without_references", "align(open_store(), None, 'out', progress=False)", "references"
    ),
    python("allow_unknown", "check_allow(['energy_unti'])", "energy_unti", "energy_unit"),
    python("allow_text", "check_allow('energy_unit')", "list", "energy_unit"),
    python(
        "torch_file_missing",
        "load_torch_file('no.pt', trust_pickle=False, remedy='x')",
        "no.pt",
        "no such",
    ),
    python(
        "torch_file_text",
        "load_torch_file('test.extxyz', trust_pickle=False, remedy='set X')",
        "test.extxyz",
    ),
    python(
        "torch_file_folder",
        "load_torch_file('runs', trust_pickle=False, remedy='set X')",
        "runs",
        "folder",
    ),
    python(
        "torch_file_trusted_text",
        "load_torch_file('test.extxyz', trust_pickle=True, remedy='set X')",
        "test.extxyz",
    ),
    python("json_missing", "read_json(Path('no.json'))", "no.json", "no such|not there"),
]

CRYSTALS = [
    python("kind_empty", "kind([])", "atom"),
    python("kind_zero", "kind([0])", "0"),
    python("kind_text", "kind(['C'])", "C"),
    python("of_kind_unknown", "list(of_kind([frame], 'metallic'))", "metallic", "organic"),
    python("molecules_no_atoms", "find_molecules(Atoms())", "atom"),
    python("molecules_minus", "find_molecules(molecule('H2O'), tolerance=-1)", "tolerance", "-1"),
    python("molecules_of_text", "find_molecules('H2O')", "Atoms", "H2O"),
    python("molecules_of_metal", "find_molecules(copper)", "molecule"),
    python(
        "scale_shape",
        "m = bulk('Ar', cubic=True) * 2; scale_rigidly(m, find_molecules(m), np.eye(2))",
        "deformation",
        "(2, 2)",
    ),
    python(
        "scale_collapse",
        "m = bulk('Ar', cubic=True) * 2; scale_rigidly(m, find_molecules(m), np.zeros((3, 3)))",
        "deformation",
    ),
    python(
        "scale_nan",
        "m = bulk('Ar', cubic=True) * 2; scale_rigidly(m, find_molecules(m), np.eye(3) * nan)",
        "deformation",
        "nan|NaN|finite",
    ),
    python(
        "scale_others_molecules",
        "m = bulk('Ar', cubic=True); scale_rigidly(m * 2, find_molecules(m), np.eye(3))",
        "32",
        "4",
    ),
    python(
        "deformation_strain_order", "Deformation(linear_strain=(0.1, -0.1))", "linear_strain", "0.1"
    ),
    python("deformation_strain_one", "Deformation(linear_strain=(0.1,))", "linear_strain"),
    python(
        "deformation_strain_collapse",
        "Deformation(linear_strain=(-1.5, 0.0))",
        "linear_strain",
        "-1.5",
    ),
    python("deformed_count_zero", "list(deformed_frames([frame], 0, 0))", "count", "0"),
    python("deformed_count_half", "list(deformed_frames([frame], 1.5, 0))", "count", "1.5"),
    python("deformed_seed_minus", "list(deformed_frames([frame], 1, -1))", "seed", "-1"),
    python("split_sum", "split(['a'], {'x': 0.5}, seed=0)", "shares", "0.5"),
    python("split_minus", "split(['a'], {'x': 1.5, 'y': -0.5}, seed=0)", "shares", "-0.5"),
    python("split_nan", "split(['a'], {'x': nan, 'y': 0.5}, seed=0)", "shares", "nan"),
    python("split_none", "split(['a'], {}, seed=0)", "shares"),
    python("split_seed", "split(['a'], {'x': 1.0}, seed=-1)", "seed", "-1"),
    python("subset_too_large", "nested_subset(['a'], 3, 0)", "3", "1"),
    python("subset_minus", "nested_subset(['a'], -1, 0)", "size", "-1"),
    python("subset_half", "nested_subset(['a', 'b'], 0.5, 0)", "size", "0.5"),
    python("subset_twice", "nested_subset(['a', 'a'], 1, 0)", "'a'", "twice|once"),
    python(
        "scan_scales_empty",
        "m = bulk('Ar', cubic=True); volume_scan(m, find_molecules(m), [])",
        "linear_scales|scale",
    ),
    python(
        "scan_scale_zero",
        "m = bulk('Ar', cubic=True); volume_scan(m, find_molecules(m), [0.0, 1.0])",
        "scale",
        "0",
    ),
    python("minimum_lengths", "minimum_volume([1.0, 2.0], [1.0], 1.0)", "2", "1"),
    python("minimum_few", "minimum_volume([1.0], [1.0], 1.0)", "1"),
    python(
        "minimum_nan",
        "minimum_volume([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, nan, 1.0, 1.0, 1.0], 1.0)",
        "energies",
        "nan|NaN|finite",
    ),
    python(
        "minimum_reference",
        "minimum_volume([1.0, 2.0, 3.0, 4.0, 5.0], [3.0, 2.0, 1.0, 2.0, 3.0], 0.0)",
        "reference",
        "0",
    ),
]

EVALUATION = [
    python("accuracy_nothing", "compare({}, {}, {})", "structure"),
    python(
        "accuracy_other_ids",
        "compare({'a': {'energy': np.array(1.0)}}, {'b': {'energy': np.array(1.0)}}, {'a': 1})",
        "'a'|'b'",
    ),
    python(
        "accuracy_no_count",
        "compare({'a': {'energy': np.array(1.0)}}, {'a': {'energy': np.array(1.0)}}, {})",
        "'a'",
        "n_atoms|atoms",
    ),
    python(
        "accuracy_shapes",
        "compare({'a': {'forces': np.zeros((1, 3))}}, {'a': {'forces': np.zeros((2, 3))}}, {'a': 1})",
        "'a'",
        "forces",
    ),
    python(
        "accuracy_nan",
        "compare({'a': {'energy': np.array(nan)}}, {'a': {'energy': np.array(1.0)}}, {'a': 1})",
        "'a'",
        "energy",
    ),
    python(
        "nve_no_steps",
        "nve(copper, EMT(), 0, temperature=300, seed=0, progress=False)",
        "steps",
        "0",
    ),
    python(
        "nve_alien",
        "nve(Atoms('U', cell=[4] * 3, pbc=True), EMT(), 40, temperature=300, seed=0, progress=False)",
        "U",
    ),
    python(
        "nve_every",
        "nve(copper, EMT(), 40, temperature=300, seed=0, every=0, progress=False)",
        "every",
        "0",
    ),
    python(
        "nve_no_calculator",
        "nve(copper, None, 40, temperature=300, seed=0, progress=False)",
        "calculator",
    ),
    python(
        "nve_no_atoms", "nve(Atoms(), EMT(), 40, temperature=300, seed=0, progress=False)", "atom"
    ),
    python("velocities_minus", "thermal_velocities(copper, -300, 0)", "temperature", "-300"),
    python("rdf_no_frames", "rdf([], 3.0)", "frame|structure"),
    python("rdf_molecule", "rdf([molecule('H2O')], 3.0)", "periodic|cell"),
    python("rdf_large_cutoff", "rdf([copper], 30.0)", "cutoff|30"),
    python(
        "rdf_other_grid",
        "rdf([copper * 3], 3.0, 50).distance(rdf([copper * 3], 3.0, 60))",
        "50|60|distances",
    ),
    python("relax_molecule_cell", "relax(molecule('H2O'), EMT())", "periodic|cell"),
    python("relax_no_calculator", "relax(copper, None)", "calculator"),
    python("elastic_molecule", "elastic_tensor(molecule('H2O'), EMT())", "periodic|cell"),
    python("elastic_no_strains", "elastic_tensor(copper, EMT(), strains=[])", "strains"),
    python("elastic_zero_strain", "elastic_tensor(copper, EMT(), strains=[0.0])", "strains", "0"),
    python("strained_component", "strained(copper, 7, 0.1)", "component", "7"),
    python("strained_nan", "strained(copper, 0, nan)", "strain", "nan"),
    python("averages_shape", "ElasticAverages.of(np.eye(3))", "(6, 6)|6", "(3, 3)"),
    python("averages_nan", "ElasticAverages.of(np.full((6, 6), nan))", "nan|NaN|finite"),
    python("averages_unstable", "ElasticAverages.of(-np.eye(6))", "stiffness|stable"),
    python("volume_error_zero", "volume_error_percent(1.0, 0.0)", "reference", "0"),
    python("volume_errors_names", "VolumeErrors.of({}, {'a': 1.0})", "'a'|relax"),
    python("measure_nothing", "EvaluationSettings()", "nothing to measure"),
    python(
        "measure_text", "EvaluationSettings(structures='test.extxyz')", "structures", "test.extxyz"
    ),
    python("bar_text", "Requirement.parse('force_rmse')", "force_rmse", "number"),
    python("bar_number", "Requirement.parse(3)", "3"),
    python("bar_nan", "Requirement.parse('force_rmse<nan')", "nan", "number"),
    python(
        "rmsd_other_atoms", "rmsd15(bulk('Ar', cubic=True), bulk('Ar', cubic=True) * 2)", "4", "32"
    ),
    python("rmsd_molecule", "rmsd15(molecule('H2O'), molecule('H2O'))", "periodic|cell"),
    python("memory_of_emt", "peak_bytes(copper, EMT())", "EMT", "torch"),
    python("scanned_no_calculator", "scanned_volume(bulk('Ar', cubic=True), None)", "calculator"),
    python("report_nowhere", "write_report([Path('nowhere')], Path('x.html'))", "nowhere"),
    python("report_of_none", "write_report([], Path('x.html'))", "folder|runs"),
    python("experiment_nowhere", "read_experiment(Path('no.yml'))", "no.yml", "no such"),
]

NUMBERS: dict[str, tuple[str, str]] = {
    "huber": ("Huber(VALUE)", "delta"),
    "constant": ("Constant(VALUE)", "weight"),
    "linear_start": ("Linear(VALUE, 1.0, 0, 3)", "weight"),
    "linear_last": ("Linear(0.0, 1.0, 0, VALUE)", "step"),
    "piecewise_step": ("Piecewise((VALUE,), (1.0,))", "step"),
    "crack_temperature": ("Crack(temperature=VALUE)", "temperature"),
    "crack_tolerance": ("Crack(tolerance=VALUE)", "tolerance"),
    "instance_temperature": ("Instance(temperature=VALUE)", "temperature"),
    "projection_width": ("Projection(VALUE, 4, 1, 0)", "width"),
    "projection_lmax": ("Projection(4, 4, VALUE, 0)", "lmax"),
    "projection_seed": ("Projection(4, 3, 1, VALUE)", "seed"),
    "dynamics_temperature": ("DynamicsSettings('c', VALUE, 40)", "temperature"),
    "dynamics_steps": ("DynamicsSettings('c', 300, VALUE)", "steps"),
    "dynamics_timestep": ("DynamicsSettings('c', 300, 40, timestep=VALUE)", "timestep"),
    "dynamics_cutoff": ("DynamicsSettings('c', 300, 40, cutoff=VALUE)", "cutoff"),
    "dynamics_bins": ("DynamicsSettings('c', 300, 40, bins=VALUE)", "bins"),
    "dynamics_equilibration": (
        "DynamicsSettings('c', 300, 40, equilibration=VALUE)",
        "equilibration",
    ),
    "crystals_tolerance": ("CrystalSettings(('c',), force_tolerance=VALUE)", "force_tolerance"),
    "crystals_steps": ("CrystalSettings(('c',), max_steps=VALUE)", "max_steps"),
    "nve_temperature": (
        "nve(copper, EMT(), 40, temperature=VALUE, seed=0, progress=False)",
        "temperature",
    ),
    "nve_timestep": (
        "nve(copper, EMT(), 40, temperature=300, seed=0, timestep=VALUE, progress=False)",
        "timestep",
    ),
    "nve_seed": ("nve(copper, EMT(), 40, temperature=300, seed=VALUE, progress=False)", "seed"),
    "equilibrated_temperature": (
        "equilibrated(copper, EMT(), 2, temperature=VALUE, seed=0, progress=False)",
        "temperature",
    ),
    "equilibrated_friction": (
        "equilibrated(copper, EMT(), 2, temperature=300, seed=0, friction=VALUE, progress=False)",
        "friction",
    ),
    "rdf_cutoff": ("rdf([copper], VALUE)", "cutoff"),
    "rdf_bins": ("rdf([copper * 3], 3.0, VALUE)", "bins"),
    "relax_tolerance": ("relax(copper, EMT(), VALUE)", "force_tolerance"),
    "relax_steps": ("relax(copper, EMT(), 0.03, VALUE)", "max_steps"),
    "volume_relaxed": ("volume_error_percent(VALUE, 1.0)", "relaxed|volume"),
    "strain_count": ("Strain(VALUE)", "count"),
    "strain_shear": ("Strain(shear=VALUE)", "shear"),
    "strain_rattle": ("Strain(rattle=(0, VALUE))", "rattle"),
    "rattle_std": ("Rattle(std=(0, VALUE))", "std"),
    "md_temperature": ("MolecularDynamics(1, (VALUE,))", "temperatures"),
    "md_timestep": ("MolecularDynamics(timestep=VALUE)", "timestep"),
    "md_interval": ("MolecularDynamics(interval=VALUE)", "interval"),
    "md_equilibration": ("MolecularDynamics(equilibration=VALUE)", "equilibration"),
    "md_friction": ("MolecularDynamics(friction=VALUE)", "friction"),
    "md_scale": ("MolecularDynamics(length_scales=(1.0, VALUE))", "length_scales"),
    "vacancy_missing": ("Vacancies(missing=VALUE)", "missing"),
    "surface_layers": ("Surfaces(layers=VALUE)", "layers"),
    "surface_vacuum": ("Surfaces(vacuum=VALUE)", "vacuum"),
    "sampling_atoms": ("Sampling(atoms=VALUE)", "atoms"),
    "sampling_distance": ("Sampling(min_distance=VALUE)", "min_distance"),
    "sampling_force": ("Sampling(max_force=VALUE)", "max_force"),
    "sample_seed": ("sample([frame], Sampling(strain=Strain(1)), VALUE)", "seed"),
    "select_count": ("select([frame], VALUE, 'random')", "count"),
    "select_seed": ("select([frame], 1, 'random', seed=VALUE)", "seed"),
    "deformation_shear": ("Deformation(shear_std=VALUE)", "shear_std"),
    "deformation_rotation": ("Deformation(rotation_degrees=VALUE)", "rotation_degrees"),
    "deformation_rattle": ("Deformation(rattle=VALUE)", "rattle"),
    "molecules_tolerance": ("find_molecules(molecule('H2O'), VALUE)", "tolerance"),
    "subset_seed": ("nested_subset(['a', 'b'], 1, VALUE)", "seed"),
    "diagnose_limit": ("diagnose([], open_store(), limit=VALUE)", "limit"),
    "diagnose_seed": ("diagnose([], open_store(), seed=VALUE)", "seed"),
    "moduli": ("Moduli.of(VALUE, 1.0)", "bulk"),
}
"""Numbers that functions take: the call, and what the refusal names."""

NEVER = {"nan": "nan", "inf": "inf", "minus": "-1", "true": "True", "text": "'3'", "null": "None"}
"""What none of these numbers may be, as it is written."""
UNLIKE = {("md_timestep", "null"), ("sampling_atoms", "null"), ("sampling_distance", "null")}
UNLIKE |= {("nve_temperature", "null"), ("piecewise_step", "minus")}
"""None leaves a default of sampling; without a temperature `nve` goes on with the velocities that
there are; a step may lie before 0."""

HOSTILE = [
    python(f"number_{name}_{tag}", call.replace("VALUE", value), named, value)
    for name, (call, named) in NUMBERS.items()
    for tag, value in NEVER.items()
    if (name, tag) not in UNLIKE
]

CASES = [*STORE, *RECORDS, *LOSSES, *TEACHERS, *CRYSTALS, *EVALUATION, *HOSTILE]
