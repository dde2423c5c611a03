"""A CHGNet from a file, read without running what is in it."""

from __future__ import annotations

from pathlib import Path

from chgnet.model import CHGNet

from kd_plugins.torch_files import load_torch_file


def read_model(path: str | Path, *, trust_pickle: bool, remedy: str) -> CHGNet:
    """Return the model of a checkpoint that CHGNet's Trainer or this package wrote, on the CPU.

    Args:
        path: of the file; ``~`` is expanded.
        trust_pickle: read a file that holds pickled code, which may do anything.
        remedy: how the user says that.

    Raises:
        OSError: if there is no such file, or it may not be read.
        ValueError: if it is no CHGNet checkpoint, damaged, or holds pickled code that is not
            trusted.
    """
    state = load_torch_file(path, trust_pickle=trust_pickle, remedy=remedy)
    held = state.get("model") if isinstance(state, dict) else None
    if not isinstance(held, dict) or not {"model_args", "state_dict"} <= set(held):
        raise ValueError(
            f"{path} is no CHGNet checkpoint; expected one of CHGNet's Trainer, with model_args "
            "and state_dict under its key model"
        )
    try:
        return CHGNet.from_dict(held)
    except Exception as error:  # whatever building a foreign model leads to
        first = " ".join(str(error).split())[:300]
        raise ValueError(
            f"{path} is no CHGNet checkpoint that can be built ({type(error).__name__}: {first})"
        ) from error
