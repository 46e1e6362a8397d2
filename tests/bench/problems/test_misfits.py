"""What does not fit a task is said in the same sentence by `check`, by `compare` before a run, and in training."""

import math
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.bench.experiment.checking import check
from equipoise.bench.experiment.settings import Settings, SettingsError
from equipoise.bench.experiment.training import train
from equipoise.bench.experiment.trial import Trial
from equipoise.bench.problems import (
    BinaryClassification,
    Classification,
    Problem,
    Regression,
    Splits,
    Tensors,
    Training,
    check_problem,
)
from equipoise.bench.problems._dense import DepthTask, NormalsTask, SegmentationTask
from equipoise.bench.problems._errors import ProblemCodeError

SETTINGS = Settings("mine.py:problem", ("ew",), 1, True, 1, 8, 8, 1e-2, 0.0, "constant")
TRIAL = Trial("ew", 0, 1, 8, 8, 1e-2, 0.0, reference={"kind": 1.0, "stay": 1.0, "ill": 1.0})


class Heads(nn.Module):
    def __init__(self, **sizes):
        super().__init__()
        self.trunk = nn.Linear(3, 3)
        self.heads = nn.ModuleDict({task: nn.Linear(3, size) for task, size in sizes.items()})

    def forward(self, x):
        return {task: head(self.trunk(x)) for task, head in self.heads.items()}


class Mine(Problem):
    """Three classes, a number, and a yes or no; what tests change is one entry."""

    name, description = "mine", "for tests"
    tasks = (Classification("kind", 3), Regression("stay"), BinaryClassification("ill"))
    sizes = MappingProxyType({"kind": 3, "stay": 1, "ill": 1})

    def data(self, quick=False):
        return Splits(*(self.part(number) for number in range(3)))

    def part(self, number):
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(number))
        return Tensors(input=x, kind=torch.arange(16) % 3, stay=x[:, 0], ill=(x[:, 1] > 0).long())

    def model(self):
        return Heads(**self.sizes)

    def training(self, quick=False):
        return Training(epochs=1, batch_size=8, evaluation_batch_size=8)


def mine(**changes):
    return type("Changed", (Mine,), changes)()


def with_data(**functions):
    """A problem with other tensors: name → function of the old one, None to leave it out."""

    def part(self, number):
        tensors = Mine.part(self, number).tensors
        for name, change in functions.items():
            tensors[name] = change(tensors[name])
        return Tensors(**tensors)

    return mine(part=part)


def renamed(self, number):
    tensors = Mine.part(self, number).tensors
    return Tensors(inputs=tensors.pop("input"), **tensors)


class Argmax(Heads):
    def forward(self, x):
        found = super().forward(x)
        return {**found, "kind": found["kind"].argmax(1)}


class Tuple(Heads):
    def forward(self, x):
        return tuple(super().forward(x).values())


CLASS_RANGE = "with 3 classes they are 0 to 2, and -1 where there is none."
CASES = {
    "two outputs for a number": (
        mine(sizes={**Mine.sizes, "stay": 2}),
        "task stay: Predictions must be [B] or [B, 1] for labels [8], found [8, 2].",
    ),
    "two outputs for yes or no": (
        mine(sizes={**Mine.sizes, "ill": 2}),
        "task ill: Predictions must be logits [B] or [B, 1] for labels [8], found [8, 2].",
    ),
    "a head too narrow": (
        mine(sizes={**Mine.sizes, "kind": 2}),
        "task kind: Predictions must be logits [B, 3] for labels [8], found [8, 2].",
    ),
    "a head too wide": (
        mine(sizes={**Mine.sizes, "kind": 5}),
        "task kind: Predictions must be logits [B, 3] for labels [8], found [8, 5].",
    ),
    "classes for logits": (
        mine(model=lambda self: Argmax(**self.sizes)),
        "task kind: Predictions must be logits [B, 3] for labels [8], found [8] of torch.int64.",
    ),
    "no mapping": (
        mine(model=lambda self: Tuple(**self.sizes)),
        "task kind: The network predicts no 'kind'; expected a mapping that has it, found a tuple.",
    ),
    "no head": (
        mine(sizes={"kind": 3, "stay": 1}),
        "task ill: The network predicts no 'ill'; it predicts: kind, stay.",
    ),
    "missing as 99": (
        with_data(kind=lambda kind: torch.where(kind == 2, 99, kind)),
        f"task kind: A label is 99; {CLASS_RANGE}",
    ),
    "missing as -100": (
        with_data(kind=lambda kind: torch.where(kind == 2, -100, kind)),
        f"task kind: A label is -100; {CLASS_RANGE}",
    ),
    "classes from 1": (with_data(kind=lambda kind: kind + 1), f"task kind: A label is 3; {CLASS_RANGE}"),
    "float classes": (
        with_data(kind=lambda kind: kind.float()),
        "task kind: Labels must be int64, found torch.float32: write .long(), and -1 where there is none.",
    ),
    "float yes or no": (
        with_data(ill=lambda ill: ill.float()),
        "task ill: Labels must be int64, found torch.float32: write .long(), and -1 where there is none.",
    ),
    "integers for numbers": (
        with_data(stay=lambda stay: stay.long()),
        "task stay: Labels must be floats, found torch.int64: write .float().",
    ),
    "a column of labels": (
        with_data(stay=lambda stay: stay[:, None]),
        "task stay: Labels must be [B], found [8, 1].",
    ),
    "inputs for input": (
        mine(part=renamed),
        "predict: A batch holds no 'input'; it holds: inputs, kind, stay, ill.",
    ),
    "float64 inputs": (
        with_data(input=lambda x: x.double()),
        "predict: A batch holds 'input' as float64, and the network's weights are float32: write .float() where the "
        "data are made.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_check_compare_and_training_say_the_same(case):
    problem, sentence = CASES[case]
    wrong = [f"{found.part}: {found.message}" for found in check_problem(problem) if found.level == "wrong"]
    assert wrong == [sentence]
    before = torch.get_rng_state()
    with pytest.raises(SettingsError) as refused:
        check(SETTINGS, problem, problem.data())
    assert str(refused.value) == f"mine.py:problem cannot be compared. {sentence}"
    if case != "missing as -100":  # which PyTorch's cross-entropy leaves out
        torch.set_rng_state(before)
        with pytest.raises(ProblemCodeError) as found:
            train(problem, problem.data(), TRIAL)
        assert str(found.value) == sentence


def test_yes_or_no_is_0_or_1():
    sentence = "task ill: A label is 2; with 2 classes they are 0 to 1, and -1 where there is none."
    problem = with_data(ill=lambda ill: 2 * ill)
    assert [f"{f.part}: {f.message}" for f in check_problem(problem) if f.level == "wrong"] == [sentence]
    with pytest.raises(ProblemCodeError, match="A label is 2"):  # PyTorch takes it in the loss
        train(problem, problem.data(), TRIAL)


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (Regression("stay"), "tasks must be several Tasks, found one Regression: write tasks = (Regression(…), …)."),
        (("kind", "stay"), "Each must be a Task, as Classification or Regression; found 'kind'."),
        ((), "tasks must be one or more with different names; there is none."),
    ],
)
def test_tasks_that_are_none(tasks, words):
    problem = mine(tasks=tasks)
    assert [(found.part, found.message) for found in check_problem(problem)] == [("tasks", words)]
    with pytest.raises(SettingsError) as refused:
        check(SETTINGS, problem, problem.data())
    assert str(refused.value) == f"mine.py:problem cannot be compared. tasks: {words}"


def test_compare_takes_what_check_only_doubts():
    one_task = mine(tasks=Mine.tasks[:1])
    assert {found.level for found in check_problem(one_task)} == {"fine", "doubtful"}
    check(SETTINGS, one_task, one_task.data())


IMAGES = torch.zeros(2, 4, 4)


@pytest.mark.parametrize(
    ("task", "found", "labels", "sentence"),
    [
        (
            SegmentationTask(3),
            torch.zeros(2, 2, 4, 4),
            IMAGES.long(),
            "Predictions must be logits [B, 3, H, W] for labels [2, 4, 4], found [2, 2, 4, 4].",
        ),
        (SegmentationTask(3), torch.zeros(2, 3, 4, 4), IMAGES.long() + 3, f"A label is 3; {CLASS_RANGE}"),
        (
            SegmentationTask(3),
            torch.zeros(2, 3, 4, 4),
            IMAGES,
            "Labels must be int64, found torch.float32: write .long(), and -1 where there is none.",
        ),
        (DepthTask(), torch.zeros(2, 1, 4, 4), IMAGES, "Labels must be [B, C, H, W], found [2, 4, 4]."),
        (
            DepthTask(),
            torch.zeros(2, 4, 4),
            IMAGES[:, None],
            "Predictions must be of the labels' shape for labels [2, 1, 4, 4], found [2, 4, 4].",
        ),
        (
            NormalsTask(),
            torch.zeros(2, 1, 4, 4),
            IMAGES[:, None].expand(2, 3, 4, 4),
            "Predictions must be of the labels' shape for labels [2, 3, 4, 4], found [2, 1, 4, 4].",
        ),
    ],
)
def test_tasks_of_pixels(task, found, labels, sentence):
    predictions, batch = {task.name: found}, {task.name: labels}
    for ask in (lambda: task.loss(predictions, batch), lambda: task.update(task.metrics(), predictions, batch)):
        with pytest.raises(ProblemCodeError) as error:
            ask()
        assert str(error.value) == f"task {task.name}: {sentence}"


class Unseeded(Mine):
    def part(self, number):
        x = torch.tensor(np.random.default_rng().normal(size=(16, 3)), dtype=torch.float32)
        return Tensors(input=x, kind=torch.arange(16) % 3, stay=x[:, 0], ill=(x[:, 1] > 0).long())


class DefaultGenerator(Mine):
    def part(self, number):
        tensors = super().part(number).tensors
        return Tensors(**{**tensors, "input": torch.randn(16, 3)}) if number == 1 else Tensors(**tensors)


class Augmented(Mine):
    """Its training inputs are noisy at every reading, by a generator that nobody seeds."""

    class Noisy(Tensors):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            noise = torch.tensor(np.random.default_rng().normal(size=item["input"].shape), dtype=torch.float32)
            return {**item, "input": item["input"] + noise}

    def part(self, number):
        part = super().part(number)
        return self.Noisy(**part.tensors) if number == 0 else part


def test_data_are_the_same_at_every_call():
    for problem, names in ((Unseeded(), "train and validation and test"), (DefaultGenerator(), "validation")):
        (wrong,) = [found for found in check_problem(problem) if found.level == "wrong"]
        assert wrong.part == "data(quick=True)"
        assert wrong.message.startswith(f"{names} differ")
        assert "torch.Generator().manual_seed(0)" in wrong.message
    assert all(found.level == "fine" for found in check_problem(Augmented()))


class LeakInFull(Mine):
    def data(self, quick=False):
        return super().data() if quick else Splits(self.part(0), self.part(1), self.part(0))


def test_a_leak_in_the_full_data_is_seen_where_these_are_looked_at():
    assert all(found.level == "fine" for found in check_problem(LeakInFull()))
    (leak,) = [found for found in check_problem(LeakInFull(), quick=False) if found.level != "fine"]
    assert (leak.level, leak.part) == ("doubtful", "data()")
    assert leak.message.startswith("16 inputs of the test part stand in the train part")


class Rows(list):
    """A dataset that is no `Tensors`."""


def test_a_task_without_a_label_in_a_split_is_wrong():
    def part(self, number):
        tensors = Mine.part(self, number).tensors
        if number == 1:
            tensors["ill"] = torch.full((16,), -1)
        tensors["stay"] = torch.full((16,), math.nan)
        return Tensors(**tensors)

    def rows(self, number):
        tensors = part(self, number).tensors
        return Rows({name: tensor[index] for name, tensor in tensors.items()} for index in range(16))

    for data in (part, rows):
        wrong = [(f.part, f.message) for f in check_problem(mine(part=data)) if f.level != "fine"]
        assert wrong == [
            ("task stay", "It has no label in train and validation and test: split otherwise, or leave the task out."),
            ("task ill", "It has no label in validation: split otherwise, or leave the task out."),
        ]


def test_labels_are_looked_at_as_they_are_read():
    class Recoded(Tensors):
        def __getitem__(self, index):
            item = super().__getitem__(index)
            return {**item, "kind": item["kind"] - 7, "stay": item["stay"].nan_to_num(1.0)}

    def part(self, number):
        tensors = Mine.part(self, number).tensors
        return Recoded(**{**tensors, "kind": tensors["kind"] + 7, "stay": torch.full((16,), math.nan)})

    assert {found.level for found in check_problem(mine(part=part))} == {"fine"}


def test_losses_far_apart_are_a_hint():
    found = check_problem(with_data(stay=lambda stay: 100 * stay))
    (hint,) = [finding for finding in found if finding.level != "fine"]
    assert (hint.level, hint.part) == ("doubtful", "losses")
    assert "stay is" in hint.message
    assert "Standardise its labels" in hint.message
