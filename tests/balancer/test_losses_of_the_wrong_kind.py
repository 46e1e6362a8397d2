"""What is passed for losses by mistake: an error that says what to pass, and nothing changes."""

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, gradients, snapshot

import equipoise as eq

METHODS = {
    "balancer": lambda model: eq.Balancer(TASKS, eq.EMA()),
    "aggregator": lambda model: eq.Balancer(TASKS, eq.EMA(), eq.MGDA()),
    "mao": lambda model: eq.MAO(model.parameters(), TASKS),
    "make_method": lambda model: eq.make_method("cagrad", model, TASKS),
    "make_method mao": lambda model: eq.make_method("mao", model, TASKS),
    "single": lambda model: eq.make_method("single:a", model, TASKS),
}
NO_MAPPING = (
    r"losses must be a mapping from task to scalar tensor, found {}: pass \{{'a': \.\.\., 'b': \.\.\., 'c': \.\.\.\}}"
)
LEAVE_OUT = "Leave the task out of losses if it has no label in this batch"
WRONG = {
    "a tensor of K": (lambda losses: torch.stack(list(losses.values())), TypeError, NO_MAPPING.format("Tensor")),
    "a tensor of one": (lambda losses: losses["a"][None], TypeError, NO_MAPPING.format("Tensor")),
    "a tensor of none": (lambda losses: losses["a"].new_empty(0), TypeError, NO_MAPPING.format("Tensor")),
    "their sum": (lambda losses: sum(losses.values()), TypeError, NO_MAPPING.format("Tensor")),
    "a list": (lambda losses: list(losses.values()), TypeError, NO_MAPPING.format("list")),
    "an empty list": (lambda losses: [], TypeError, NO_MAPPING.format("list")),
    "nothing": (lambda losses: None, TypeError, NO_MAPPING.format("NoneType")),
    "0": (lambda losses: {**losses, "a": 0}, TypeError, f"'a' must be a tensor, found int. {LEAVE_OUT}"),
    "0.0": (lambda losses: {**losses, "a": 0.0}, TypeError, f"'a' must be a tensor, found float. {LEAVE_OUT}"),
    "None": (lambda losses: {**losses, "a": None}, TypeError, f"'a' must be a tensor, found NoneType. {LEAVE_OUT}"),
    "a constant": (lambda losses: {**losses, "a": torch.tensor(0.0)}, ValueError, f"'a' has no graph.*{LEAVE_OUT}"),
    "a whole number": (lambda losses: {**losses, "a": torch.tensor(0)}, ValueError, f"'a' has no graph.*{LEAVE_OUT}"),
    "a vector": (lambda losses: {**losses, "a": losses["a"].expand(3)}, ValueError, r"found shape \(3,\): reduce it"),
    "a vector of one": (
        lambda losses: {**losses, "a": losses["a"][None]},
        ValueError,
        r"found shape \(1,\): reduce it",
    ),
}


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", METHODS)
def test_says_what_to_pass(name, wrong, accumulate):
    """In the first micro-batch and, where one waits, so that `backward({})` means something, in the second one."""
    model = Network()
    method = METHODS[name](model)
    if accumulate:
        method.backward(model.losses(batch(0)), accumulate=True)
    before, grads = snapshot(method)[0], gradients(model)
    change, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        method.backward(change(model.losses(batch(1))))
    assert_same(snapshot(method)[0], before)
    assert_same(gradients(model), grads)
    method.backward(model.losses(batch(1)))


@pytest.mark.parametrize("wrong", ["a tensor of K", "a list", "nothing", "0", "None", "a vector"])
def test_after_step_says_it_too(wrong):
    model, balancer = Network(), eq.Balancer(TASKS, eq.FAMO())
    balancer.backward(model.losses(batch(0)))
    change, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        balancer.after_step(change(model.losses(batch(0))))


@pytest.mark.parametrize("name", ["balancer", "aggregator", "mao"])
def test_counts_are_asked_for_in_micro_batches_alone(name):
    """Counts for some micro-batches, then a step whose tasks all have none, then one without counts."""
    model, twin = Network().double(), Network().double()
    method, expected = METHODS[name](model), METHODS[name](twin)
    counts = {"a": 3, "b": 1, "c": 2}

    def clear(method, model):
        model.zero_grad()
        method.zero_grad()

    for m, each in ((model, method), (twin, expected)):
        each.backward(m.losses(batch(0)), accumulate=True, counts=counts)
        each.backward(m.losses(batch(1)), counts=counts)
        clear(each, m)
    before = snapshot(method)[0]
    with pytest.raises(
        ValueError, match=r"No task in losses has a labelled sample \(all counts are 0\): skip the step"
    ):
        method.backward(model.losses(batch(2)), counts=dict.fromkeys(TASKS, 0))
    assert_same(snapshot(method)[0], before)
    weights = [each.backward(m.losses(batch(3))) for m, each in ((model, method), (twin, expected))]
    assert_same(*weights)
    assert_same(gradients(model), gradients(twin))
    clear(method, model)

    method.backward(model.losses(batch(4)), accumulate=True, counts=counts)
    with pytest.raises(ValueError, match="counts for every micro-batch that is accumulated, or for none"):
        method.backward(model.losses(batch(5)))
    clear(method, model)
    method.backward(model.losses(batch(5)), accumulate=True)  # no micro-batch with counts waits any longer
    with pytest.raises(ValueError, match="counts for every micro-batch"):
        method.backward(model.losses(batch(5)), counts=counts)


@pytest.mark.parametrize("last", ["no count", "no task"])
@pytest.mark.parametrize("name", ["balancer", "aggregator", "mao"])
def test_a_last_micro_batch_without_labels_ends_the_step(name, last):
    model, twin = Network().double(), Network().double()
    counts = {"a": 3, "b": 1, "c": 2}
    method, expected = METHODS[name](model), METHODS[name](twin)
    method.backward(model.losses(batch(0)), accumulate=True, counts=counts)
    if last == "no count":
        method.backward(model.losses(batch(1)), counts=dict.fromkeys(TASKS, 0))
    else:
        method.backward({}, counts={})
    expected.backward(twin.losses(batch(0)))
    for each in (method, expected):
        if name == "mao":
            each.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        assert name == "mao" or (one.grad is None) == (other.grad is None)
        if name != "mao" and one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)
    model.zero_grad()
    method.zero_grad()
    method.backward(model.losses(batch(2)))  # without counts: the step before has ended


REPRESENTATION = {
    "a module": (lambda model, z: model, TypeError, "must be a tensor or a sequence of tensors"),
    "a string": (lambda model, z: "z", TypeError, "found 'z' in it"),
    "None in it": (lambda model, z: [z, None], TypeError, "found None in it"),
    "nothing": (lambda model, z: [], ValueError, "representation is empty"),
    "detached": (lambda model, z: z.detach(), ValueError, "what the trunk returned, with its graph"),
    "a parameter": (lambda model, z: model.trunk.weight, ValueError, "what the trunk returned, with its graph"),
    "another": (lambda model, z: z * 1, ValueError, "No loss depends on representation"),
    "one on the way": (lambda model, z: [z, model.under], ValueError, "representation is on the way from another"),
}


@pytest.mark.parametrize("wrong", REPRESENTATION)
def test_a_representation_of_the_wrong_kind(wrong):
    class Trunk(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = torch.nn.Linear(4, 3)
            self.heads = torch.nn.ModuleDict({task: torch.nn.Linear(3, 1) for task in TASKS})

        def forward(self, x):
            self.under = self.trunk(x)
            z = self.under.tanh()
            return z, {task: (head(z) + self.under.sum()).square().mean() for task, head in self.heads.items()}

    torch.manual_seed(0)
    model = Trunk()
    balancer = eq.Balancer(TASKS, eq.EMA(), eq.MGDA())
    before = snapshot(balancer)[0]
    z, losses = model(batch(0))
    make, error, message = REPRESENTATION[wrong]
    with pytest.raises(error, match=message):
        balancer.backward(losses, representation=make(model, z))
    assert_same(snapshot(balancer)[0], before)
    assert all(p.grad is None for p in model.parameters())
    balancer.backward(losses, representation=z)
