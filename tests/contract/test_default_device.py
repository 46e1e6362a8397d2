"""`torch.set_default_device`: where people let new tensors be is no matter to a step, whose model and data say it.

On "meta" whatever goes by the default has no values: what is drawn, counted or computed there is an error, or shows.
"""

import pytest
import torch
from default_device import default_device
from networks import TASKS, Network, assert_same, batch, gradients, snapshot
from registry import METRICS, NAMES

import equipoise as eq
from equipoise.monitor import BalanceMonitor

INPUTS = [batch(index) for index in range(5)]
STEPS = ["abc", "ac", "abc", "b", "abc"]


def both_ways(run):
    """Runs without a default device and with one that nothing can come from; the results have to be the same."""
    expected = run()
    with default_device("meta"):
        found = run()
    assert_same(found, expected)


def on_the_host(function, *arguments):
    """What is the user's: the model and the data are on the CPU."""
    with torch.device("cpu"):
        return function(*arguments)


def train(model, method, steps=STEPS):
    """Steps that lack tasks, with counts, micro-batches and a scaler; returns the weights."""
    scaler = on_the_host(lambda: torch.amp.GradScaler("cpu", init_scale=8.0))
    weights = []
    for index, tasks in enumerate(steps):
        method.zero_grad()
        counts = {task: 3 + TASKS.index(task) for task in tasks}
        options = [{}, {"counts": counts}, {"accumulate": True}, {"scaler": scaler}, {}][index]
        weights.append(method.backward(on_the_host(model.losses, INPUTS[index], tasks), **options))
        if "accumulate" in options:
            weights.append(method.backward(on_the_host(model.losses, INPUTS[0], tasks)))
        if "scaler" not in options:
            method.step()
        if method.needs_after_step:
            method.after_step(on_the_host(model.losses, INPUTS[index], tasks))
        if index % 2:
            method.end_epoch(METRICS[index // 2])
    return weights


def trained(name, steps=STEPS):
    model = on_the_host(Network)
    torch.manual_seed(0)
    potentials = dict.fromkeys(TASKS, 0.9) if name.startswith("amtl") else None
    method = eq.make_method(name, model, TASKS, lr=0.02, potentials=potentials)
    weights = train(model, method, steps)
    state = snapshot(model, method)
    other = eq.make_method(name, model, TASKS, lr=0.02, potentials=potentials)
    other.load_state_dict(method.state_dict())
    other.zero_grad()
    other.backward(on_the_host(model.losses, INPUTS[0]))
    return [weights, state, gradients(model)]


@pytest.mark.parametrize("name", NAMES)
def test_every_method(name):
    both_ways(lambda: trained(name))


@pytest.mark.parametrize("name", ["UPGrad", "Random", "GradDrop", "DWA", "FAMO"])
def test_torchjd(name):
    pytest.importorskip("torchjd")
    if name == "FAMO" and torch.__version__ < "2.7":
        pytest.skip("Adam of PyTorch 2.6 counts on the default device")
    both_ways(lambda: trained(f"torchjd:{name}", steps=["abc"] * 3))


@pytest.mark.parametrize(
    "options",
    [{"groups": 2}, {"streaming": True}, {"max_norm": 0.1}, {"fused": False}, {"capturable": True}, {"chunk_size": 2}],
    ids=str,
)
def test_mao(options):
    def run():
        model = on_the_host(Network)
        optimizer = eq.MAO(model.parameters(), TASKS, lr=0.02, weight_decay=0.1, **options)
        for index, tasks in enumerate(STEPS):
            optimizer.backward(on_the_host(model.losses, INPUTS[index], tasks), counts=dict.fromkeys(tasks, 2))
            optimizer.step()
            optimizer.zero_grad()
        return snapshot(model, optimizer)

    both_ways(run)


WAYS = {
    "layers": lambda model: {"engine": "layers"},
    "several at once": lambda model: {"chunk_size": 2},
    "probe": lambda model: {"probe": model.trunk},
    "shared": lambda model: {"shared": model.trunk},
    "no check": lambda model: {"check_finite": False},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("aggregator", [eq.GradNorm, eq.PCGrad])
def test_every_way_to_a_gramian(aggregator, way):
    def run():
        model = on_the_host(Network)
        torch.manual_seed(0)
        balancer = eq.Balancer(TASKS, eq.UW(), aggregator(), **WAYS[way](model))
        weights = [balancer.backward(on_the_host(model.losses, x)) for x in INPUTS[:2]]
        return [weights, snapshot(model, balancer)]

    both_ways(run)


def test_representation():
    def run():
        model = on_the_host(Network)
        balancer = eq.Balancer(TASKS, aggregator=eq.MGDA())
        z = model.trunk(INPUTS[0]).tanh()
        losses = {task: on_the_host(model.heads[task], model.branch(z)).square().mean() for task in TASKS}
        return [balancer.backward(losses, representation=z), gradients(model)]

    both_ways(run)


@pytest.mark.parametrize("name", ["ema", "pcgrad", "mao"])
def test_monitor(name):
    def run():
        model = on_the_host(Network)
        torch.manual_seed(0)
        method = eq.make_method(name, model, TASKS, lr=0.02)
        monitor = BalanceMonitor(method, model, every=1)
        train(model, method)
        return [repr(monitor.records), snapshot(model)]

    both_ways(run)


@pytest.mark.parametrize("order", ["concatenated", "proportional", "round_robin", "sampled"])
def test_mixed_loader(order):
    loaders = {"left": [1, 2, 3, 4, 5], "right": [6, 7]}
    both_ways(lambda: list(eq.MixedLoader(loaders, order=order, seed=3)))


def test_labels():
    def run():
        masks = {"a": INPUTS[0] > 0, "b": INPUTS[0] > 9}
        return [dict(eq.count_labels(masks)), eq.masked_mean(INPUTS[0], masks["a"]), eq.masked_mean(*[INPUTS[1]] * 2)]

    both_ways(run)


@pytest.mark.parametrize("aggregator", [eq.GradDrop, eq.PCGrad, eq.CAGrad, eq.NashMTL, eq.IMTLG, eq.MGDA])
def test_an_aggregator_by_itself(aggregator):
    def run():
        torch.manual_seed(0)
        return aggregator()(INPUTS[0][:3])

    both_ways(run)


def test_what_ranks_tell_each_other():
    from torch import distributed as dist

    from equipoise.gradients.ranks.communication import Ranks

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        both_ways(lambda: Ranks().gather([3, 1]))
    finally:
        dist.destroy_process_group()
