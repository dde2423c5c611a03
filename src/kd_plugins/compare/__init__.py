"""Did distillation help, and what did it cost? Arms, seeds, the host's own trainer, one answer."""

from kd_plugins.compare.experiment import Experiment as Experiment
from kd_plugins.compare.experiment import read_experiment as read_experiment
from kd_plugins.compare.run import Comparison as Comparison
