"""The teachers ``emt`` and ``pfp``, which need no host framework.

They are named as entry points in pyproject.toml; the adapters add theirs, such as ``chgnet``.
"""

from __future__ import annotations

from typing import Any

from ase.calculators.emt import EMT

from kd_plugins.teachers.teacher import TeacherError


def emt() -> EMT:
    """Return ASE's effective medium theory: fast, for trials on Cu, Ni, Al and their like."""
    return EMT()


def pfp(model_version: str, calc_mode: str) -> Any:
    """Return Matlantis' PFP, which runs as a service and needs an account.

    Neither argument has a default, because both decide the physics.

    Args:
        model_version: such as ``v5.0.0``.
        calc_mode: such as ``CRYSTAL``, ``CRYSTAL_U0``, ``CRYSTAL_PLUS_D3`` or ``MOLECULE``.

    Raises:
        TeacherError: if ``pfp_api_client`` is not installed, or has no such mode.
    """
    try:
        from pfp_api_client.pfp.calculators.ase_calculator import ASECalculator
        from pfp_api_client.pfp.estimator import Estimator, EstimatorCalcMode
    except ImportError as error:
        raise TeacherError(
            f"teacher 'pfp' needs the package pfp_api_client, which Matlantis gives to its users "
            f"({error}); labels made there can be taken in with `kd-plugins import`"
        ) from error

    modes = EstimatorCalcMode.__members__
    if calc_mode not in modes:
        raise TeacherError(f"pfp: unknown calc_mode {calc_mode!r}; known: {', '.join(modes)}")

    calculator = ASECalculator(Estimator(model_version=model_version, calc_mode=modes[calc_mode]))
    # The fingerprint is made of these: the client keeps both in objects of its own.
    calculator.parameters = {"model_version": model_version, "calc_mode": calc_mode}
    return calculator
