"""Evaluate a potential: accuracy, dynamics, relaxed crystals, their packing and stiffness."""

from kd_plugins.evaluate.accuracy import Accuracy as Accuracy
from kd_plugins.evaluate.accuracy import Deviation as Deviation
from kd_plugins.evaluate.accuracy import compare as compare
from kd_plugins.evaluate.dynamics import NveRun as NveRun
from kd_plugins.evaluate.dynamics import equilibrated as equilibrated
from kd_plugins.evaluate.dynamics import nve as nve
from kd_plugins.evaluate.elasticity import ElasticAverages as ElasticAverages
from kd_plugins.evaluate.elasticity import ElasticTensor as ElasticTensor
from kd_plugins.evaluate.elasticity import Moduli as Moduli
from kd_plugins.evaluate.elasticity import elastic_tensor as elastic_tensor
from kd_plugins.evaluate.elasticity import strained as strained
from kd_plugins.evaluate.memory import autograd_bytes as autograd_bytes
from kd_plugins.evaluate.memory import peak_bytes as peak_bytes
from kd_plugins.evaluate.rdf import Rdf as Rdf
from kd_plugins.evaluate.rdf import rdf as rdf
from kd_plugins.evaluate.relaxation import Relaxation as Relaxation
from kd_plugins.evaluate.relaxation import relax as relax
from kd_plugins.evaluate.similarity import rmsd15 as rmsd15
from kd_plugins.evaluate.stiffness_data import averaged_moduli as averaged_moduli
from kd_plugins.evaluate.stiffness_data import mean_moduli as mean_moduli
from kd_plugins.evaluate.stiffness_data import read_stiffness as read_stiffness
from kd_plugins.evaluate.volumes import VolumeErrors as VolumeErrors
from kd_plugins.evaluate.volumes import energies as energies
from kd_plugins.evaluate.volumes import scanned_volume as scanned_volume
from kd_plugins.evaluate.volumes import volume_error_percent as volume_error_percent
