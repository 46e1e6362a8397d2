"""Micro-batches: what several calls of `backward` add up to."""

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, gradients, snapshot

import equipoise as eq

SIZES = [4, 7, 2]
LABELLED = [  # of each micro-batch: the samples that have a label, by task
    {"a": slice(0, 4), "b": slice(1, 3), "c": slice(0, 1)},
    {"a": slice(2, 7), "b": slice(0, 0), "c": slice(3, 6)},
    {"a": slice(0, 2), "b": slice(0, 2), "c": slice(0, 0)},
]
COUNTS = [{task: part.stop - part.start for task, part in parts.items()} for parts in LABELLED]
AGGREGATORS = {
    "none": lambda: None,
    "imtl-g": eq.IMTLG,
    "mgda": lambda: eq.MGDA("loss+"),
    "gradnorm": eq.GradNorm,
    "cagrad": eq.CAGrad,
    "pcgrad": lambda: eq.PCGrad(seed=0),
    "graddrop": lambda: eq.GradDrop(seed=0),
}


def micro_batches():
    return [batch(index, size).double() for index, size in enumerate(SIZES)]


def labelled_losses(model, inputs, parts):
    """The mean loss of each task over its labelled samples."""
    return {task: model.losses(inputs[part], [task])[task] for task, part in parts.items() if part.stop > part.start}


def one_large_batch(model):
    inputs = torch.cat(micro_batches())
    offsets = [sum(SIZES[:index]) for index in range(len(SIZES))]
    losses = {}
    for task in TASKS:
        rows = [torch.arange(o + p[task].start, o + p[task].stop) for o, p in zip(offsets, LABELLED, strict=True)]
        losses[task] = model.losses(inputs[torch.cat(rows)], [task])[task]
    return losses


@pytest.mark.parametrize("tensors", [False, True], ids=["numbers", "tensors"])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_counts_make_micro_batches_equal_to_one_large_batch(name, tensors):
    model, twin = Network().double(), Network().double()
    balancer, expected = (eq.Balancer(TASKS, aggregator=AGGREGATORS[name]()) for _ in range(2))
    for _ in range(2):  # the second adds into .grad, and starts anew
        for index, (inputs, parts, counts) in enumerate(zip(micro_batches(), LABELLED, COUNTS, strict=True)):
            weights = balancer.backward(
                labelled_losses(model, inputs, parts),
                accumulate=index < 2,
                counts={t: torch.tensor(n) if tensors else n for t, n in counts.items()},
            )
        expected_weights = expected.backward(one_large_batch(twin))
    for (label, found), wanted in zip(gradients(model).items(), gradients(twin).values(), strict=True):
        assert (found is None) == (wanted is None), label
        if found is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    for task, weight in weights.items():
        torch.testing.assert_close(weight, expected_weights[task], rtol=1e-9, atol=1e-11)
    assert set(weights) == {"a", "b"}


def test_mao_with_counts_equals_one_large_batch():
    model, twin = Network().double(), Network().double()
    optimizer, expected = (eq.MAO(m.parameters(), TASKS, lr=0.1) for m in (model, twin))
    for _ in range(3):
        for index, (inputs, parts, counts) in enumerate(zip(micro_batches(), LABELLED, COUNTS, strict=True)):
            optimizer.backward(labelled_losses(model, inputs, parts), accumulate=index < 2, counts=counts)
        expected.backward(one_large_batch(twin))
        for one in (optimizer, expected):
            one.step()
            one.zero_grad()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", AGGREGATORS)
def test_without_counts_losses_add_up(name):
    model, twin = Network().double(), Network().double()
    balancer, expected = (eq.Balancer(TASKS, aggregator=AGGREGATORS[name]()) for _ in range(2))
    inputs = micro_batches()
    for index, x in enumerate(inputs):
        balancer.backward(model.losses(x), accumulate=index < 2)
    sums = [twin.losses(x) for x in inputs]
    expected.backward({task: sum(losses[task] for losses in sums) for task in TASKS})
    for found, wanted in zip(gradients(model).values(), gradients(twin).values(), strict=True):
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_with_an_aggregator_grad_waits_for_the_last_micro_batch():
    model = Network()
    balancer = eq.Balancer(TASKS, aggregator=eq.IMTLG())
    balancer.backward(model.losses(batch(0)), accumulate=True)
    waiting = gradients(model).values()  # a mark at most, to see whether they are cleared
    assert all(gradient is None or gradient.norm() < 1e-20 for gradient in waiting)
    balancer.backward(model.losses(batch(1)))
    assert model.trunk.weight.grad.any()


@pytest.mark.parametrize("zero", [0, 0.0, torch.tensor(0), torch.tensor(0.0)], ids=repr)
@pytest.mark.parametrize("aggregator", [None, eq.IMTLG], ids=["together", "by task"])
def test_a_count_of_zero_leaves_the_task_out(aggregator, zero):
    model, twin = Network(), Network()
    balancer, expected = (eq.Balancer(TASKS, eq.EMA(), aggregator and aggregator()) for _ in range(2))
    weights = balancer.backward(model.losses(batch(0)), counts={"a": 3, "b": zero, "c": 1})
    expected_weights = expected.backward(twin.losses(batch(0), ["a", "c"]), counts={"a": 3, "c": 1})
    assert_same(weights, expected_weights)
    assert_same(snapshot(model, balancer), snapshot(twin, expected))


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"a": 1, "b": 2}, "counts lacks task 'c'"),
        ({"a": 1, "b": -2, "c": 1}, r"counts\['b'\] must be a finite number ≥ 0, found -2"),
        ({"a": 1, "b": torch.tensor(-2), "c": 1}, r"counts\['b'\]"),
        ({"a": 1, "b": float("nan"), "c": 1}, r"counts\['b'\]"),
        ({"a": 0, "b": 0, "c": 0}, "all counts are 0"),
    ],
)
@pytest.mark.parametrize("kind", ["balancer", "mao"])
def test_bad_counts_change_nothing(kind, counts, words):
    model = Network()
    method = eq.Balancer(TASKS, eq.EMA()) if kind == "balancer" else eq.MAO(model.parameters(), TASKS)
    before = snapshot(model, method)
    with pytest.raises(ValueError, match=words):
        method.backward(model.losses(batch(0)), counts=counts)
    assert_same(snapshot(model, method), before)


@pytest.mark.parametrize("kind", ["none", "imtl-g", "mao"])
def test_an_error_between_micro_batches_loses_nothing(kind):
    def run(disturb):
        model = Network()
        if kind == "mao":
            method = eq.MAO(model.parameters(), TASKS, lr=0.1)
        else:
            method = eq.Balancer(TASKS, aggregator=AGGREGATORS[kind]())
        method.backward(model.losses(batch(0)), accumulate=True, counts=dict.fromkeys(TASKS, 2))
        if disturb:
            losses = model.losses(batch(5))
            with pytest.raises(ValueError, match="counts for every micro-batch"):
                method.backward(losses, accumulate=True)
            with pytest.raises(ValueError, match="counts for every micro-batch"):
                method.backward(model.losses(batch(5)))
            with pytest.raises(ValueError, match="'b' is nan"):
                method.backward({**model.losses(batch(5)), "b": model.losses(batch(5))["b"] * torch.nan})
        method.backward(model.losses(batch(1)), counts=dict.fromkeys(TASKS, 3))
        if kind == "mao":
            method.step()
        return snapshot(model)

    assert_same(run(disturb=True), run(disturb=False))


@pytest.mark.parametrize("kind", ["imtl-g", "mao"])
def test_zero_grad_forgets_micro_batches(kind):
    def run(forget):
        model = Network()
        if kind == "mao":
            method = eq.MAO(model.parameters(), TASKS, lr=0.1)
        else:
            method = eq.Balancer(TASKS, aggregator=eq.IMTLG())
        if forget:
            method.backward(model.losses(batch(0)), accumulate=True)
            method.zero_grad()
        method.backward(model.losses(batch(1)))
        if kind == "mao":
            method.step()
        return snapshot(model)

    assert_same(run(forget=True), run(forget=False))
