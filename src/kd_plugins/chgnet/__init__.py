"""CHGNet as a teacher, alone and with dispersion."""

try:
    import chgnet as _chgnet  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"CHGNet is not installed ({error}): pip install 'kd_plugins[chgnet]'"
    ) from error
