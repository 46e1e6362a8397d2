"""What is the same from step to step is computed once, and anew as soon as it is not."""

import copy
import pickle

import pytest
import torch

import equipoise as eq
from equipoise._kept import Kept


@pytest.fixture
def formula():
    """Counts how often it is asked."""

    def ask():
        ask.asked += 1
        return torch.full((2,), float(ask.asked))

    ask.asked = 0
    return ask


CHANGES = {
    "nothing": (0, lambda given, result: given),
    "another tensor": (1, lambda given, result: [given[0].clone(), *given[1:]]),
    "another number": (1, lambda given, result: [*given[:-1], 2.5]),
    "an input is written to": (1, lambda given, result: (given[0].add_(1), given)[1]),
    "by way of a view": (1, lambda given, result: (given[0].unbind()[0].zero_(), given)[1]),
    "the result is written to": (1, lambda given, result: (result.detach().unbind()[0].zero_(), given)[1]),
    "a mask": (1, lambda given, result: [given[0], torch.ones(2, dtype=torch.bool), given[2]]),
    "several as one": (1, lambda given, result: (torch._foreach_copy_([given[0]], [torch.zeros(2)]), given)[1]),
}


@pytest.mark.parametrize(("times", "change"), CHANGES.values(), ids=CHANGES)
def test_it_is_computed_anew_for_other_inputs(formula, times, change):
    kept, given = Kept(), [torch.ones(2), None, 1.5]
    first = kept(formula, *given)
    assert kept(formula, *given) is first
    given = change(given, first)
    assert kept(formula, *given).tolist() == [1.0 + times] * 2
    assert kept(formula, *given).tolist() == [1.0 + times] * 2
    assert formula.asked == 1 + times


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda kept: pickle.loads(pickle.dumps(kept))])
def test_a_copy_knows_nothing(formula, copied):
    kept, given = Kept(), torch.ones(2)
    kept(formula, given)
    assert copied(kept)(formula, given).tolist() == [2.0, 2.0]
    assert kept(formula, given).tolist() == [1.0, 1.0]


def test_tensors_of_inference_mode_can_change_unseen(formula):
    with torch.inference_mode():
        given = torch.ones(2)
    kept = Kept()
    kept(formula, given)
    kept(formula, given)
    assert formula.asked == 2


def balancer(objective):
    made = eq.Balancer(["a", "b"], objective)
    return made, made.objective


def weights_of(made, a=1.0, b=1.0):
    scale = torch.ones(2, requires_grad=True)
    return made.backward({"a": a * scale[0], "b": b * scale[1]})


def rated(objective):
    """A Balancer whose tasks have a training rate that is not 1."""
    made, _ = balancer(objective)
    for a, b in ((4.0, 1.0), (1.0, 2.0)):
        weights_of(made, a, b)
        made.end_epoch({"a": 0.2 * a, "b": 0.3})
    return made


POTENTIALS = {"a": 0.9, "b": 0.8}
BY_EPOCH = {
    "dwa": eq.DWA,
    "dwa-g": lambda: eq.GeometricMean(eq.DWA()),
    "dtp": eq.DTP,
    "amtl": lambda: eq.GeometricMean(eq.Achievement(POTENTIALS)),
    "amtl-a, sum": lambda: eq.Achievement(POTENTIALS, normalization="sum"),
}
"""Methods whose weights are the same within an epoch."""

by_epoch = pytest.mark.parametrize("make", BY_EPOCH.values(), ids=BY_EPOCH)


def plain(weights):
    return {task: weight.item() for task, weight in weights.items()}


@by_epoch
def test_weights_follow_a_state_that_is_loaded(make):
    made, other = rated(make()), balancer(make())[0]
    before = plain(weights_of(other))
    assert before != plain(weights_of(made))
    other.load_state_dict(made.state_dict())
    assert plain(weights_of(other)) == plain(weights_of(made))


@by_epoch
def test_weights_that_somebody_writes_to_are_not_kept(make):
    made = rated(make())
    before = weights_of(made)
    expected = plain(before)
    for weight in before.values():
        weight.zero_()
    assert plain(weights_of(made)) == expected


@by_epoch
def test_weights_follow_the_epoch(make):
    made = rated(make())
    before = plain(weights_of(made, 3.0, 1.0))
    assert plain(weights_of(made, 3.0, 1.0)) == before
    made.end_epoch({"a": 0.6, "b": 0.1})
    assert plain(weights_of(made, 3.0, 1.0)) != before


def test_an_epoch_may_end_in_inference_mode():
    made = rated(eq.DTP())
    before = plain(weights_of(made))
    with torch.inference_mode():
        made.end_epoch({"a": 0.6})
        made.end_epoch({"a": 0.6, "b": 0.9})
    assert plain(weights_of(made)) != before


def test_hyperparameters_may_change():
    made = rated(eq.DWA())
    before = plain(weights_of(made))
    made.objective.weighting.temperature = 0.5
    assert plain(weights_of(made)) != before
    made = rated(eq.DTP())
    before = plain(weights_of(made))
    made.objective.weighting.gamma = 3.0
    assert plain(weights_of(made)) != before
