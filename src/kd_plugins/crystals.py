"""The old name of `kd_plugins.sampling`, for one version more."""

import warnings

from kd_plugins.sampling import *  # noqa: F403

warnings.warn("kd_plugins.crystals is kd_plugins.sampling now", DeprecationWarning, stacklevel=2)
