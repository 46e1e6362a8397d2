"""What every registered method satisfies, the checks of `equipoise.testing`: the registry is what is under them."""

import io

import pytest
import torch
from networks import assert_same, snapshot
from registry import NAMES, SUBJECTS, every_method, make, train

from equipoise.testing import CHECKS
from equipoise.testing._promises import check_masked


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@every_method
def test_contract(name, check):
    check(SUBJECTS[name])


@pytest.mark.parametrize("name", [name for name in NAMES if SUBJECTS[name].masked])
def test_what_says_that_it_minds_masks_does(name):
    check_masked(SUBJECTS[name])


@every_method
def test_is_called_what_it_was_asked_for_by(name):
    assert make(name)[1].name == name


@every_method
def test_saved_whole_it_goes_on_as_a_copy(name):
    """`torch.save` of model and method together, after steps that lack tasks."""
    model, method = make(name)
    train(model, method, 0, 6)
    method.zero_grad()
    file = io.BytesIO()
    torch.save((model, method), file)
    file.seek(0)
    twin, other = torch.load(file, weights_only=False)
    before = snapshot(model, method)
    train(twin, other, 6)
    assert_same(snapshot(model, method), before)
    train(model, method, 6)
    assert_same(snapshot(twin, other), snapshot(model, method))
