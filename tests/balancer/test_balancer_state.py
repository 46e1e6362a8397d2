"""What a Balancer keeps: its state, as a part of a module too, copies and dtypes."""

import copy
import io

import pytest
import torch
from balancer.by_hand import Recorder
from networks import TASKS, Network, assert_same, batch, gradients, snapshot
from torch import nn

import equipoise as eq


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: eq.Balancer(["a", "c", "b"], eq.EMA(), eq.GradNorm()), "other tasks: found"),
        (lambda: eq.Balancer(["a", "b"], eq.EMA(), eq.GradNorm()), "other tasks: found"),
        (lambda: eq.Balancer(TASKS, eq.REMA(), eq.GradNorm()), "other method: found"),
        (lambda: eq.Balancer(TASKS, eq.GeometricMean(eq.EMA()), eq.GradNorm()), "other method: found"),
        (lambda: eq.Balancer(TASKS, eq.EMA()), "other method: found"),
        (lambda: nn.Linear(1, 1), "holds no Balancer"),
    ],
)
def test_state_of_another_is_refused_before_anything_changes(other, words):
    model = Network()
    balancer = eq.Balancer(TASKS, eq.EMA(), eq.GradNorm())
    balancer.backward(model.losses(batch(0)))
    before = snapshot(model, balancer)
    with pytest.raises(ValueError, match=words):
        balancer.load_state_dict(other().state_dict())
    assert_same(snapshot(model, balancer), before)


class Whole(nn.Module):
    def __init__(self, objective):
        super().__init__()
        self.network = Network()
        self.balancer = eq.Balancer(TASKS, objective, eq.PCGrad(), model=self.network)


def test_as_a_part_of_another_module():
    torch.manual_seed(0)
    whole = Whole(eq.UW())
    assert any(name.startswith("balancer.objective") for name, _ in whole.named_parameters())
    optimizer = torch.optim.AdamW([p for p in whole.parameters() if p.requires_grad])
    for index in range(3):
        optimizer.zero_grad()
        whole.balancer.backward(whole.network.losses(batch(index)))
        optimizer.step()
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)
    resumed = Whole(eq.UW())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert_same(resumed.state_dict(), whole.state_dict())
    for module in (whole, resumed):
        module.zero_grad()
        module.balancer.backward(module.network.losses(batch(5), ["a", "b"]))
    assert_same(gradients(resumed), gradients(whole))


def test_as_a_part_that_a_checkpoint_lacks():
    checkpoint = {f"network.{name}": value for name, value in Network(seed=7).state_dict().items()}
    whole = Whole(None)
    with pytest.raises(RuntimeError, match=r"Missing key.*balancer"):
        whole.load_state_dict(checkpoint)
    whole.load_state_dict(checkpoint, strict=False)
    assert torch.equal(whole.network.trunk.weight, Network(seed=7).trunk.weight)


def test_dtype_moves():
    whole = Whole(eq.UW()).double()
    assert next(whole.balancer.parameters()).dtype == torch.float64
    whole.balancer.backward(whole.network.losses(batch(0)))
    half = Whole(eq.EMA()).bfloat16()
    half.balancer.backward(half.network.losses(batch(0)))
    assert half.network.trunk.weight.grad.isfinite().all()


def test_a_copy_is_independent():
    whole = Whole(eq.EMA())
    whole.balancer.backward(whole.network.losses(batch(0)))
    whole.zero_grad()
    twin = copy.deepcopy(whole)
    before = snapshot(whole)
    for index in (1, 2):
        twin.balancer.backward(twin.network.losses(batch(index)))
    assert_same(snapshot(whole), before)
    for index in (1, 2):
        whole.balancer.backward(whole.network.losses(batch(index)))
    assert_same(snapshot(twin), snapshot(whole))


def test_loading_forgets_what_was_found_shared_later():
    """State saved before anything was found shared gives back a balancer that has found nothing."""
    model = Network()
    balancer = eq.Balancer(TASKS, aggregator=Recorder([0.5, 0.5, 0.5]), model=model)
    fresh = copy.deepcopy(balancer.state_dict())
    balancer.backward(model.losses(batch(0)))
    balancer.load_state_dict(fresh)
    assert_same(balancer.state_dict(), fresh)
