"""A folder that hippynn trained in, read without running the code that its files name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hippynn.experiment.evaluator import Evaluator
from hippynn.graphs import GraphModule
from hippynn.graphs.nodes.base.node_functions import _BaseNode
from torch.nn import Module

from kd_plugins.hippynn.unpickler import HIPPYNN_PICKLES, Unread
from kd_plugins.torch_files import load_torch_file

STRUCTURE, WEIGHTS = "experiment_structure.pt", "best_model.pt"
LINKS_TO_LOSS = ("_pred", "_true")
"""Attributes of a model's node that link it to the loss. A loss may be of any class."""


def load_model(
    folder: str | Path, *, trust_pickle: bool = False, remedy: str = "set trust_pickle=True"
) -> GraphModule:
    """Return the model with its best weights, on the CPU.

    Args:
        folder: that hippynn's loop or Lightning trained in, or that `export_student` made.
        trust_pickle: let the files run any code, which nodes and modules of one's own need.
        remedy: for the message, the way to trust them.

    Raises:
        FileNotFoundError: if one of its two files is missing.
        OSError: if one may not be read.
        ValueError: if one is damaged, is no model of hippynn, or holds what is not hippynn's own.
    """
    folder = Path(folder).expanduser()
    structure = load_structure(folder, trust_pickle=trust_pickle, remedy=remedy)
    model = structure["training_modules"][0]

    foreign = next(find_unread(model, skip=LINKS_TO_LOSS), None)
    if foreign is not None:
        raise ValueError(
            f"{folder / STRUCTURE}: the model has a part of class {foreign}, which is not "
            "hippynn's own and so was not read: its code would be run. If you trust where the file "
            f"comes from, {remedy}"
        )

    state = load_torch_file(folder / WEIGHTS, trust_pickle=trust_pickle, remedy=remedy)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, KeyError) as error:
        # Torch lists every tensor on a line of its own; the first ones say enough.
        first = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{folder / WEIGHTS}: its weights do not fit the model of {STRUCTURE} ({first}); "
            "expected two files of one run"
        ) from error
    return model


def load_structure(
    folder: Path, *, trust_pickle: bool, remedy: str, weights: str = WEIGHTS
) -> Mapping[str, Any]:
    """Return what ``experiment_structure.pt`` holds; what is not hippynn's is `Unread`.

    Args:
        folder: of the run.
        trust_pickle: see `load_model`.
        remedy: see `load_model`.
        weights: file with the weights, which must be there too.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if it is damaged or no structure of hippynn.
    """
    missing = [name for name in (STRUCTURE, weights) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {' and has no '.join(missing)}; expected a folder that hippynn's "
            "train_model has run in, with store_best"
        )

    path = folder / STRUCTURE
    content = load_torch_file(
        path, trust_pickle=trust_pickle, remedy=remedy, pickle_module=HIPPYNN_PICKLES
    )
    modules = content.get("training_modules") if isinstance(content, dict) else None
    if not isinstance(modules, tuple) or not isinstance(modules[0], GraphModule):
        raise ValueError(
            f"{path}: holds no model of hippynn; expected what hippynn's train_model writes"
        )
    return content


def find_unread(start: Any, skip: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the class of each object that was not read, among all that an object refers to.

    Args:
        start: a model, or a part of it.
        skip: attributes that are not followed.
    """
    seen: set[int] = set()
    stack = [start]
    while stack:
        one = stack.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))

        if isinstance(one, Unread) or (isinstance(one, type) and issubclass(one, Unread)):
            yield one.named
        elif isinstance(one, dict):
            stack += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            stack += one
        elif isinstance(one, Module | _BaseNode | Evaluator):
            stack += [value for name, value in vars(one).items() if name not in skip]
