"""The old name of `kd_plugins.core.contrastive`."""

from kd_plugins.core.contrastive import Crack as Crack  # until fairchem follows
from kd_plugins.core.contrastive import Instance as Instance
