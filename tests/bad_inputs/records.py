"""Damaged and strange record files: manifests, shards, failures, measurements, runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from kd_plugins.store.store import TargetStore
from tests.bad_inputs.case import Case
from tests.bad_inputs.commands import BIG, DEEP, PAGE, POINTER, cut, into_folder
from tests.bad_inputs.folder import changed

Files = Mapping[str, str | bytes | Callable[[Path], object] | None]

VERIFY = "kd-plugins verify targets"
LABEL = "kd-plugins label train.extxyz --teacher emt --store targets"
DOCTOR = "kd-plugins doctor --labels train.extxyz --store targets"
EXPORT = "kd-plugins export targets out.extxyz"
MERGE = "kd-plugins merge targets --into out"
EVALUATE = "kd-plugins evaluate --student emt --reference test.extxyz --out evaluated"
COMPARE = "kd-plugins compare experiment.yml --out compared"
REPORT = "kd-plugins report runs -o page.html"
ALONE = "kd-plugins report alone -o page.html"
MANIFEST, SHARD, FAILED = "targets/manifest.json", "targets/main.lmdb", "targets/failures.jsonl"
MEASURED, PLAN = "evaluated/student/measured.json", "runs/experiment.json"
RESULT = "alone/evaluation.json"
SETTINGS, TRAINED = "compared/settings.json", "compared/runs/student/seed1/trained.json"
FIRST = "compared/runs/student/seed1/evaluation.json"


def put(file: str, key: str, value: object) -> Files:
    """Set a dotted key of a JSON file."""
    return {file: lambda path: path.write_text(changed(path.read_text(), key, value))}


def swap(path: Path) -> None:
    """Change one byte of the first force of a shard."""
    shard = path.read_bytes()
    forces = TargetStore.open(path.parent).record("metal/0").values["forces"].numpy().tobytes()
    path.write_bytes(shard.replace(forces, bytes([forces[0] ^ 1]) + forces[1:]))


def no_shard(path: Path) -> None:
    """Take the shard away, its locks too."""
    for one in path.parent.glob("main.lmdb*"):
        one.unlink()


def any_json(file: str, call: str, tag: str, leaves: tuple[str, ...] = ()) -> list[Case]:
    """Return what may stand in any JSON file and is none that we wrote."""
    name, kept = file.rpartition("/")[2].replace("manifest.json", "manifest|format"), leaves
    return [
        Case(f"{tag}_empty", call, (name,), {file: ""}, leaves=kept),
        Case(f"{tag}_zero_bytes", call, (name,), {file: bytes(100)}, leaves=kept),
        Case(f"{tag}_not_utf8", call, (name, "UTF-8"), {file: b'{"a": "\xe9"}'}, leaves=kept),
        Case(f"{tag}_cut", call, (name,), {file: cut}, leaves=kept),
        Case(f"{tag}_html", call, (name,), {file: PAGE}, leaves=kept),
        Case(f"{tag}_pointer", call, (name,), {file: POINTER}, leaves=kept),
        Case(f"{tag}_list", call, (name, "mapping"), {file: "[1, 2]"}, leaves=kept),
        Case(f"{tag}_text", call, (name, "mapping"), {file: '"hello"'}, leaves=kept),
        Case(f"{tag}_null", call, (name, "mapping"), {file: "null"}, leaves=kept),
        Case(f"{tag}_number", call, (name, "mapping"), {file: "7"}, leaves=kept),
        Case(f"{tag}_deep", call, (name, "nested|deep"), {file: DEEP}, leaves=kept),
        Case(f"{tag}_digits", call, (name,), {file: f'{{"format": {BIG}0}}'}, leaves=kept),
        Case(f"{tag}_thousands_of_digits", call, (name,), {file: "9" * 9000}, leaves=kept),
        Case(f"{tag}_folder", call, (name,), {file: into_folder}, leaves=kept),
    ]


MANIFESTS = [
    *any_json(MANIFEST, VERIFY, "manifest"),
    Case("manifest_without_teacher", VERIFY, ("targets", "manifest", "teacher"), put(MANIFEST, "teacher", ...), code=(1, 2)),
    Case("manifest_without_dtypes", VERIFY, ("manifest", "dtypes"), put(MANIFEST, "dtypes", ...), code=(1, 2)),
    Case("manifest_teacher_is_a_number", VERIFY, ("manifest", "teacher", "7"), put(MANIFEST, "teacher", 7), code=(1, 2)),
    Case("manifest_teacher_is_a_list", VERIFY, ("manifest", "teacher"), put(MANIFEST, "teacher", ["emt"]), code=(1, 2)),
    Case("manifest_fingerprint_is_null", VERIFY, ("manifest", "fingerprint"), put(MANIFEST, "fingerprint", None), code=(1, 2)),
    Case("manifest_dtypes_is_a_list", VERIFY, ("manifest", "dtypes"), put(MANIFEST, "dtypes", ["energy"]), code=(1, 2)),
    Case("manifest_dtypes_is_empty", VERIFY, ("manifest", "quantity|dtypes"), put(MANIFEST, "dtypes", {}), code=(1, 2)),
    Case("manifest_unknown_quantity", VERIFY, ("manifest", "enrgy", "energy"), put(MANIFEST, "dtypes.enrgy", "float32"), code=(1, 2)),
    Case("manifest_unknown_dtype", VERIFY, ("manifest", "energy", "float8"), put(MANIFEST, "dtypes.energy", "float8"), code=(1, 2)),
    Case("manifest_dtype_is_a_number", VERIFY, ("manifest", "energy", "64"), put(MANIFEST, "dtypes.energy", 64), code=(1, 2)),
    Case("manifest_dtype_is_a_list", VERIFY, ("manifest", "energy"), put(MANIFEST, "dtypes.energy", ["float64"]), code=(1, 2)),
    Case("manifest_format_of_the_future", VERIFY, ("format", "99", "update"), put(MANIFEST, "format", 99), code=(1, 2)),
    Case("manifest_format_is_text", VERIFY, ("manifest", "format", "one"), put(MANIFEST, "format", "one"), code=(1, 2)),
    Case("manifest_format_is_true", VERIFY, ("manifest", "format", "true|True"), put(MANIFEST, "format", True), code=(1, 2)),
    Case("manifest_format_is_null", VERIFY, ("manifest", "format"), put(MANIFEST, "format", None), code=(1, 2)),
    Case("manifest_format_is_zero", VERIFY, ("manifest", "format", "0"), put(MANIFEST, "format", 0), code=(1, 2)),
    Case("manifest_format_is_minus", VERIFY, ("manifest", "format", "-1"), put(MANIFEST, "format", -1), code=(1, 2)),
    Case("manifest_format_is_half", VERIFY, ("manifest", "format", "1.5"), put(MANIFEST, "format", 1.5), code=(1, 2)),
    Case("manifest_versions_is_a_list", VERIFY, ("manifest", "versions"), put(MANIFEST, "versions", [1]), code=(1, 2)),
    Case("manifest_offsets_is_text", VERIFY, ("manifest", "energy_offsets"), put(MANIFEST, "energy_offsets", "none"), code=(1, 2)),
    Case("manifest_offset_is_text", VERIFY, ("manifest", "energy_offsets", "Cu"), put(MANIFEST, "energy_offsets.Cu", "low"), code=(1, 2)),
    Case("manifest_offset_of_no_element", VERIFY, ("manifest",), put(MANIFEST, "energy_offsets.Qq", 1.0), code=(1, 2)),
    Case("manifest_offset_is_nan", VERIFY, ("manifest",), {MANIFEST: lambda path: path.write_text(path.read_text().replace('"energy_offsets": {}', '"energy_offsets": {"Cu": NaN}'))}, code=(1, 2)),
    Case("manifest_unknown_key", VERIFY, ("manifest", "colour"), put(MANIFEST, "colour", "red"), code=(1, 2)),
    Case("manifest_key_twice", VERIFY, ("manifest", "teacher"), {MANIFEST: lambda path: path.write_text(path.read_text().replace('"teacher": "emt"', '"teacher": "emt", "teacher": "pfp"'))}, code=(1, 2)),
    Case("manifest_loses_a_quantity", VERIFY, ("energy",), put(MANIFEST, "dtypes.energy", ...), code=(1, 2)),
    Case("manifest_other_dtype", VERIFY, ("energy", "float"), put(MANIFEST, "dtypes.energy", "float16"), code=(1, 2)),
    Case("manifest_damaged_label", LABEL, ("targets", "manifest", "teacher"), put(MANIFEST, "teacher", 7)),
    Case("manifest_damaged_doctor", DOCTOR, ("targets", "manifest", "dtypes"), put(MANIFEST, "dtypes", [])),
    Case("manifest_damaged_export", EXPORT, ("targets", "manifest", "dtypes"), put(MANIFEST, "dtypes", None)),
    Case("manifest_damaged_merge", MERGE, ("targets", "manifest", "teacher"), put(MANIFEST, "teacher", None)),
    Case("manifest_of_unknown_quantity_for_the_doctor", DOCTOR, ("manifest", "enrgy"), put(MANIFEST, "dtypes.enrgy", "float32")),
]

SHARDS = [
    Case("shard_cut", VERIFY, ("main.lmdb",), {SHARD: cut}, code=(1, 2)),
    Case("shard_cut_to_a_page", VERIFY, ("main.lmdb",), {SHARD: lambda path: cut(path, 0.1)}, code=(1, 2)),
    Case("shard_empty", VERIFY, ("main.lmdb",), {SHARD: b""}, code=(1, 2)),
    Case("shard_text", VERIFY, ("main.lmdb",), {SHARD: PAGE}, code=(1, 2)),
    Case("shard_random", VERIFY, ("main.lmdb",), {SHARD: os.urandom(20_000)}, code=(1, 2)),
    Case("shard_zeros", VERIFY, ("main.lmdb",), {SHARD: bytes(20_000)}, code=(1, 2)),
    Case("shard_folder", VERIFY, ("main.lmdb",), {SHARD: into_folder}, code=(1, 2)),
    Case("shard_gone", VERIFY, ("main.lmdb|structures|records",), {SHARD: no_shard}, code=(1, 2)),
    Case("shard_alone_gone", VERIFY, ("main.lmdb",), {SHARD: None}, code=(1, 2)),
    Case("shard_one_byte", VERIFY, ("metal/0", "damaged"), {SHARD: swap}, code=(1, 2)),
    Case("shard_of_another_store", VERIFY, ("targets|main.lmdb|metal/0",), {SHARD: lambda path: path.write_bytes(Path("evaluated/student/predictions/main.lmdb").read_bytes())}, code=(1, 2)),
    Case("shard_strange_beside_it", VERIFY, ("other.lmdb",), {"targets/other.lmdb": os.urandom(20_000)}, code=(1, 2)),
    Case("shard_damaged_label", LABEL, ("main.lmdb",), {SHARD: os.urandom(20_000)}),
    Case("shard_folder_label", LABEL, ("main.lmdb",), {SHARD: into_folder}),
    Case("shard_damaged_doctor", DOCTOR, ("main.lmdb",), {SHARD: bytes(20_000)}),
    Case("shard_damaged_export", EXPORT, ("metal/0", "damaged"), {SHARD: swap}),
    Case("shard_damaged_merge", MERGE, ("metal/0", "damaged"), {SHARD: swap}, leaves=("out", "out/*")),
    Case("shard_damaged_doctor_record", DOCTOR, ("metal/0", "damaged"), {SHARD: swap}, code=(1, 2)),
]

FAILURES = [
    Case("failures_of_numbers", VERIFY, ("failures.jsonl",), {FAILED: "7\n"}, code=(1, 2)),
    Case("failures_of_lists", VERIFY, ("failures.jsonl",), {FAILED: '["metal/0"]\n'}, code=(1, 2)),
    Case("failures_without_reason", VERIFY, ("failures.jsonl", "reason"), {FAILED: '{"structure_id": "a"}\n'}, code=(1, 2)),
    Case("failures_without_id", VERIFY, ("failures.jsonl", "structure_id"), {FAILED: '{"reason": "a"}\n'}, code=(1, 2)),
    Case("failures_id_is_a_list", VERIFY, ("failures.jsonl", "structure_id"), {FAILED: '{"structure_id": [1], "reason": "a"}\n'}, code=(1, 2)),
    Case("failures_id_is_a_number", VERIFY, ("failures.jsonl", "structure_id"), {FAILED: '{"structure_id": 1, "reason": "a"}\n'}, code=(1, 2)),
    Case("failures_reason_is_null", VERIFY, ("failures.jsonl", "reason"), {FAILED: '{"structure_id": "a", "reason": null}\n'}, code=(1, 2)),
    Case("failures_not_utf8", VERIFY, ("failures.jsonl",), {FAILED: b"\xff\xfe\n"}, code=(1, 2)),
    Case("failures_deep", VERIFY, ("failures.jsonl",), {FAILED: DEEP + "\n"}, code=(1, 2)),
    Case("failures_thousands_of_digits", VERIFY, ("failures.jsonl",), {FAILED: "9" * 9000 + "\n"}, code=(1, 2)),
    Case("failures_folder", VERIFY, ("failures.jsonl",), {FAILED: into_folder}, code=(1, 2)),
    Case("failures_random", VERIFY, ("failures.jsonl",), {FAILED: bytes(range(256))}, code=(1, 2)),
    Case("failures_label", LABEL, ("failures.jsonl",), {FAILED: "7\n"}),
]

MEASUREMENTS = [
    *any_json(MEASURED, EVALUATE, "measured"),
    Case("measured_without_fingerprint", EVALUATE, ("measured.json", "fingerprint"), put(MEASURED, "fingerprint", ...)),
    Case("measured_fingerprint_is_a_number", EVALUATE, ("measured.json", "fingerprint"), put(MEASURED, "fingerprint", 7)),
    Case("measured_without_settings", EVALUATE, ("measured.json", "settings"), put(MEASURED, "settings", ...)),
    Case("measured_settings_is_a_list", EVALUATE, ("measured.json", "settings"), put(MEASURED, "settings", [1])),
    Case("measured_settings_is_text", EVALUATE, ("measured.json", "settings"), put(MEASURED, "settings", "all")),
    Case("measured_structures_is_a_number", EVALUATE, ("measured.json", "structures"), put(MEASURED, "settings.structures", 3)),
    Case("measured_unknown_setting", EVALUATE, ("measured.json", "colour"), put(MEASURED, "settings.colour", "red")),
    Case("measured_dynamics_is_text", EVALUATE, ("measured.json", "dynamics"), put(MEASURED, "settings.dynamics", "fast")),
    Case("measured_dynamics_without_steps", EVALUATE, ("measured.json", "dynamics", "steps"), put(MEASURED, "settings.dynamics", {"structure": "cell.extxyz", "temperature": 300})),
    Case("measured_files_is_a_list", EVALUATE, ("measured.json", "files"), put(MEASURED, "files", ["test.extxyz"])),
    Case("measured_without_files", EVALUATE, ("measured.json", "files"), put(MEASURED, "files", ...)),
    Case("measured_file_hash_is_a_number", EVALUATE, ("measured.json|test.extxyz",), put(MEASURED, "files", {"test.extxyz": 7})),
    Case("measured_file_left_out", EVALUATE, ("measured.json", "test.extxyz"), put(MEASURED, "files", {})),
    Case("measured_other_file", EVALUATE, ("measured.json|evaluated", "other.extxyz"), put(MEASURED, "files", {"other.extxyz": "ff"})),
    Case("measured_predictions_damaged", EVALUATE, ("main.lmdb",), {"evaluated/student/predictions/main.lmdb": os.urandom(20_000)}),
    Case("measured_predictions_no_manifest", EVALUATE, ("manifest.json", "predictions"), {"evaluated/student/predictions/manifest.json": None}),
]

PLANS = [
    *any_json(PLAN, REPORT, "plan"),
    *any_json(RESULT, ALONE, "result"),
    Case("plan_without_title", REPORT, ("experiment.json", "title", "missing"), put(PLAN, "title", ...)),
    Case("plan_title_is_a_number", REPORT, ("experiment.json", "title", "7"), put(PLAN, "title", 7)),
    Case("plan_arms_is_text", REPORT, ("experiment.json", "arms"), put(PLAN, "arms", "control")),
    Case("plan_no_arms", REPORT, ("experiment.json", "arms"), put(PLAN, "arms", [])),
    Case("plan_arms_nested", REPORT, ("experiment.json", "arms"), put(PLAN, "arms", [["control"]])),
    Case("plan_arm_twice", REPORT, ("experiment.json", "arms", "once"), put(PLAN, "arms", ["a", "a"])),
    Case("plan_arm_climbs", REPORT, ("experiment.json", "arms", "../x"), put(PLAN, "arms", ["../x"])),
    Case("plan_control_is_no_arm", REPORT, ("experiment.json", "control", "other"), put(PLAN, "control", "other")),
    Case("plan_control_is_a_list", REPORT, ("experiment.json", "control"), put(PLAN, "control", ["targets"])),
    Case("plan_seed_is_text", REPORT, ("experiment.json", "seeds", "one"), put(PLAN, "seeds", ["one"])),
    Case("plan_seed_is_half", REPORT, ("experiment.json", "seeds", "0.5"), put(PLAN, "seeds", [0.5])),
    Case("plan_seed_is_true", REPORT, ("experiment.json", "seeds", "True|true"), put(PLAN, "seeds", [True])),
    Case("plan_seeds_is_a_mapping", REPORT, ("experiment.json", "seeds"), put(PLAN, "seeds", {"a": 1})),
    Case("plan_metrics_is_text", REPORT, ("experiment.json", "metrics"), put(PLAN, "metrics", "force_rmse")),
    Case("plan_metrics_of_numbers", REPORT, ("experiment.json", "metrics"), put(PLAN, "metrics", [1])),
    Case("plan_provenance_is_text", REPORT, ("experiment.json", "provenance"), put(PLAN, "provenance", "x")),
    Case("plan_host_is_a_number", REPORT, ("experiment.json", "host"), put(PLAN, "host", 3)),
    Case("plan_unknown_key", REPORT, ("experiment.json", "colour"), put(PLAN, "colour", "red")),
    Case("result_metric_is_text", ALONE, ("evaluation.json", "force_rmse", "low"), put(RESULT, "metrics.force_rmse", "low")),
    Case("result_metric_is_true", ALONE, ("evaluation.json", "force_rmse", "True|true"), put(RESULT, "metrics.force_rmse", True)),
    Case("result_metric_is_nan", ALONE, ("evaluation.json", "NaN"), {RESULT: '{"model": "m", "metrics": {"force_rmse": NaN}}'}),
    Case("result_metric_is_infinite", ALONE, ("evaluation.json",), {RESULT: '{"model": "m", "metrics": {"force_rmse": 1e999}}'}),
    Case("result_metric_of_400_digits", ALONE, ("evaluation.json", "400|digits"), {RESULT: f'{{"model": "m", "metrics": {{"force_rmse": {BIG}}}}}'}),
    Case("result_metrics_is_a_list", ALONE, ("evaluation.json", "metrics"), put(RESULT, "metrics", [1])),
    Case("result_weights_of_400_digits", ALONE, ("evaluation.json", "400|digits"), {RESULT: f'{{"model": "m", "weights": {BIG}}}'}),
    Case("result_weights_is_minus", ALONE, ("evaluation.json", "weights", "-5"), put(RESULT, "weights", -5)),
    Case("result_weights_is_half", ALONE, ("evaluation.json", "weights", "0.5"), put(RESULT, "weights", 0.5)),
    Case("result_seconds_is_zero", ALONE, ("evaluation.json", "train_seconds", "0"), put(RESULT, "train_seconds", 0)),
    Case("result_model_is_empty", ALONE, ("evaluation.json", "model"), put(RESULT, "model", " ")),
    Case("result_parity_is_a_list", ALONE, ("evaluation.json", "parity"), put(RESULT, "parity", [1])),
    Case("result_parity_lengths", ALONE, ("evaluation.json", "parity.labels.forces", "length"), put(RESULT, "parity.labels.forces.student", [1.0])),
    Case("result_parity_of_text", ALONE, ("evaluation.json", "parity.labels.forces"), put(RESULT, "parity.labels.forces.student", ["a"])),
    Case("result_parity_unknown_side", ALONE, ("evaluation.json", "parity", "colour"), put(RESULT, "parity.colour", {})),
    Case("result_parity_unknown_quantity", ALONE, ("evaluation.json", "parity", "colour"), put(RESULT, "parity.labels.colour", {"reference": [1], "student": [1]})),
    Case("result_curve_is_a_number", ALONE, ("evaluation.json", "curves.x"), put(RESULT, "curves", {"x": 1})),
    Case("result_term_of_one_column", ALONE, ("evaluation.json", "terms.x", "values"), put(RESULT, "terms", {"x": {"epochs": [1]}})),
    Case("result_speed_of_numbers", ALONE, ("evaluation.json", "speed.student"), put(RESULT, "speed", {"student": [1]})),
    Case("result_speed_is_zero", ALONE, ("evaluation.json", "microseconds", "0"), put(RESULT, "speed", {"student": [{"atoms": 8, "microseconds": 0}]})),
    Case("result_no_atoms", ALONE, ("evaluation.json", "atoms", "0"), put(RESULT, "speed", {"student": [{"atoms": 0, "microseconds": 1}]})),
    Case("result_rdf_lengths", ALONE, ("evaluation.json", "rdf", "length"), put(RESULT, "rdf.student", [1.0])),
    Case("result_rdf_is_text", ALONE, ("evaluation.json", "rdf"), put(RESULT, "rdf", "x")),
    Case("result_volume_is_minus", ALONE, ("evaluation.json", "volumes.Si: student", "-1"), put(RESULT, "volumes.Si.student", -1)),
    Case("result_volume_is_text", ALONE, ("evaluation.json", "volumes.Si"), put(RESULT, "volumes.Si", "large")),
    Case("result_failures_of_numbers", ALONE, ("evaluation.json", "failures"), put(RESULT, "volumes.Si.failures", {"student": 1})),
    Case("result_modulus_is_text", ALONE, ("evaluation.json", "elasticity", "bulk"), put(RESULT, "elasticity.Si.student.bulk", "stiff")),
    Case("result_unknown_modulus", ALONE, ("evaluation.json", "elasticity|colour"), put(RESULT, "elasticity.Si.student.colour", 1)),
    Case("result_provenance_is_a_list", ALONE, ("evaluation.json", "provenance"), put(RESULT, "provenance", [1])),
    Case("result_unknown_key", ALONE, ("evaluation.json", "colour"), put(RESULT, "colour", "red")),
]

RUNS = [
    *any_json(SETTINGS, COMPARE, "claim"),
    *any_json(TRAINED, COMPARE, "trained"),
    Case("claim_without_host", COMPARE, ("settings.json", "host"), put(SETTINGS, "host", ...)),
    Case("claim_without_sources", COMPARE, ("settings.json", "sources"), put(SETTINGS, "sources", ...)),
    Case("claim_sources_is_a_list", COMPARE, ("settings.json", "sources"), put(SETTINGS, "sources", [1])),
    Case("claim_arms_is_a_list", COMPARE, ("settings.json", "arms"), put(SETTINGS, "arms", ["control"])),
    Case("claim_other_measure", COMPARE, ("compared", "measure"), put(SETTINGS, "measure", {"structures": ["x"]})),
    Case("claim_other_teacher", COMPARE, ("compared", "teacher", "pfp"), put(SETTINGS, "teacher", "pfp")),
    Case("trained_seconds_is_text", COMPARE, ("trained.json", "train_seconds"), put(TRAINED, "train_seconds", "long")),
    Case("trained_seconds_is_minus", COMPARE, ("trained.json", "train_seconds", "-1"), put(TRAINED, "train_seconds", -1)),
    Case("trained_unknown_key", COMPARE, ("trained.json", "colour"), put(TRAINED, "colour", "red")),
    Case("costs_is_a_list", COMPARE, ("costs.json", "mapping"), {"compared/runs/student/seed1/costs.json": "[1]"}),
    Case("costs_seconds_is_text", COMPARE, ("costs.json", "train_seconds"), {"compared/runs/student/seed1/costs.json": '{"train_seconds": "x"}'}),
    Case("costs_unknown_key", COMPARE, ("costs.json", "colour"), {"compared/runs/student/seed1/costs.json": '{"colour": 1}'}),
    Case("curves_is_a_list", COMPARE, ("curves.json", "mapping"), {"compared/runs/student/seed1/curves.json": "[1]"}),
    Case("curves_of_numbers", COMPARE, ("curves.json", "x"), {"compared/runs/student/seed1/curves.json": '{"x": 1}'}),
    Case("curves_lengths", COMPARE, ("curves.json", "x", "length"), {"compared/runs/student/seed1/curves.json": '{"x": {"epochs": [1, 2], "values": [1]}}'}),
    Case("terms_without_values", COMPARE, ("terms.json", "x", "values"), {"compared/runs/student/seed1/terms.json": '{"x": {"epochs": [1]}}'}),
    Case("terms_of_text", COMPARE, ("terms.json", "x"), {"compared/runs/student/seed1/terms.json": '{"x": {"epochs": ["a"], "values": [1]}}'}),
    Case("compared_evaluation_damaged", COMPARE, ("evaluation.json", "metrics"), {FIRST: json.dumps({"model": "m", "metrics": [1]})}),
]


def _unmeasured(case: Case) -> Case:
    """Take away the evaluation that a damaged file of a run would go into."""
    run = any("compared/runs" in name for name in case.files) and FIRST not in case.files
    return Case(case.name, case.call, case.says, {**case.files, FIRST: None} if run else case.files, case.code, case.leaves, case.needs)


CASES = [
    *MANIFESTS,
    *SHARDS,
    *FAILURES,
    *MEASUREMENTS,
    *PLANS,
    *(_unmeasured(case) for case in RUNS),
]
