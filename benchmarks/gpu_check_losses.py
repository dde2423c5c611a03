"""The parts of `gpu_check` about the losses: right, fast, small, and how often the host waits.

The plain forms that they are compared with have nothing of the package in them.
"""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from gpu_check_measuring import (
    CheckFailed,
    Found,
    Setup,
    error_of,
    gradient,
    one_line,
    peak_memory,
    timed,
    waits,
)
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kd_plugins import (
    Crack,
    CrackTerm,
    DistanceTerm,
    DistillationLoss,
    TeacherTargets,
    crack_loss,
    instance_loss,
)
from kd_plugins.core import (
    Constant,
    LossInputs,
    SampledNegatives,
    squared_mean,
    squared_sum,
)

TEMPERATURE, COLD = 0.15, 0.01
SAMPLED = SampledNegatives(256)
NEIGHBOURS = 25
Loss = Callable[..., Tensor]


def batch(n_edges: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return a student, a teacher and both directions of ``n_edges / 2`` different pairs."""
    generator = torch.Generator().manual_seed(seed)
    n_atoms = max(n_edges // NEIGHBOURS, math.ceil(math.sqrt(2 * n_edges)))
    pairs = torch.randint(n_atoms, (2, 2 * n_edges), generator=generator)
    pairs = pairs.sort(dim=0).values[:, pairs[0] != pairs[1]].unique(dim=1)
    pairs = pairs[:, torch.randperm(pairs.shape[1], generator=generator)[: n_edges // 2]]
    student, teacher = torch.randn(2, n_atoms, width, generator=generator)
    return student, teacher, torch.cat([pairs, pairs.flip(0)], dim=1)


def relations(student: Tensor, teacher: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit relations along the edges that the teacher resolves, teacher's first."""
    units = [F.normalize(side, dim=1, eps=1e-3) for side in (teacher, student)]
    rows, columns = (side[edge_index[0]] - side[edge_index[1]] for side in units)
    kept = rows.norm(dim=1) >= 1e-3
    rows, columns = (F.normalize(side[kept], dim=1, eps=1e-3) for side in (rows, columns))
    return rows, columns


def cross_entropy(rows: Tensor, columns: Tensor, temperature: float, first: int = 0) -> Tensor:
    """Return the sum of Algorithm 1 over some rows, with all of their logits at once."""
    logits = rows @ columns.T / temperature
    return (torch.logsumexp(logits, dim=1) - logits.diagonal(first)).sum()


def plain(
    student: Tensor,
    teacher: Tensor,
    edge_index: Tensor,
    temperature: float = TEMPERATURE,
    anchor: str = "teacher",
    form: Loss = cross_entropy,
) -> Tensor:
    """Return CRACK's loss by the E x E matrix of logits."""
    rows, columns = relations(student, teacher, edge_index)
    rows, columns = (rows, columns) if anchor == "teacher" else (columns, rows)
    return form(rows, columns, temperature) / len(rows)


def in_chunks(rows: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """Return the same sum, 4,096 rows at a time, whose logits are made again in backward."""
    total = rows.new_zeros(())
    for first in range(0, len(rows), 4096):
        part = rows[first : first + 4096]
        total += checkpoint(cross_entropy, part, columns, temperature, first, use_reentrant=False)
    return total


def by_torch(rows: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """Return the same sum by `torch.nn.functional.linear_cross_entropy`, of newer torches."""
    target = torch.arange(len(rows), device=rows.device)
    options = torch.nn.LinearCrossEntropyOptions()
    mean = F.linear_cross_entropy(rows / temperature, columns, target, options=options)
    return mean * len(rows)


def plain_atoms(student: Tensor, teacher: Tensor, temperature: float, anchor: str) -> Tensor:
    """Return the instance-level loss by the N x N matrix."""
    rows, columns = (F.normalize(side, dim=1, eps=1e-3) for side in (teacher, student))
    rows, columns = (rows, columns) if anchor == "teacher" else (columns, rows)
    return cross_entropy(rows, columns, temperature) / len(rows)


def plain_sampled(
    student: Tensor, teacher: Tensor, edge_index: Tensor, drawn: Tensor, temperature: float
) -> Tensor:
    """Return the loss of directed edges with these keys as negatives, by all logits."""
    rows, columns = relations(student, teacher, edge_index)
    logits = rows @ columns.T / temperature
    is_drawn = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    is_drawn[drawn] = True

    weights = (len(rows) - 1) / (len(drawn) - is_drawn.double())
    is_positive = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    negatives = torch.where(is_drawn & ~is_positive, logits.exp(), 0).sum(dim=1)
    positives = logits.diagonal()
    return ((positives.exp() + weights * negatives).log() - positives).mean()


# Inputs of a case and autocast's precision; the last two as in fairchem's mixed precision.
MODES = (
    (torch.float32, None),
    (torch.float64, None),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
)
LIMITS = {
    torch.float64: (1e-10, 1e-8),
    torch.float32: (1e-6, 1e-5),
    torch.bfloat16: (1e-6, 1e-2),
    torch.float16: (1e-6, 2e-3),
}
"""Largest relative errors of value and gradient; the gradient is rounded to the inputs' precision.
"""


def correctness(setup: Setup, found: Found) -> None:
    """Compare values and gradients with plain forms in float64."""
    worst: dict[str, Found] = {}
    wrong: list[str] = []
    for name, ours, reference, *sides in cases(setup):
        for dtype, autocast in MODES:
            mode = str(dtype)[6:] + (f" in autocast {str(autocast)[6:]}" if autocast else "")
            errors = errors_of(ours, reference, sides, dtype, autocast, setup)
            keep_worst(worst, mode, errors)

            # a NaN is wrong, too
            if not all(error <= limit for error, limit in zip(errors, LIMITS[dtype], strict=True)):
                wrong.append(f"{name}, {mode}: value {errors[0]:.1e}, gradient {errors[1]:.1e}")

    found["worst"], found["wrong"] = worst, wrong
    found["float32 with TF32"] = with_tf32(setup) if setup.is_gpu else {}
    found["plain float64 against the CPU's"] = against_cpu(setup)
    if wrong:
        raise CheckFailed(f"{len(wrong)} cases are off; {wrong[0]}")


def keep_worst(worst: dict[str, Found], name: str, errors: tuple[float, float]) -> None:
    """Take up the errors of a case where they are the largest of their name."""
    row = worst.setdefault(name, {"cases": 0, "value": 0.0, "gradient": 0.0})
    row["cases"] += 1
    for kind, error in zip(("value", "gradient"), errors, strict=True):
        row[kind] = error if math.isnan(error) else max(row[kind], error)


def with_tf32(setup: Setup) -> dict[str, Found]:
    """Return the worst errors where the host lets float32 products be TF32; no limit is set."""
    worst: dict[str, Found] = {}
    torch.set_float32_matmul_precision("high")
    try:
        for name, ours, reference, *sides in cases(setup):
            errors = errors_of(ours, reference, sides, torch.float32, None, setup)
            keep_worst(worst, name.partition(",")[0], errors)
    finally:
        torch.set_float32_matmul_precision("highest")
    return worst


def against_cpu(setup: Setup) -> float:
    """Return how far the reference itself is from the CPU's."""
    student, teacher, edge_index = (one.to(setup.device) for one in batch(1000, 128))
    student, teacher = student.double(), teacher.double()
    expected = plain(student.cpu(), teacher.cpu(), edge_index.cpu())
    return error_of(plain(student, teacher, edge_index), expected)


def cases(setup: Setup) -> Iterator[tuple[str, Loss, Loss, Tensor, Tensor]]:
    """Yield a name, our loss, its plain form, and both sides' embeddings."""
    n_edges = 600 if setup.dry else 4000
    sides, temperatures = ("teacher", "student"), (TEMPERATURE, COLD)
    # wide embeddings are contrasted in blocks of another kind
    forms = (("plain", 128), ("blocked", 128), ("blocked", 512))

    kinds = itertools.product(forms, sides, ("undirected", "directed"), temperatures)
    for (form, width), anchor, edges, temperature in kinds:
        student, teacher, edge_index = batch(n_edges, width)
        asked = {"anchor": anchor, "temperature": temperature}
        asked["edge_index"] = edge_index.to(setup.device)
        ours = partial(crack_loss, edges=edges, form=form, **asked)
        name = f"{form} D={width}, {edges}, {anchor} asks, temperature {temperature}"
        yield name, ours, partial(plain, **asked), student, teacher

    for form, temperature in itertools.product(("plain", "blocked"), temperatures):
        student, teacher, edge_index = (one.to(setup.device) for one in batch(n_edges, 128))
        drawn = SAMPLED.draw(n_edges, False, 0, edge_index.device)
        crack = Crack(temperature, edges="directed", negatives=SAMPLED, form=form)
        name = f"{form}, {SAMPLED.sample} negatives, temperature {temperature}"
        ours = partial(mean_of, crack, edge_index)
        reference = partial(
            plain_sampled, edge_index=edge_index, drawn=drawn, temperature=temperature
        )
        yield name, ours, reference, student, teacher

    for form, anchor, temperature in itertools.product(("plain", "blocked"), sides, temperatures):
        student, teacher, _ = batch(n_edges, 128)
        asked = {"anchor": anchor, "temperature": temperature}
        name = f"atoms {form}, {anchor} asks, temperature {temperature}"
        ours, reference = partial(instance_loss, form=form, **asked), partial(plain_atoms, **asked)
        yield name, ours, reference, student, teacher


def mean_of(crack: Crack, edge_index: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of a loss over its relations."""
    losses, _ = crack(student, teacher, edge_index)
    return losses.mean()


def sampled(student: Tensor, teacher: Tensor, edge_index: Tensor) -> Tensor:
    """Return CRACK's loss with few negatives."""
    return mean_of(Crack(negatives=SAMPLED), edge_index, student, teacher)


def errors_of(
    ours: Loss,
    reference: Loss,
    sides: list[Tensor],
    dtype: torch.dtype,
    autocast: torch.dtype | None,
    setup: Setup,
) -> tuple[float, float]:
    """Return the relative errors of a loss and of its gradient."""
    # both start from the same numbers, rounded once
    student, teacher = (side.to(setup.device, dtype) for side in sides)
    exact = student.double().requires_grad_()
    expected = reference(exact, teacher.double())

    student.requires_grad_()
    with torch.autocast(setup.device.type, autocast, enabled=autocast is not None):
        loss = ours(student, teacher)

    # as fairchem's gradient scaler does: in float16, small gradients would be rounded to zero
    scale = 2.0**12
    slope = gradient(loss * scale, student).double() / scale
    return error_of(loss, expected), error_of(slope, gradient(expected, exact))


def operators(setup: Setup, found: Found) -> None:
    """Let torch check the custom operators: schema, shapes without data, autograd, tracing."""
    names = [name for name in torch._C._dispatch_get_all_op_names() if "kd_plugins::" in name]
    found["operators"] = sorted(names)
    if not names:
        return

    (name,) = (name for name in names if f"{name}_backward" in names)
    name = name.removeprefix("kd_plugins::")
    forward = getattr(torch.ops.kd_plugins, name).default
    back = getattr(torch.ops.kd_plugins, f"{name}_backward").default
    passed, failed = 0, []
    for form, mirrored in itertools.product(("direct", "gram", "atoms"), (True, False)):
        values = operator_arguments(form, mirrored, setup.device)
        losses, _, log_sums = forward(*values, 0, None)
        detached = [x.detach() if isinstance(x, Tensor) else x for x in values]
        needed = [detached[0] is not None, True, True, False]
        given = (torch.ones_like(losses.detach()), log_sums, *detached, 0, 3, needed)
        for operator, arguments in ((forward, (*values, 0, 3)), (back, given)):
            results = torch.library.opcheck(operator, arguments, raise_exception=False)
            for test, result in results.items():
                passed += result == "SUCCESS"
                if result != "SUCCESS":
                    failed.append(f"{operator} {form}: {test}: {result}"[:300])

    found["passed"], found["failed"] = passed, failed
    if failed:
        raise CheckFailed(f"{len(failed)} checks of {passed + len(failed)}; {failed[0]}")


def operator_arguments(form: str, mirrored: bool, device: torch.device) -> tuple[Any, ...]:
    """Return what the operator takes, in the precisions that the losses give it."""
    generator = torch.Generator().manual_seed(0)
    keys, anchors = F.normalize(torch.randn(2, 6, 4, generator=generator).double(), dim=2)
    pairs = torch.combinations(torch.arange(6)).T.contiguous()
    scales = 0.4 + 0.1 * torch.rand(2, pairs.shape[1], generator=generator)

    given: list[Any] = [keys, anchors, pairs, *scales]
    if form == "gram":
        given[:2] = None, anchors @ keys.T
    if form == "atoms":
        given = [keys.float(), anchors.float(), None, *scales[:, :6]]

    given = [None if one is None else one.contiguous().to(device) for one in given]
    for one in given:
        if one is not None and one.is_floating_point():
            one.requires_grad_()
    return (*given, 0.2, mirrored)


def speed(setup: Setup, found: Found) -> None:
    """Time one loss with its gradient, and its memory, beside plain forms in the same process."""
    backend = {"backend": "aot_eager"} if setup.dry else {}
    compiled = torch.compile(cross_entropy, dynamic=False, **backend)
    forms: dict[str, Loss] = {
        "ours": crack_loss,
        "sampled negatives": sampled,
        "plain": plain,
        "torch.compile": partial(plain, form=compiled),
        "in chunks": partial(plain, form=in_chunks),
        "linear_cross_entropy": partial(plain, form=by_torch),
    }
    found["width"], found["rows"] = 128, []

    for n_edges in (500, 1000) if setup.dry else (1000, 7500, 20_000, 50_000, 200_000):
        row: Found = {"edges": n_edges}
        found["rows"].append(row)
        inputs = [one.to(setup.device) for one in batch(n_edges, 128)]
        inputs[0].requires_grad_()

        for name, form in forms.items():
            row[name] = one_form(name, form, inputs, setup)
            if row[name].get("ms"):
                row[name]["ratio"] = row[name]["ms"] / row["ours"]["ms"]


def one_form(name: str, form: Loss, inputs: list[Tensor], setup: Setup) -> Found:
    """Return time and memory of one form, or why there are none."""
    n_edges = inputs[2].shape[1]
    if name == "linear_cross_entropy" and not hasattr(F, name):
        return {"note": f"not in torch {torch.__version__}"}

    # logits, their exponentials and their gradient
    needed = 4 * 4 * n_edges**2
    free = torch.cuda.mem_get_info()[0] if setup.is_gpu else 2**30
    if name in ("plain", "torch.compile") and needed > free:
        return {"note": f"would need {needed / 2**30:.0f} GiB"}

    def step() -> Tensor:
        return gradient(form(*inputs), inputs[0])

    try:
        ms = timed(step, setup)
        return {"ms": ms, "MiB": peak_memory(step, setup)}
    except Exception as error:
        if name == "ours":
            raise
        # another form's memory or compiler, which ours does not depend on
        is_full = isinstance(error, torch.OutOfMemoryError)
        return {"note": "out of memory" if is_full else one_line(error)}
    finally:
        gc.collect()
        if setup.is_gpu:
            torch.cuda.empty_cache()


def host_waits(setup: Setup, found: Found) -> None:
    """Count how often the host waits for the device, by the lines where it does."""
    for n_edges in (500,) if setup.dry else (7500, 50_000):
        inputs = [one.to(setup.device) for one in batch(n_edges, 128)]
        inputs[0].requires_grad_()
        call = lambda given=inputs: crack_loss(*given)  # noqa: E731
        found[f"crack_loss, {n_edges} edges"] = waits(call, setup)
        step = lambda given=inputs: gradient(crack_loss(*given), given[0])  # noqa: E731
        found[f"crack_loss and gradient, {n_edges} edges"] = waits(step, setup)
        step = lambda given=inputs: gradient(sampled(*given), given[0])  # noqa: E731
        found[f"the same with {SAMPLED.sample} negatives, {n_edges} edges"] = waits(step, setup)

    call, step = distillation_steps(500 if setup.dry else 7500, setup)
    found["targets made"] = waits(call, setup)
    found["targets made, DistillationLoss, gradient"] = waits(step, setup)


def distillation_steps(n_edges: int, setup: Setup) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return what makes a batch's targets, and what also takes a loss of four terms from them."""
    student, teacher, edge_index = (one.to(setup.device) for one in batch(n_edges, 128))
    student.requires_grad_()
    n_atoms = torch.tensor([20] * (len(teacher) // 20 - 1) + [20 + len(teacher) % 20])
    n_atoms, forces = n_atoms.to(setup.device), torch.randn_like(teacher[:, :3])
    values = {"energy": forces[: len(n_atoms), 0], "forces": forces, "node_embeddings": teacher}

    one = Constant(1.0)
    names = {"energy": squared_mean, "forces": squared_mean, "node_embeddings": squared_sum}
    terms = [DistanceTerm(name, name, distance, one) for name, distance in names.items()]
    loss = DistillationLoss((*terms, CrackTerm("crack", Crack(), one)))
    ids = tuple(map(str, range(len(n_atoms))))

    def targets() -> TeacherTargets:
        return TeacherTargets(ids, n_atoms, values)

    def step() -> Tensor:
        ours = {"node_embeddings": student, "forces": student[:, :3]}
        ours["energy"] = student[: len(n_atoms), 0]
        sample = LossInputs(ours, targets(), edge_index)
        return gradient(loss(sample, step=0).total, student)

    return targets, step
