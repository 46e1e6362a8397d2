"""What is trained: problems by name, and what a person's own problem is made of."""

from equipoise.bench.problems._base import SCHEDULES, Measure, Problem, Splits, Task, Tensors, Training
from equipoise.bench.problems._checking import check_problem
from equipoise.bench.problems._findings import Finding
from equipoise.bench.problems._registry import (
    PROBLEMS,
    ProblemError,
    is_object,
    load_problem,
    name_object,
    split_options,
    with_model,
    with_options,
)
from equipoise.bench.problems._tasks import BinaryClassification, Classification, Regression

__all__ = [
    "PROBLEMS",
    "SCHEDULES",
    "BinaryClassification",
    "Classification",
    "Finding",
    "Measure",
    "Problem",
    "ProblemError",
    "Regression",
    "Splits",
    "Task",
    "Tensors",
    "Training",
    "check_problem",
    "is_object",
    "load_problem",
    "name_object",
    "split_options",
    "with_model",
    "with_options",
]
