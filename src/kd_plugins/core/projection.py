"""The linear projection of a student's embeddings to its teacher's width."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kd_plugins.numbers import check_seed, check_whole


class Projection(nn.Module):
    """Map a student's embeddings to its teacher's width, with one matrix a degree l.

    This is the linear projection head P of CRACK (section 3.1), for all degrees. It mixes channels
    of one degree only and has a bias for l = 0 alone, so it commutes with rotations. It starts as
    the identity where the widths are equal, so that a student that starts as its teacher keeps
    its embeddings, and as a random orthogonal map elsewhere. It is trained with the student and
    is not part of it afterwards.

    Args:
        student_width: channels of the student's embeddings, D_S.
        teacher_width: channels of the teacher's embeddings, D_T.
        lmax: highest degree; 0 if only l = 0 embeddings are compared.
        seed: of the initial weights; the global random state is left alone.

    Raises:
        ValueError: if a width is not positive, or ``lmax`` or the seed is negative.

    >>> projection = Projection(student_width=4, teacher_width=4, lmax=1, seed=0)
    >>> embeddings = torch.ones(2, 4, 4)
    >>> torch.equal(projection(embeddings), embeddings)
    True
    """

    def __init__(self, student_width: int, teacher_width: int, lmax: int, seed: int) -> None:
        super().__init__()
        check_whole("projection: student_width", student_width, least=1)
        check_whole("projection: teacher_width", teacher_width, least=1)
        check_whole("projection: lmax", lmax, least=0)
        check_seed("projection: seed", seed)

        generator = torch.Generator().manual_seed(seed)
        start = _starting_matrices(lmax + 1, teacher_width, student_width, generator)
        self.weight = nn.Parameter(start)
        self.bias = nn.Parameter(torch.zeros(teacher_width))

        # Degree l of each row (l, m), such as 0, 1, 1, 1, 2, ...
        degrees = torch.arange(lmax + 1)
        self.register_buffer("degree", degrees.repeat_interleave(2 * degrees + 1), persistent=False)

    def forward(self, embeddings: Float[Tensor, "N M D_S"]) -> Float[Tensor, "N M D_T"]:
        """Project all (l, m) rows, M = (lmax + 1)²; M may be smaller, down to the l = 0 row."""
        self._check_shape(embeddings)
        degree = self.get_buffer("degree")[: embeddings.shape[1]]
        projected = torch.einsum("nms,mts->nmt", embeddings, self.weight[degree])

        # A bias on rows of l > 0 would single out a direction of space.
        return torch.cat([projected[:, :1] + self.bias, projected[:, 1:]], dim=1)

    def _check_shape(self, embeddings: Tensor) -> None:
        degrees, _, width = self.weight.shape
        whole = [(lmax + 1) ** 2 for lmax in range(degrees)]
        fits = embeddings.ndim == 3 and embeddings.shape[2] == width
        if not fits or embeddings.shape[1] not in whole:
            raise ValueError(
                f"embeddings: expected (N, M, {width}) with M one of {whole}, "
                f"got {tuple(embeddings.shape)}"
            )


def _starting_matrices(n: int, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    if rows == columns:
        return torch.eye(rows).repeat(n, 1, 1)

    # Q of a random square matrix is a random orthogonal one; part of it keeps lengths.
    size = max(rows, columns)
    orthogonal, _ = torch.linalg.qr(torch.randn(n, size, size, generator=generator))
    return orthogonal[:, :rows, :columns].contiguous()
