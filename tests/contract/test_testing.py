"""`equipoise.testing` finds what is wrong with a method, by name."""

import re

import pytest
import torch

import equipoise as eq
from equipoise.testing import ContractError, aggregator_checks, check_method, method_checks


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


class Abstract(eq.Weighting):
    pass


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Bare, "raised ValueError: Bare must return a weight for each of the 3 losses, found shape"),
        (Abstract, "raised TypeError: Can't instantiate abstract class Abstract"),
        ("no_such_file.py:Inverse", "raised ImportError: There is no file no_such_file.py"),
    ],
)
def test_what_cannot_be_made_fails_one_check(method, words):
    (check,) = method_checks(method)  # pytest collects it beside the other tests of the file
    assert check.name == "can_be_made"
    with pytest.raises(ContractError, match=f"^making it, and a step of three tasks, {words}"):
        check()
    with pytest.raises(ContractError) as found:
        check_method(method)
    assert re.match(f"1 of 1 checks failed: can_be_made: making it, .*{words}", " ".join(str(found.value).split()))
    assert list(found.value.failures) == ["can_be_made"]
    assert type(found.value.__cause__).__name__ in words


def test_the_error_names_every_check_that_failed_the_most_telling_first():
    with pytest.raises(ContractError, match=r"^3 of \d+ checks failed:\n") as found:
        check_method(Counting)
    assert list(found.value.failures) == ["resumes_bit_for_bit", "goes_back_to_a_saved_state", "grad_scaler"]
    assert max(map(len, str(found.value).splitlines())) <= 88
    first, second, third = " ".join(str(found.value).split()).split(" checks failed: ")[1].split(". g")
    assert first.startswith("resumes_bit_for_bit: after load_state_dict step 1 differs")
    assert first.endswith(
        "declare it with add_state, and use it as self.state.<name>. Attributes that changed while training: steps"
    )
    assert second.endswith("likely of the same cause as resumes_bit_for_bit")
    assert third.endswith("likely of the same cause as resumes_bit_for_bit.")
    assert "trunk.weight by up to" in third
    assert "training: steps" in found.value.failures["grad_scaler"]


def said(method, name):
    """What the check of this name says when it fails; None: it passes."""
    failure = {check.name: check for check in method_checks(method)}[name].failure()
    return None if failure is None else failure.sentence


def test_random_numbers_from_elsewhere_are_the_cause_of_what_they_change():
    assert "which add_generator(seed) declares" in said(Drawing, "resumes_bit_for_bit")


class Raising(eq.Weighting):
    def forward(self, losses):
        return torch.ones(3, dtype=losses.dtype) * losses.new_ones([] if len(losses) == 3 else [2, 2])


def test_an_error_in_the_method_is_told_with_its_place_and_without_a_guess():
    words = said(Raising, "resumes_bit_for_bit")
    assert words.startswith("raised RuntimeError: The size of tensor a (3) must match the size of tensor b (2)")
    assert "test_testing.py, line " in words
    assert "add_state" not in words


def test_what_cannot_be_copied_is_told_without_a_line_of_pythons_own():
    method = Inverse()
    method.stamp = lambda: 0
    words = said(method, "goes_on_as_a_copy")
    assert re.match(r"raised \w+Error: .*lambda", words)
    assert "pickle.py" not in words
    assert "copy.py" not in words
    assert words.endswith("cannot be pickled, such as a lambda.")


class Unit(eq.GramianAggregator):
    """Says that it is homogeneous, which sums of unit vectors are not, and divides by 0."""

    homogeneous = True

    def weights(self, gramian, losses):
        return gramian.diagonal().sqrt().reciprocal()


class Unweighted(eq.Aggregator):
    weighs = True

    def aggregate(self, gradients, losses):
        mean = [
            sum(part for part in column if part is not None) / len(column) for column in zip(*gradients, strict=True)
        ]
        return mean, torch.ones_like(losses)


@pytest.mark.parametrize(
    ("method", "name", "words"),
    [
        (Unit, "homogeneous", "with all gradients × 1e-12 the result is not × 1e-12 (ratio 1), for the gradients [["),
        (First, "permutation_invariant", "with the gradients in the order [2, 0, 1] the result is another, for the "),
        (First, "scale_invariant", "with the gradients × 1e-06 the result does not stay as it is (ratio 1e-06), for"),
        (First, "non_conflicting", "⟨d, g_k⟩ is -1.9, below 0, for task 2 of 2, for the gradients [[-1.2, 1.2], ["),
        (Unweighted, "weighs", "the result is not the sum of the gradients with the weights that are returned, for"),
        (Unit, "is_finite", "the result is not finite, for the gradients [[0.0, 0.0]]: it divides by the length of a "),
    ],
)
def test_a_promise_that_is_not_kept_is_shown_at_gradients_that_can_be_read(method, name, words):
    (check,) = [check for check in aggregator_checks(method) if check.name == name]
    with pytest.raises(ContractError) as found:
        check()
    assert str(found.value).startswith(words)
    assert name == "is_finite" or f"]]: the class says {name} = True; mend the formula" in str(found.value)


class Misspelled(Inverse):
    permutation_invariance = True


class OfAggregators(Inverse):
    permutation_invariant = True


class OfObjectives(Unweighted):
    needs_after_step = True


class OnTheHost(Unit):
    masked = True


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Misspelled, "permutation_invariance = True means nothing to this library, which knows permutation_in"),
        (OfAggregators, "permutation_invariant = True is a promise of aggregators, and means nothing here"),
        (OfObjectives, "needs_after_step = True is a promise of objectives and weightings, and means nothing"),
        (OnTheHost, "masked = True means nothing of a GramianAggregator, whose weights are found on the host"),
    ],
)
def test_a_promise_that_means_nothing_is_told(method, words):
    assert said(method, "promises_are_known").startswith(f"{method.__name__}.{words}")


class Shares(eq.Weighting):
    """Sums over all tasks, also those that take no part, and says that it does not."""

    masked = requires_positive = True

    def forward(self, losses):
        return losses / losses.sum()


class ActiveShares(Shares):
    masked = True

    def forward(self, losses):
        return self.active.shares(losses)


class Centred(eq.Aggregator):
    """Remembers the mean of all rows' squares, also of those that take no part."""

    masked = True

    def __init__(self):
        super().__init__()
        self.add_state("level", 1.0)

    def aggregate(self, gradients, losses):
        rows = [
            torch.stack([torch.zeros(()) if part is None else part.square().mean() for part in row])
            for row in gradients
        ]
        self.state.level = self.state.level + torch.stack(rows).mean()
        return [sum(part for part in column if part is not None) for column in zip(*gradients, strict=True)], None


def test_what_goes_past_the_mask_is_found_without_an_accelerator():
    assert said(Shares, "masked").startswith(
        "a step with a mask of the tasks that take part is not that of these tasks"
    )
    assert said(Centred, "masked").startswith(
        "a step with a mask of the tasks that take part is not that of these tasks"
    )
    assert said(ActiveShares, "masked") is None
    assert "masked" not in [check.name for check in method_checks(Counting)]


def test_a_promise_that_is_not_made_is_not_checked():
    assert [check.name for check in aggregator_checks(eq.PCGrad)][3:] == ["weighs", "homogeneous"]
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
