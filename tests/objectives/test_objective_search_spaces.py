"""What the hyperparameters of methods may be when they are tuned, and the learning rate of learned weights."""

import itertools

import pytest
from networks import TASKS, Network, batch

import equipoise as eq
from equipoise.registry import METHODS
from equipoise.registry.objectives import OBJECTIVES
from equipoise.search_space import Choice, Range

POTENTIALS = dict.fromkeys(TASKS, 0.8)
TUNED = [name for name, spec in OBJECTIVES.items() if spec.search_space]
LEARNED = ["uw", "imtl-l", "imtl", "ldc-mtl"]


def ends(dimension):
    return dimension.values if isinstance(dimension, Choice) else (dimension.low, dimension.high)


@pytest.mark.parametrize("name", TUNED)
def test_every_end_makes_a_method_that_takes_a_step(name):
    spec = METHODS[name]
    assert set(spec.search_space) <= set(spec.hyperparameters)
    potentials = POTENTIALS if spec.needs_potentials else None
    for chosen in itertools.product(*map(ends, spec.search_space.values())):
        model = Network()
        given = dict(zip(spec.search_space, chosen, strict=True))
        method = eq.make_method(name, model, TASKS, potentials=potentials, **given)
        weights = method.backward(model.losses(batch(0)))
        assert all(weight.isfinite() for weight in weights.values())


@pytest.mark.parametrize("name", TUNED)
def test_the_default_lies_inside(name):
    spec = METHODS[name]
    for hyperparameter, dimension in spec.search_space.items():
        default = spec.hyperparameters[hyperparameter]
        if isinstance(dimension, Range):
            assert default is None or dimension.low <= default <= dimension.high
        else:
            assert default in dimension.values


@pytest.mark.parametrize("name", LEARNED)
def test_learned_weights_have_a_learning_rate_of_their_own(name):
    def groups(**options):
        return eq.make_method(name, Network(), TASKS, lr=0.3, **options).optimizer.param_groups

    assert [group["lr"] for group in groups()] == [0.3, 0.3]
    assert [group["lr"] for group in groups(weights_lr=0.02)] == [0.3, 0.02]
    with pytest.raises(ValueError, match="weights_lr must be a finite number ≥ 0, found -1"):
        groups(weights_lr=-1)


def test_only_learned_weights_have_one():
    assert {name for name, spec in METHODS.items() if spec.learns_weights} == set(LEARNED)
    with pytest.raises(ValueError, match="has no hyperparameter weights_lr"):
        eq.make_method("ema", Network(), TASKS, weights_lr=0.1)
