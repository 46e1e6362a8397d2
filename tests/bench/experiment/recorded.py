"""Runs of a problem that is small and keeps what it saw."""

import hashlib
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from equipoise.bench.experiment.training import train
from equipoise.bench.experiment.trial import Trial
from equipoise.bench.problems import Problem, Regression, Splits, Tensors, Training

TRIAL = Trial("ew", 0, epochs=3, batch_size=8, evaluation_batch_size=16, lr=1e-2, weight_decay=0.0)
REFERENCE = {"a": 0.5, "b": 0.5}
POTENTIALS = {"a": 0.5, "b": 0.5}


class Noisy(Dataset):
    """Every read draws noise, as augmentation does."""

    def __init__(self, tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors)

    def __getitem__(self, index):
        sample = self.tensors[index]
        return {**sample, "input": sample["input"] + 0.1 * torch.randn(3)}


class Recording(Problem):
    """Two regressions on a line, with dropout; keeps the initial weights and every training batch."""

    name, description = "recording", "for tests"
    tasks = (Regression("a"), Regression("b"))

    def __init__(self, partial=False):
        self.partial = partial
        self.seen = []
        self.initial = None

    def data(self, quick=False):
        generator = torch.Generator().manual_seed(0)
        splits = []
        for size in (42, 20, 20):
            x = torch.randn(size, 3, generator=generator)
            splits.append(Tensors(input=x, a=x.sum(1), b=100 * x[:, 0]))
        if self.partial:
            splits[0].tensors["a"][::2] = math.nan
            splits[0].tensors["a"][1:9] = math.nan
        return Splits(Noisy(splits[0]), *splits[1:])

    def model(self):
        model = nn.ModuleDict(
            {
                "trunk": nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.ReLU()),
                "a": nn.Linear(8, 1),
                "b": nn.Linear(8, 1),
            }
        )
        self.initial = digest(*model.state_dict().values())
        return model

    def training(self, quick=False):
        return Training(epochs=3, batch_size=8)

    def predict(self, model, batch):
        if model.training and torch.is_grad_enabled():
            self.seen.append(digest(batch["input"], batch["a"], batch["b"]))
        features = model["trunk"](batch["input"])
        return {"a": model["a"](features), "b": model["b"](features)}


def digest(*tensors):
    return hashlib.sha256(b"".join(t.double().numpy().tobytes() for t in tensors)).hexdigest()


def run(problem=None, **changes):
    problem = problem or Recording()
    method = changes.get("method", "ew")
    given = {} if method.startswith("single:") else {"reference": REFERENCE, "potentials": POTENTIALS}
    record = train(problem, problem.data(), replace(TRIAL, **given, **changes))
    return problem, record


class Stop(Exception):
    pass


def interrupted(problem, trial, outputs, step):
    """Trains until a step, and as if the process had died there."""
    steps = iter(range(step))

    def on_step():
        if next(steps, None) is None:
            raise Stop

    with pytest.raises(Stop):
        train(problem, problem.data(), trial, on_step=on_step, outputs=outputs)
    torch.manual_seed(99)  # another process: whatever its generator is at
