"""The law of batches: a structure's targets do not depend on the batch that it is predicted in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms

from kd_plugins.teachers import Teacher


def assert_batch_independent(
    teacher: Teacher,
    structures: Sequence[Atoms],
    quantities: Sequence[str] | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Compare predictions of one batch, of its reverse and of each structure alone.

    Args:
        teacher: whose ``predict`` is tested.
        structures: three or more of different sizes, or a batch that mixes them up passes.
        quantities: to compare; all that the teacher predicts if left out.
        tolerance: the largest difference, as a part of the quantity's largest number in that
            structure, or of 1 in the quantity's unit where all its numbers are smaller.
    """
    assert len({len(atoms) for atoms in structures}) >= 3, "expected structures of three sizes"
    names = tuple(teacher.quantities if quantities is None else quantities)
    alone = [teacher.predict([atoms], names)[0] for atoms in structures]

    batches = {
        "in one batch": teacher.predict(structures, names),
        "in one batch, backwards": teacher.predict(structures[::-1], names)[::-1],
        "in two batches": [
            *teacher.predict(structures[:1], names),
            *teacher.predict(structures[1:], names),
        ],
    }
    for how, batch in batches.items():
        assert len(batch) == len(alone), how
        for index, (found, expected) in enumerate(zip(batch, alone, strict=True)):
            assert set(found) == set(expected), f"structure {index} {how}"
            for name, value in expected.items():
                largest = max(1.0, float(np.abs(value).max(initial=0.0)))
                np.testing.assert_allclose(
                    found[name],
                    value,
                    rtol=0.0,
                    atol=tolerance * largest,
                    err_msg=f"{name} of structure {index} {how}",
                )

    assert teacher.predict([], names) == []
    assert teacher.batch_size >= 1
