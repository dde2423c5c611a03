"""Compare arms over seeds, trained by the host's own command: differences, intervals, a verdict."""

from kd_plugins.compare.experiment import Experiment as Experiment
from kd_plugins.compare.experiment import read_experiment as read_experiment
from kd_plugins.compare.run import Comparison as Comparison
