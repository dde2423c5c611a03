"""What preparing OC20 costs: a frame that is kept, one that is skipped, and the memory.

    python benchmarks/oc20_preparing.py --files 200        # 10^6 frames of 78 atoms, 8.6 GB of text

Writes a release of its own into a temporary folder, 5,000 frames a file as OC20 has them, and
prepares it twice: 1 system of 100 kept, and none. Prints seconds and the peak memory.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

from kd_plugins.structures.oc20_frames import find_chunks
from kd_plugins.structures.oc20_shards import Rules, Task, write_shard

FRAMES = 5_000
EVERY = 100


def write_chunk(folder: Path, number: int, n_atoms: int, n_frames: int = FRAMES) -> None:
    """Write one file of structures and its log, as OC20's release has them."""
    atoms = "".join(
        f"{'O' if atom == 0 else 'Cu'} {atom:.8f} {0.37 * atom:.8f} {1.1:.8f} "
        f"{0.01 * atom:.8f} {-0.02 * atom:.8f} {0.5:.8f} {2 if atom == 0 else atom % 2} "
        f"{'T' if atom % 2 or atom == 0 else 'F'}\n"
        for atom in range(n_atoms)
    )
    properties = "species:S:1:pos:R:3:forces:R:3:tags:I:1:move_mask:L:1"
    lattice = "8.70489189 0.0 -0.28636745 -4.18633851 12.14268288 0.5727349 0.0 0.0 32.95705533"
    with (
        (folder / f"{number}.extxyz").open("w") as file,
        (folder / f"{number}.txt").open("w") as log,
    ):
        for frame in range(n_frames):
            energy = -300.0 - 0.001 * frame
            file.write(
                f'{n_atoms}\nLattice="{lattice}" Properties={properties} energy={energy:.8f} '
            )
            file.write(f'pbc="T T T"\n{atoms}')
            log.write(f"random{frame % EVERY},frame{number * n_frames + frame},-299.5\n")


def read_all(source: Path, wanted: frozenset[str]) -> float:
    """Write the shards of a source and return the seconds."""
    rules = Rules("official", 0.1, "frame", 0, wanted)
    start = time.perf_counter()
    for chunk in find_chunks(source):
        with tempfile.TemporaryDirectory() as folder:
            write_shard(Task(chunk, None, Path(folder) / "shard.db"), rules)
    return time.perf_counter() - start


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2)
    parser.add_argument("--atoms", type=int, default=78)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        for number in range(arguments.files):
            write_chunk(source, number, arguments.atoms)

        n_frames = arguments.files * FRAMES
        n_kept = n_frames // EVERY
        none, some = (read_all(source, frozenset(ids)) for ids in ((), ("random0",)))

    skipped, kept = none / n_frames, (some - none) / n_kept
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{n_frames} frames of {arguments.atoms} atoms: {1e6 * skipped:.1f} µs to skip one,")
    print(f"{1e3 * kept:.2f} ms to keep one ({100 * skipped / kept:.1f} %), peak {memory:.0f} MB")


if __name__ == "__main__":
    main()
