"""The one name of torch_sparse that fairchem-core imports, for the models that never use it.

fairchem-core imports every model file when it starts, and some of them import ``SparseTensor``.
There is no ``SparseStorage`` here, from which PyTorch Geometric sees that the package is missing.
"""

from __future__ import annotations

from typing import NoReturn


def _missing(*args: object, **kwargs: object) -> NoReturn:
    raise ImportError(
        "GemNet and DimeNet++ need the package torch_sparse, which is not installed: "
        "pip install torch_sparse (EquiformerV2 does not need it)"
    )


class SparseTensor:
    """Says, whichever way one is made, which models need the package torch_sparse.

    Raises:
        ImportError: always.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        _missing()

    eye = from_dense = from_edge_index = from_scipy = staticmethod(_missing)
    from_torch_sparse_coo_tensor = from_torch_sparse_csr_tensor = staticmethod(_missing)
