"""One page that says whether distillation helped: verdict, tables, figures, provenance."""

from kd_plugins.files import write_json as write_json
from kd_plugins.report.page import write_report as write_report
from kd_plugins.report.reading import read_experiment as read_experiment
from kd_plugins.report.records import Evaluation as Evaluation
from kd_plugins.report.records import Experiment as Experiment
from kd_plugins.report.statistics import Difference as Difference
from kd_plugins.report.statistics import paired as paired
from kd_plugins.report.verdicts import Verdict as Verdict
from kd_plugins.report.verdicts import verdict as verdict
