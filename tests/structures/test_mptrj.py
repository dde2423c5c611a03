"""MPtrj's JSON is streamed, in our units, with the energies that CHGNet trains on."""

from __future__ import annotations

import gzip
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest

from kd_plugins.structures.mptrj import is_mptrj, read_mptrj
from kd_plugins.structures.readers import read_structures, to_structure
from tests.hosts import in_one_environment

SAMPLE = "mptrj/mptrj_format_sample.json"


def frame(n_atoms: int = 2, **changes: Any) -> dict[str, Any]:
    """Return a frame of MPtrj of copper atoms in a row."""
    sites = [
        {"species": [{"element": "Cu", "occu": 1}], "abc": [index / n_atoms, 0.0, 0.0]}
        for index in range(n_atoms)
    ]
    structure = {"lattice": {"matrix": [[10, 0, 0], [0, 3, 0], [0, 0, 3]]}, "sites": sites}
    labels = {
        "corrected_total_energy": -4.0 * n_atoms,
        "energy_per_atom": -4.0,
        "force": [[0.1, 0.2, 0.3]] * n_atoms,
        "stress": [[1, 6, 5], [6, 2, 4], [5, 4, 3]],
        "magmom": None,
    }
    return {"structure": structure, **labels, **changes}


def write(path: Path, *frames: dict[str, Any]) -> Path:
    """Write frames, two a material."""
    materials: dict[str, dict[str, Any]] = {}
    for index, content in enumerate(frames):
        materials.setdefault(f"mp-{index // 2}", {})[f"mp-{index // 2}-0-{index % 2}"] = content
    path.write_text(json.dumps(materials))
    return path


def test_labels_have_ases_units_and_signs(tmp_path: Path) -> None:
    """VASP's stress is in kBar and positive under compression; ASE's order is xx yy zz yz xz xy."""
    (read,) = read_structures([write(tmp_path / "some.json", frame())])
    assert read.structure_id == "mp-0-0-0"
    assert read.atoms.info["mp_id"] == "mp-0"
    assert read.labels["energy"] == -8.0
    expected = -np.arange(1, 7) * 0.1 / 160.21766208
    np.testing.assert_allclose(read.labels["stress"], expected, rtol=1e-6)
    assert read.labels["forces"].tolist() == [[0.1, 0.2, 0.3]] * 2
    assert set(read.labels) == {"energy", "forces", "stress"}
    assert read.atoms.pbc.all()
    assert read.atoms.positions.tolist() == [[0, 0, 0], [5, 0, 0]]


def test_another_projects_conversion_agrees(shared_file: Callable[[str], Path]) -> None:
    """Another project converted these frames to extended xyz, with the energies not corrected."""
    ours = read_structures([shared_file("mptrj/mptrj_organic_elements.json.xz")])
    theirs = read_structures([shared_file("mptrj/mptrj_organic_elements.extxyz.xz")])
    others = {other.structure_id: other for other in theirs}
    for read in ours:
        other = others.pop(read.structure_id)
        assert to_structure(read.atoms).difference(to_structure(other.atoms)) is None
        np.testing.assert_allclose(read.atoms.positions, other.atoms.positions, atol=1e-8)
        np.testing.assert_allclose(read.labels["forces"], other.labels["forces"], atol=1e-8)
        np.testing.assert_allclose(read.labels["stress"], other.labels["stress"], atol=1e-12)
    assert not others


def test_real_frames_keep_ids_energies_and_moments(shared_file: Callable[[str], Path]) -> None:
    """Corrected energies; magnetic moments where they are."""
    path = shared_file(SAMPLE)
    written = {
        frame_id: content
        for frames in json.loads(path.read_text()).values()
        for frame_id, content in frames.items()
    }
    read = {found.structure_id: found for found in read_structures([path])}
    assert list(read) == list(written)
    for name, content in written.items():
        labels = read[name].labels
        assert abs(labels["energy"] - content["corrected_total_energy"]) < 1e-9
        assert ("magmoms" in labels) == (content["magmom"] is not None)
    assert any(content["magmom"] for content in written.values())


@pytest.mark.parametrize("missing", ["energy_per_atom", "corrected_total_energy"])
def test_one_energy_is_enough(tmp_path: Path, missing: str) -> None:
    """Either is the corrected one."""
    (read,) = read_structures([write(tmp_path / "some.json", frame(3, **{missing: None}))])
    assert read.labels["energy"] == -12.0


def test_missing_labels_stay_missing(tmp_path: Path) -> None:
    """Whether null or not there at all."""
    bare = {"structure": frame()["structure"], "force": None, "bandgap": 0.1}
    (read,) = read_structures([write(tmp_path / "some.json", bare)])
    assert read.labels == {}


WRONG = {
    "disordered": (
        {"sites": [{"species": [{"element": "Cu", "occu": 0.5}], "abc": [0, 0, 0]}]},
        "site 0 is disordered",
    ),
    "mixed": (
        {"sites": [{"species": [{"element": "Cu", "occu": 1}] * 2, "abc": [0, 0, 0]}]},
        "site 0 is disordered",
    ),
    "no element": (
        {"sites": [{"species": [{"element": "Xy", "occu": 1}], "abc": [0, 0, 0]}]},
        "'Xy' is missing, or no element",
    ),
    "no lattice": ({"lattice": {}}, "'matrix' is missing"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_wrong_structures_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """With the frame's id, after those before it."""
    bad = frame()
    bad["structure"] = {**bad["structure"], **changes}
    frames = read_structures([write(tmp_path / "some.json", frame(), frame(), bad)])
    assert [next(frames).structure_id for _ in range(2)] == ["mp-0-0-0", "mp-0-0-1"]
    with pytest.raises(ValueError, match=f"first 2 structures.*frame 'mp-1-0-0': .*{message}"):
        next(frames)


def test_contradicting_energies_are_refused(tmp_path: Path) -> None:
    """Neither is preferred."""
    path = write(tmp_path / "some.json", frame(energy_per_atom=-4.01))
    with pytest.raises(ValueError, match=r"'mp-0-0-0': corrected_total_energy is -8.0 eV, but"):
        list(read_mptrj(path))


def test_a_file_cut_short_gives_its_first_frames(tmp_path: Path) -> None:
    """Then an error names the cut."""
    path = write(tmp_path / "some.json", *[frame()] * 6)
    path.write_text(path.read_text()[:-500])
    frames = read_structures([path])
    assert [next(frames).structure_id for _ in range(4)][-1] == "mp-1-0-1"
    with pytest.raises(
        ValueError, match=r"some\.json cannot be read beyond its first 4 structures"
    ):
        next(frames)


def test_other_json_is_not_taken_for_mptrj(
    tmp_path: Path, shared_file: Callable[[str], Path]
) -> None:
    """By its first frame, compressed or not."""
    assert is_mptrj(shared_file(SAMPLE))
    assert is_mptrj(shared_file("mptrj/mptrj_organic_elements.json.xz"))
    database = tmp_path / "some.json"
    ase.io.write(database, next(read_mptrj(shared_file(SAMPLE))))
    assert not is_mptrj(database)


@pytest.mark.parametrize("pack", [(".json.gz", gzip.compress), (".json.xz", lzma.compress)])
def test_compressed_files_are_streamed(
    tmp_path: Path, pack: tuple[str, Callable[[bytes], bytes]]
) -> None:
    """Without a temporary copy of eleven gigabytes, and with the same ids."""
    plain = write(tmp_path / "some.json", frame(), frame())
    packed = tmp_path / f"some{pack[0]}"
    packed.write_bytes(pack[1](plain.read_bytes()))
    for ids, expected in (("auto", "mp-0-0-1"), ("path", str(tmp_path / "some:1"))):
        assert [found.structure_id for found in read_structures([packed], ids)][1] == expected


MEASURE = """
import re, sys
from pathlib import Path
from kd_plugins.structures.readers import read_structures

def peak():  # not getrusage's, in which that of the parent lives on
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = peak()
count = sum(1 for _ in read_structures([sys.argv[1]]))
print(count, (peak() - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the peak")
@in_one_environment
def test_memory_stays_flat(tmp_path: Path) -> None:
    """60 MB of JSON, which json.load would turn into hundreds, in less than 40."""
    material = json.dumps({f"frame-{index}": frame(200) for index in range(20)})
    path, size = tmp_path / "large.json", 0
    with path.open("w") as file:
        file.write("{")
        while size < 60e6:
            size += file.write(f'{"," * (size > 0)}"mp-{size}": {material}')
        file.write("}")
    command = [sys.executable, "-c", MEASURE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, growth = map(int, done.stdout.split())
    assert count % 20 == 0 and count > 1000
    assert growth < 40
