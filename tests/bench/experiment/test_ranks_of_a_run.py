"""A run on two devices, which together give what one gives."""

import math
import textwrap
from dataclasses import replace

import pytest
import torch

from equipoise.bench.experiment.batches import share
from equipoise.bench.experiment.ranks import RankError, train_on_ranks
from equipoise.bench.experiment.training import Outputs, train
from equipoise.bench.experiment.trial import Trial
from equipoise.bench.problems import load_problem

PROBLEM = """
import torch
from torch import nn
from equipoise.bench.problems import Problem, Regression, Splits, Tensors, Training


class Plain(Problem):
    name, description = "plain", "for tests"
    tasks = (Regression("a"), Regression("b"))

    def data(self, quick=False):
        generator = torch.Generator().manual_seed(0)
        splits = []
        for size in (48, 21, 21):
            x = torch.randn(size, 4, generator=generator)
            splits.append(Tensors(input=x, a=x.sum(1), b=30 * x[:, 0] * x[:, 1]))
        return Splits(*splits)

    def model(self):
        return Both()

    def training(self, quick=False):
        return Training(epochs=3, batch_size=16)


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 16), nn.ReLU())
        self.a, self.b = nn.Linear(16, 1), nn.Linear(16, 1)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        features = self.trunk(x) * self.scale
        return {"a": self.a(features)[:, 0], "b": self.b(features)[:, 0]}


def partial():
    class Partial(Plain):
        def data(self, quick=False):
            splits = super().data(quick)
            splits.train.tensors["b"][::2] = float("nan")
            return splits

    return Partial()


def broken():
    class Broken(Plain):
        def predict(self, model, batch):
            if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
                raise ValueError("no predictions here")
            return super().predict(model, batch)

    return Broken()


problem = Plain()
"""
TRIAL = Trial("ew", 0, 3, 16, 32, 1e-2, 1e-3, "cosine", reference={"a": 1.0, "b": 1.0})


@pytest.fixture
def problem(tmp_path):
    (tmp_path / "plain.py").write_text(textwrap.dedent(PROBLEM))
    return f"{tmp_path / 'plain.py'}:problem"


def close(found, expected):
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(close, found, expected))
    return found == expected if isinstance(expected, str) else math.isclose(found, expected, rel_tol=2e-4)


@pytest.mark.parametrize(
    ("method", "strategy"),
    [("pcgrad", "auto"), ("mao", "ddp"), ("single:b", "auto"), ("imtl", "fsdp"), ("mao", "fsdp")],
)
def test_two_devices_give_what_one_gives(problem, method, strategy, tmp_path):
    """Also where one of them has more labels of a task than the other, but for fully_shard, which wants all."""
    if strategy == "fsdp" and torch.__version__ < "2.7":
        pytest.skip("a backward pass a task under fully_shard takes PyTorch 2.7")
    if strategy != "fsdp":
        problem = problem.replace(":problem", ":partial")
    loaded = load_problem(problem)
    trial = replace(TRIAL, method=method, reference=None if method.startswith("single:") else TRIAL.reference)
    expected = train(loaded, loaded.data(), trial)
    sharded = strategy == "fsdp"
    outputs = Outputs(tmp_path / "checkpoint.pt", monitor=None if sharded else tmp_path / "monitor.jsonl")
    trial = replace(trial, devices=2, strategy=strategy)
    epochs = []

    def run():
        record = train_on_ranks(problem, False, trial, lambda epoch, score: epochs.append(epoch), lambda: None, outputs)
        return without_the_way(record)

    found, expected = run(), without_the_way(expected)
    assert close(found, expected), (found, expected)
    assert epochs == [1, 2, 3]
    saved = torch.load(outputs.checkpoint, weights_only=True)
    assert saved["learner"]["network"]["trunk.0.weight"].shape == (16, 4)
    if sharded:  # as if it had been killed in its last epoch: what follows is the same bit for bit
        assert run() == found
        assert epochs == [1, 2, 3, 3]
    assert sharded or len(outputs.monitor.read_text().splitlines()) == 1 + 9


def without_the_way(record):
    """A record without what is another thing on several devices: its key, its time, and what is not counted there."""
    return {key: value for key, value in record.items() if key not in ("run", "seconds", "shared_parameters")}


def test_a_device_without_a_label_goes_along(problem):
    record = train_on_ranks(
        problem.replace(":problem", ":partial"),
        False,
        replace(TRIAL, method="single:b", batch_size=2, epochs=1, reference=None, devices=2),
        lambda epoch, score: None,
        lambda: None,
        Outputs(),
    )
    assert record["status"] == "finished"
    assert set(record["epochs"][0]["loss"]) == {"b"}


def test_an_error_on_one_device_ends_the_run(problem):
    with pytest.raises(RankError, match=r"device 1: ValueError: no predictions here"):
        train_on_ranks(
            problem.replace(":problem", ":broken"),
            False,
            replace(TRIAL, devices=2),
            lambda epoch, score: None,
            lambda: None,
            Outputs(),
        )


def test_shares_are_every_sample_once():
    batch = {"x": torch.arange(10), "names": list("abcdefghij"), "pair": (torch.arange(10)[:, None], 3)}
    parts = [share(batch, rank, 3) for rank in range(3)]
    assert sorted(torch.cat([part["x"] for part in parts]).tolist()) == list(range(10))
    for part in parts:
        assert ["abcdefghij"[index] for index in part["x"]] == part["names"]
        assert torch.equal(part["pair"][0][:, 0], part["x"])
        assert part["pair"][1] == 3
    assert share(batch, 0, 1) is batch
