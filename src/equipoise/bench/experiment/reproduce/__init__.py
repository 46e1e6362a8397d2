"""The papers' experiments, carried out as comparisons, with the papers' tables beside the results."""

from equipoise.bench.experiment.reproduce.experiments import EXPERIMENTS, Experiment
from equipoise.bench.experiment.reproduce.paper_tables import PaperColumn, PaperTable
from equipoise.bench.experiment.reproduce.run import find_experiment, hyperparameters_for, problem_name, write_samples
from equipoise.bench.experiment.reproduce.table import (
    experiments_table,
    measured,
    paper_markdown,
    paper_notes,
    paper_table,
    reproduction_remarks,
)

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "PaperColumn",
    "PaperTable",
    "experiments_table",
    "find_experiment",
    "hyperparameters_for",
    "measured",
    "paper_markdown",
    "paper_notes",
    "paper_table",
    "problem_name",
    "reproduction_remarks",
    "write_samples",
]
