from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import gradients
from torch import nn

import equipoise as eq


def test_mean_over_labelled_entries() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [100.0, float("nan")]])
    assert eq.masked_mean(values, torch.tensor([True, True, False])).item() == 2.5
    assert eq.masked_mean(values, torch.tensor([[1, 0], [0, 1], [0, 0]])).item() == 2.5
    assert eq.masked_mean(values[:2], torch.ones(2, dtype=torch.uint8)).item() == values[:2].mean().item()


def test_gradient_is_that_of_the_labelled_samples_alone() -> None:
    values = torch.randn(5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([1, 0, 1, 1, 0])
    eq.masked_mean(values, mask).backward()
    torch.testing.assert_close(values.grad, mask / 3.0, check_dtype=False)


def test_none_labelled_gives_a_zero_with_a_graph() -> None:
    values = torch.tensor([float("inf"), 2.0], requires_grad=True)
    mean = eq.masked_mean(values, torch.tensor([False, False]))
    mean.backward()
    assert mean.item() == 0.0
    assert torch.equal(values.grad, torch.zeros(2))


def test_half_precision_is_summed_in_float32() -> None:
    values = torch.full((70_000,), 3.0, dtype=torch.float16)
    mean = eq.masked_mean(values, torch.ones(70_000))
    assert mean.dtype == torch.float32
    assert mean.item() == 3.0


def test_a_single_value() -> None:
    assert eq.masked_mean(torch.tensor(3.0), torch.tensor(True)) == 3.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: eq.masked_mean(torch.ones(3), [1, 1, 1]), "two tensors, values and mask, found Tensor, list"),
        (lambda: eq.count_labels([torch.ones(3)]), "masks must be a mapping from task to tensor"),
        (lambda: eq.count_labels({"a": [1, 0]}), r"masks must be a mapping .* found \{'a': \[1, 0\]\}"),
    ],
)
def test_what_is_no_tensor_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("shape", [(4,), (3, 2), (1,), (3, 4, 1), (1, 4)])
def test_mask_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="mask must have the shape of values"):
        eq.masked_mean(torch.zeros(3, 4), torch.ones(shape))


def test_counts_are_plain_numbers() -> None:
    counts = eq.count_labels({"a": torch.tensor([0.0, 2.0, -1.0]), "b": torch.zeros(2, 2)})
    assert dict(counts) == {"a": 2, "b": 0}
    assert all(type(count) is int for count in counts.values())


@pytest.mark.parametrize("aggregator", [None, eq.MGDA, eq.GradNorm])
def test_a_task_without_a_label_is_left_out(aggregator: type[eq.Aggregator] | None) -> None:
    """Partly labelled samples, one task with no label at all: as if the batch had been taken apart by hand."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": nn.Linear(3, 4), "a": nn.Linear(4, 1), "b": nn.Linear(4, 1), "c": nn.Linear(4, 1)})
    x, targets = torch.randn(6, 3), {task: torch.randn(6) for task in "abc"}
    masks = {"a": torch.tensor([1, 1, 0, 0, 1, 0]), "b": torch.tensor([0, 1, 1, 1, 1, 1]), "c": torch.zeros(6)}

    def losses(chosen: slice | torch.Tensor, task: str) -> torch.Tensor:
        output = model[task](model["trunk"](x[chosen]).tanh())[:, 0]
        return (output - targets[task][chosen]).square()

    def balancer() -> eq.Balancer:
        return eq.Balancer(list("abc"), eq.EMA(), None if aggregator is None else aggregator())

    one, other = balancer(), balancer()
    one.backward(
        {task: eq.masked_mean(losses(slice(None), task), masks[task]) for task in "abc"}, counts=eq.count_labels(masks)
    )
    found = gradients(model)
    model.zero_grad()
    other.backward({task: losses(masks[task].bool(), task).mean() for task in "ab"})
    for name, gradient in gradients(model).items():
        if gradient is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(found[name], gradient)
    for key, value in other.state_dict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(one.state_dict()[key], value, msg=key)
