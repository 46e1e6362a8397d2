"""`equipoise.testing` finds what is wrong with a method, by name."""

import pytest
import torch

import equipoise as eq
from equipoise.testing import aggregator_checks, check_method, method_checks


class Inverse(eq.Weighting):
    masked = requires_positive = True

    def forward(self, losses):
        return losses.reciprocal()


class Counting(eq.Weighting):
    """Keeps its state where nobody saves it."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, losses):
        self.steps += 1
        return losses.new_full(losses.shape, 1 / self.steps)


class Drawing(eq.Weighting):
    """Draws from the default generator."""

    def forward(self, losses):
        return torch.rand(losses.shape)


class Bare(eq.Weighting):
    def forward(self, losses):
        return losses.new_full((), 1.0)


class First(eq.GramianAggregator):
    """The first row, and promises that it does not keep."""

    permutation_invariant = non_conflicting = scale_invariant = homogeneous = True

    def weights(self, gramian, losses):
        weights = torch.zeros_like(losses)
        weights[0] = 1
        return weights


def failing(given):
    found = set()
    for check in method_checks(given):
        try:
            check()
        except Exception:
            found.add(check.name)
    return found


def test_a_sound_method_passes_whatever_it_is_given_as():
    names = check_method(Inverse)
    assert names == check_method(Inverse())
    assert names == check_method(lambda model, tasks, **options: eq.make_method(Inverse, model, tasks, **options))
    assert {"resumes_bit_for_bit", "errors_change_nothing", "grad_scaler"} <= set(names)


@pytest.mark.parametrize(
    ("method", "among"),
    [
        (Counting, {"resumes_bit_for_bit", "goes_back_to_a_saved_state"}),
        (Drawing, {"does_not_disturb_the_default_generator", "resumes_bit_for_bit", "is_determined_by_the_seed"}),
        (First, {"permutation_invariant", "non_conflicting", "scale_invariant"}),
    ],
)
def test_what_is_wrong_is_named(method, among):
    assert among <= failing(method)


def test_a_method_that_cannot_be_used_says_so_at_once():
    with pytest.raises(ValueError, match="Bare must return a weight for each of the 3 losses"):
        check_method(Bare)


def test_the_error_names_every_check_that_failed():
    with pytest.raises(AssertionError, match=r"3 of \d+ checks failed:\n  .*grad_scaler: AssertionError"):
        check_method(Counting)


def test_a_promise_that_is_not_made_is_not_checked():
    assert [check.name for check in aggregator_checks(eq.PCGrad)][3:] == ["homogeneous"]
    assert "scale_invariant" in [check.name for check in method_checks(eq.NashMTL)]


class Smoothed(eq.GramianAggregator):
    """Weights that follow the gradients' lengths slowly: an aggregator that keeps state."""

    permutation_invariant = True

    def __init__(self):
        super().__init__()
        self.add_state("length", 1.0)

    def weights(self, gramian, losses):
        self.state.length = 0.9 * self.state.length + 0.1 * gramian.diagonal().clamp(min=0).sqrt()
        return self.state.length.clone()


class Forgetful(eq.MAO):
    """Loses every micro-batch but the last."""

    def backward(self, losses, **options):
        weights = super().backward(losses, **options)
        if options.get("accumulate"):
            self._pending.forget()
        return weights


def test_an_aggregator_that_keeps_state_is_checked_too():
    assert "permutation_invariant" in check_method(Smoothed)


@pytest.mark.parametrize("given", [First, First()])
def test_promises_are_checked_whatever_is_given(given):
    assert {"permutation_invariant", "non_conflicting"} <= failing(given)


def test_lost_micro_batches_are_found():
    assert failing(Forgetful) == {"micro_batches_and_counts"}


def test_an_instance_with_a_seed_and_what_needs_a_task_can_pass():
    assert check_method(eq.RLW(seed=3))
    assert check_method(eq.PCD, primary="a", always="a")
