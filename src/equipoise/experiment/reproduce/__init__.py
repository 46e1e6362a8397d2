"""The papers' experiments, carried out as comparisons, with the papers' tables beside the results."""

from equipoise.experiment.reproduce.experiments import EXPERIMENTS, Experiment
from equipoise.experiment.reproduce.paper_tables import PaperColumn, PaperTable

__all__ = ["EXPERIMENTS", "Experiment", "PaperColumn", "PaperTable"]
