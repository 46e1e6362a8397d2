"""What is trained: problems by name, and what a person's own problem is made of."""

from equipoise.bench.problems._base import SCHEDULES, Measure, Problem, Splits, Task, Tensors, Training
from equipoise.bench.problems._registry import PROBLEMS, ProblemError, load_problem, split_options, with_options
from equipoise.bench.problems._tasks import BinaryClassification, Classification, Regression

__all__ = [
    "PROBLEMS",
    "SCHEDULES",
    "BinaryClassification",
    "Classification",
    "Measure",
    "Problem",
    "ProblemError",
    "Regression",
    "Splits",
    "Task",
    "Tensors",
    "Training",
    "load_problem",
    "split_options",
    "with_options",
]
