"""Mixtures of experts and cross-stitch networks, against their formulas computed anew from the parameters."""

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.bench.models import CGC, PLE, CrossStitch, DSelectK, MMoE, SharedBottom
from equipoise.bench.models._mixtures import perceptron
from equipoise.bench.models.dselect_k import SparseGate, smooth_step
from equipoise.gradients import reached_leaves

HEADS = {"a": 1, "b": 3, "c": 2}
SAMPLES, INPUTS, FEATURES, WIDTH = 6, 5, 7, 4


def made(network, **options):
    torch.manual_seed(0)
    return network(HEADS, perceptron(INPUTS, FEATURES), FEATURES, width=WIDTH, **options).double()


def stitched():
    torch.manual_seed(0)
    return CrossStitch(HEADS, lambda: [perceptron(INPUTS, 4), perceptron(4, 6), perceptron(6, 5)], (4, 6, 5)).double()


NETWORKS = {
    "mmoe": lambda: made(MMoE, count=3),
    "dselect-k": lambda: made(DSelectK, count=8, k=2),
    "cgc": lambda: made(CGC, own=2, common=3),
    "ple": lambda: made(PLE, levels=2),
    "ple-3": lambda: made(PLE, levels=3, own=2),
    "cross-stitch": stitched,
}


@pytest.fixture
def inputs():
    return torch.randn(SAMPLES, INPUTS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Weights:
    """A network's parameters by name as arrays, and the layers that they make."""

    def __init__(self, network):
        self.by_name = {name: value.numpy() for name, value in network.state_dict().items()}

    def __getitem__(self, name):
        return self.by_name[name]

    def dense(self, name, x):
        return x @ self[f"{name}.weight"].T + self[f"{name}.bias"]

    def expert(self, name, x):
        return np.maximum(self.dense(f"{name}.0", x), 0)

    def gate(self, name, x):
        scores = np.exp(x @ self[f"{name}.scores.weight"].T)
        return scores / scores.sum(1, keepdims=True)


def mixture(shares, outputs):
    return sum(shares[:, [index]] * output for index, output in enumerate(outputs))


def assert_predicts(network, inputs, expected):
    with torch.no_grad():
        found = network(inputs)
    assert list(found) == list(HEADS)
    for task, prediction in found.items():
        np.testing.assert_allclose(prediction, expected[task], rtol=1e-12, atol=1e-12)


def test_mmoe_is_its_formula(inputs):
    network = NETWORKS["mmoe"]()
    weights = Weights(network)
    x = weights.expert("trunk", inputs.numpy())
    outputs = [weights.expert(f"experts.{index}", x) for index in range(3)]
    expected = {
        task: weights.dense(f"heads.{place}", mixture(weights.gate(f"gates.{place}", x), outputs))
        for place, task in enumerate(HEADS)
    }
    assert_predicts(network, inputs, expected)


def test_cgc_is_its_formula(inputs):
    network = NETWORKS["cgc"]()
    weights = Weights(network)
    x = weights.expert("trunk", inputs.numpy())
    common = [weights.expert(f"levels.0.common.{index}", x) for index in range(3)]
    expected = {}
    for place, task in enumerate(HEADS):
        own = [weights.expert(f"levels.0.own.{place}.{index}", x) for index in range(2)]
        state = mixture(weights.gate(f"levels.0.gates.{place}", x), own + common)
        expected[task] = weights.dense(f"heads.{place}", state)
    assert_predicts(network, inputs, expected)


@pytest.mark.parametrize(("name", "levels", "own"), [("ple", 2, 1), ("ple-3", 3, 2)])
def test_ple_is_its_formula(inputs, name, levels, own):
    network = NETWORKS[name]()
    weights = Weights(network)
    common = weights.expert("trunk", inputs.numpy())
    states = [common] * len(HEADS)
    for level in range(levels):
        at = f"levels.{level}"
        shared = [weights.expert(f"{at}.common.{index}", common) for index in range(2)]
        private = [
            [weights.expert(f"{at}.own.{place}.{index}", state) for index in range(own)]
            for place, state in enumerate(states)
        ]
        states = [
            mixture(weights.gate(f"{at}.gates.{place}", state), private[place] + shared)
            for place, state in enumerate(states)
        ]
        if level < levels - 1:
            common = mixture(
                weights.gate(f"{at}.common_gate", common),
                [*(output for outputs in private for output in outputs), *shared],
            )
    expected = {task: weights.dense(f"heads.{place}", states[place]) for place, task in enumerate(HEADS)}
    assert_predicts(network, inputs, expected)


def step(t, gamma):
    """The smooth step, a number at a time."""
    if t <= -gamma / 2:
        return 0.0
    if t >= gamma / 2:
        return 1.0
    return -2 / gamma**3 * t**3 + 3 / (2 * gamma) * t + 0.5


def test_dselect_k_is_its_formula(inputs):
    network = NETWORKS["dselect-k"]()
    with torch.no_grad():
        for gate in network.gates:
            gate.digits.weight.normal_()  # so that some digits are settled and others are not
    weights = Weights(network)
    x = weights.expert("trunk", inputs.numpy())
    outputs = [weights.expert(f"experts.{index}", x) for index in range(8)]
    expected, settled = {}, 0
    for place, task in enumerate(HEADS):
        digits = weights.dense(f"gates.{place}.digits", x).reshape(SAMPLES, 2, 3)
        selectors = np.exp(weights.dense(f"gates.{place}.selectors", x))
        shares = np.zeros((SAMPLES, 8))
        for sample in range(SAMPLES):
            for selector in range(2):
                for number in range(8):
                    product = 1.0
                    for digit in range(3):
                        s = step(digits[sample, selector, digit], 1.0)
                        settled += s in (0.0, 1.0)
                        product *= s if number >> digit & 1 else 1 - s
                    shares[sample, number] += selectors[sample, selector] / selectors[sample].sum() * product
        np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-12)
        expected[task] = weights.dense(f"heads.{place}", mixture(shares, outputs))
    assert 0 < settled < len(HEADS) * SAMPLES * 2 * 8 * 3
    assert_predicts(network, inputs, expected)


def test_smooth_step_is_continuous_with_its_slope():
    t = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    smooth_step(t, 2.0).sum().backward()
    torch.testing.assert_close(smooth_step(t, 2.0).detach(), torch.tensor([0, 0, 0.5, 1, 1], dtype=torch.float64))
    torch.testing.assert_close(t.grad, torch.tensor([0, 0, 0.75, 0, 0], dtype=torch.float64))


def test_a_gate_of_settled_digits_reads_k_experts_at_most():
    torch.manual_seed(0)
    gate = SparseGate(5, 16, k=2, gamma=1.0)
    with torch.no_grad():
        gate.digits.weight.mul_(1e6)
    shares = gate(torch.randn(200, 5))
    assert ((shares > 0).sum(1) <= 2).all()
    assert (shares > 0).any(0).sum() > 8
    torch.testing.assert_close(shares.sum(1), torch.ones(200))
    start = SparseGate(5, 16, k=2, gamma=1.0)(torch.randn(200, 5))
    torch.testing.assert_close(start, torch.full_like(start, 1 / 16), rtol=0.5, atol=0)


@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_dselect_k_numbers_its_experts_in_binary(count):
    with pytest.raises(ValueError, match=f"count must be 2, 4, 8, …, found {count}"):
        made(DSelectK, count=count)


def test_cross_stitch_is_its_formula(inputs):
    network = stitched()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for unit in (*network.trunk.units, network.stitch):
            unit.weights.normal_(generator=generator)
    weights = Weights(network)
    features = [inputs.numpy()] * len(HEADS)
    for stage, unit in enumerate(("trunk.units.0", "trunk.units.1", "stitch")):
        outputs = [weights.expert(f"trunk.stages.{stage}.{place}", x) for place, x in enumerate(features)]
        alpha = weights[f"{unit}.weights"]
        features = [sum(alpha[to, at] * outputs[at] for at in range(3)) for to in range(3)]
    expected = {task: weights.dense(f"heads.{place}", features[place]) for place, task in enumerate(HEADS)}
    assert_predicts(network, inputs, expected)


def test_cross_stitch_starts_with_nine_tenths_of_the_own_features():
    for unit in (*stitched().trunk.units, stitched().stitch):
        expected = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]], dtype=torch.float64)
        torch.testing.assert_close(unit.weights, expected[:, :, None].expand_as(unit.weights), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_task_reaches_what_is_shared_and_what_is_its_own(name, inputs):
    network = NETWORKS[name]()
    losses = [prediction.square().mean() for prediction in network(inputs).values()]
    reached = [{id(leaf) for leaf in leaves} for leaves in reached_leaves(losses)]
    shared = {id(parameter) for parameter in network.shared_parameters()}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert set.intersection(*reached) == shared
    for place, own in enumerate(one - shared for one in reached):
        for parameter in own:
            parts = names[parameter].split(".")
            assert str(place) in (parts[1], *parts[3:4]), names[parameter]  # heads.0, gates.0, levels.1.own.0, …
    assert set.union(*reached) == set(names)


@pytest.mark.parametrize("network", [SharedBottom, MMoE, CGC, PLE, DSelectK])
def test_any_trunk_will_do(network):
    trunk = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    predictions = network(HEADS, trunk, 3)(torch.randn(2, 1, 9, 9))
    assert {task: tuple(prediction.shape) for task, prediction in predictions.items()} == {
        task: (2, outputs) for task, outputs in HEADS.items()
    }
