import pytest
import torch
from torch import nn

from equipoise.bench.experiment.costs import measure_costs
from equipoise.bench.experiment.trial import Trial
from equipoise.bench.problems import Problem, Regression, Splits, Tensors, Training

WIDTH = 512
PARAMETER_BYTES = 4 * (WIDTH * WIDTH + WIDTH + 2 * (WIDTH + 1))
TRUNK_BYTES = 4 * (WIDTH * WIDTH + WIDTH)


class Wide(Problem):
    """Its parameters outweigh everything else, so that what has to be held is known."""

    name, description = "wide", "for tests"
    tasks = (Regression("a"), Regression("b"))

    def data(self, quick=False):
        x = torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(0))
        return Splits(*(Tensors(input=x, a=x[:, 0], b=x[:, 1]) for _ in range(3)))

    def model(self):
        return nn.ModuleDict({"trunk": nn.Linear(WIDTH, WIDTH), "a": nn.Linear(WIDTH, 1), "b": nn.Linear(WIDTH, 1)})

    def training(self, quick=False):
        return Training(epochs=1, batch_size=4)

    def predict(self, model, batch):
        features = model["trunk"](batch["input"]).relu()
        return {"a": model["a"](features), "b": model["b"](features)}


def measure(*methods, **changes):
    problem = Wide()
    trials = [Trial(method, 0, 1, 4, 4, 1e-3, 0.0, **changes) for method in methods]
    return measure_costs(problem, problem.data(), trials)


def test_memory_is_what_has_to_be_held():
    costs = measure("ew", "mao")
    # Adam: weights, gradients and two moments; MAO: another gradient and two more moments of the trunk.
    assert costs["ew"].megabytes * 1e6 == pytest.approx(4 * PARAMETER_BYTES, rel=0.3)
    more = (costs["mao"].megabytes - costs["ew"].megabytes) * 1e6
    assert 1.9 * TRUNK_BYTES < more < 4.5 * TRUNK_BYTES
    assert costs["ew"].relative_memory == 1
    assert costs["mao"].relative_memory == pytest.approx(costs["mao"].megabytes / costs["ew"].megabytes)


def test_the_reference_takes_its_own_time():
    costs = measure("ew", "pcgrad")
    assert costs["ew"].relative_time == 1
    assert costs["ew"].milliseconds > 0
    assert costs["pcgrad"].relative_time > 1


def test_a_method_that_fails_is_left_out():
    problem = Wide()
    problem.tasks = (Regression("a", loss=lambda values, labels: (values - labels).mean() - 10), Regression("b"))
    trials = [Trial(method, 0, 1, 4, 4, 1e-3, 0.0) for method in ("ew", "gls", "mao")]
    assert list(measure_costs(problem, problem.data(), trials)) == ["ew", "mao"]
