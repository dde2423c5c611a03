"""MPtrj by kind of crystal: the right frames, as they were, in flat memory, whole or not at all."""

from __future__ import annotations

import json
import lzma
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd_plugins.cli import main
from kd_plugins.sampling import kind
from kd_plugins.structures import read_structures

CODE = """
import resource, sys
from pathlib import Path
from kd_plugins.sampling.mptrj_kinds import take_kind
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
take_kind(Path(sys.argv[1]), "organic", Path(sys.argv[2]), progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def take(source: Path, wanted: str, out: Path) -> int:
    return main(["mptrj", str(source), "--kind", wanted, "--out", str(out)])


def frame(elements: str, energy: float = -5.0) -> dict[str, Any]:
    """A frame of MPtrj with atoms of these elements."""
    sites = [
        {"species": [{"element": one, "occu": 1}], "abc": [place / 9, 0.1, 1 / 3]}
        for place, one in enumerate(elements)
    ]
    structure = {"lattice": {"matrix": [[9, 0, 0], [0, 9, 0], [0, 0, 9]]}, "sites": sites}
    return {"structure": structure, "energy_per_atom": energy, "magmom": None}


def write_large(path: Path, megabytes: int) -> None:
    """Write materials of organic and inorganic frames, a material at a time."""
    one = frame("CHON" * 25)
    frames = {"organic": json.dumps(one), "inorganic": json.dumps(frame("V" * 100))}
    size = 0
    with path.open("w") as file:
        file.write("{")
        for number in range(10**6):
            inner = ",".join(f'"{number}-{name}":{text}' for name, text in frames.items())
            size += file.write(f'{"," if number else ""}"mp-{number}":{{{inner}}}')
            if size > megabytes * 10**6:
                break
        file.write("}")


def test_frames_of_a_kind_are_kept_as_they_are(
    shared_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """The records equal those of the source, number by number; each frame is in one kind's file."""
    path = shared_file("mptrj/mptrj_format_sample.json")
    source = json.loads(path.read_text())
    kept: dict[str, dict[str, Any]] = {}
    for name in ("organic", "complex", "inorganic"):
        out = tmp_path / f"{name}.json"
        assert take(path, name, out) == 0
        for material, frames in json.loads(out.read_text()).items():
            kept.setdefault(material, {}).update(frames)
            for frame_id, content in frames.items():
                elements = [site["species"][0]["element"] for site in content["structure"]["sites"]]
                assert content == source[material][frame_id]
                assert elements
        counts = json.loads((tmp_path / f"{name}_kinds.json").read_text())["kinds"]
        assert sum(one["frames"] for one in counts.values()) == 11
        assert counts[name]["frames"] == sum(map(len, json.loads(out.read_text()).values()))
    assert kept == source


def test_organic_frames_are_read_back_with_their_kind(
    shared_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """68 frames of organic elements, compressed."""
    path = shared_file("mptrj/mptrj_organic_elements.json.xz")
    out = tmp_path / "organic.json"
    assert take(path, "organic", out) == 0
    both = [list(read_structures([one])) for one in (path, out)]
    assert len(both[1]) == 68
    for before, after in zip(*both, strict=True):
        assert kind(after.atoms.numbers) == "organic"
        assert (before.structure_id, before.labels["energy"]) == (
            after.structure_id,
            after.labels["energy"],
        )
    mean = sum(one.labels["energy"] / len(one.atoms) for one in both[0]) / 68
    counts = json.loads((tmp_path / "organic_kinds.json").read_text())["kinds"]["organic"]
    assert counts["mean_energy_per_atom"] == pytest.approx(mean)
    assert sum(counts["histogram"]) == counts["frames"] == 68
    assert counts["percent"] == 100


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Four times the file takes no more."""
    grown = []
    for megabytes in (8, 32):
        path = tmp_path / f"{megabytes}.json"
        write_large(path, megabytes)
        command = [sys.executable, "-c", CODE, str(path), str(tmp_path / "out.json")]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        grown.append(int(found.stdout) / 1024)
    assert grown[1] < grown[0] + 15, grown
    assert grown[1] < 100, grown


def test_a_killed_command_leaves_no_file_that_looks_whole(tmp_path: Path) -> None:
    """And the same command then does it all."""
    source, out = tmp_path / "large.json", tmp_path / "organic.json"
    write_large(source, 8)
    command = [sys.executable, "-c", CODE, str(source), str(out)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(tmp_path.glob("organic.json.*.partial")):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not out.exists()
    assert take(source, "organic", out) == 0
    assert len(json.loads(out.read_text())) > 100


def test_what_is_no_mptrj_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written then."""
    out = tmp_path / "out.json"
    good = {"mp-1": {"mp-1-0": frame("CH")}}
    bad = {
        "unknown kind of crystal 'organics'; did you mean 'organic'?": (good, "organics"),
        "no JSON of MPtrj": ({"mp-1": {"mp-1-0": {}}}, "organic"),
        "frame 'mp-1-0': 'structure' is missing": ({"mp-1": {"mp-1-0": {"force": 1}}}, "organic"),
        "expected sites of elements, got 'Xx'": ({"mp-1": {"mp-1-0": frame(["Xx"])}}, "organic"),
        "material 'mp-2': expected its frames": ({**good, "mp-2": [1]}, "organic"),
    }
    for message, (content, wanted) in bad.items():
        (tmp_path / "in.json").write_text(json.dumps(content))
        assert take(tmp_path / "in.json", wanted, out) == 2
        assert message in capsys.readouterr().err
    assert take(tmp_path / "in.json", "organic", tmp_path / "in.json") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.json"]

    packed = tmp_path / "in.json.xz"
    packed.write_bytes(lzma.compress(json.dumps(good).encode()))
    assert take(packed, "organic", out) == 0
