"""One page of a comparison or an evaluation: verdict, tables, figures, provenance."""

from kd_plugins.files import write_json as write_json
from kd_plugins.report.page import write_report as write_report
from kd_plugins.report.results import ExperimentResults as ExperimentResults
from kd_plugins.report.results import RunResults as RunResults
from kd_plugins.report.results import read_results as read_results
from kd_plugins.report.statistics import Difference as Difference
from kd_plugins.report.statistics import compare_pairs as compare_pairs
from kd_plugins.report.verdicts import Verdict as Verdict
from kd_plugins.report.verdicts import verdict as verdict
from kd_plugins.report.worth import Worth as Worth
from kd_plugins.report.worth import worth_of_best as worth_of_best
