import math

import pytest
import torch
from mao_and_reference import take
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from equipoise.optim.moments import Moments, decay

ROWS, WIDTH = 12, 3
GROUP = {"lr": 0.1, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.0, "fused": False, "capturable": False}


def table(dtype=torch.float64, shape=(ROWS, WIDTH), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))


def moments_of(parameter):
    return Moments(torch.zeros(()), torch.zeros_like(parameter), torch.zeros_like(parameter))


def look_up(parameter, rows, seed):
    """A gradient with an entry for every row named, as autograd gives it."""
    weights = torch.randn(len(rows), WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    looked_up = nn.functional.embedding(torch.tensor(rows, dtype=torch.long), parameter, sparse=True)
    (gradient,) = torch.autograd.grad((looked_up * weights.to(parameter.dtype)).sum(), parameter)
    assert gradient.is_sparse
    return gradient


def certain(gradients):
    """All tasks take part."""
    return [[(gradient, None) for gradient in of_one] for of_one in gradients]


def bag(parameter, rows, seed):
    weights = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = torch.tensor(rows, dtype=torch.long)
    bags = nn.functional.embedding_bag(rows, parameter, rows.new_zeros(1), mode="mean", sparse=True)
    (gradient,) = torch.autograd.grad((bags * weights.to(parameter.dtype)).sum(), parameter)
    assert gradient.is_sparse
    return gradient


STEPS = [[4, 4, 1], [1], [], [0, 7, 7, 7], [4]]


@pytest.mark.parametrize("made", [look_up, bag])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["float", "tensor"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_one_task_is_sparse_adam(dtype, tolerance, fused, lr, made):
    own, peer = table(dtype), table(dtype)
    moments = moments_of(own)
    optimizer = torch.optim.SparseAdam([peer], lr=0.1, betas=GROUP["betas"], eps=GROUP["eps"])
    for step, rows in enumerate(STEPS):
        take([own], [made(own, rows, step)], [moments], {**GROUP, "lr": lr, "fused": fused})
        peer.grad = made(peer, rows, step)
        optimizer.step()
        state = optimizer.state[peer]
        assert moments.steps.item() == state["step"] == step + 1
        close = {"rtol": tolerance if isinstance(lr, float) else 1e-6, "atol": tolerance}
        torch.testing.assert_close(own, peer, **close)
        torch.testing.assert_close(moments.average, state["exp_avg"], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(moments.square, state["exp_avg_sq"], rtol=tolerance, atol=tolerance)


def recomputed(parameter, steps, weight_decay):
    """The formula row by row, in Python's floats: steps of task → its gradient, dense, and the rows that it touches."""
    theta = {row: parameter[row].tolist() for row in range(ROWS)}
    average, square, count = {}, {}, {}
    lr, (beta1, beta2), eps = GROUP["lr"], GROUP["betas"], GROUP["eps"]
    for step in steps:
        for row in {row for _, rows in step.values() for row in rows}:
            theta[row] = [x * (1 - lr * weight_decay) for x in theta[row]]
        for task, (gradient, rows) in step.items():
            count[task] = count.get(task, 0) + 1
            for row in set(rows):
                for column in range(WIDTH):
                    key = (task, row, column)
                    g = gradient[row, column].item()
                    average[key] = beta1 * average.get(key, 0.0) + (1 - beta1) * g
                    square[key] = beta2 * square.get(key, 0.0) + (1 - beta2) * g * g
                    rate = lr * math.sqrt(1 - beta2 ** count[task]) / (1 - beta1 ** count[task])
                    theta[row][column] -= rate * average[key] / (math.sqrt(square[key]) + eps)
    return torch.tensor([theta[row] for row in range(ROWS)], dtype=torch.float64)


TASK_STEPS = [
    {"a": [4, 4, 1], "b": [1, 2]},
    {"b": [2, 2, 0]},  # a task without a label
    {"a": [1], "b": []},  # one that touches nothing
    {"a": [5, 1], "b": [1], "c": [5, 5, 5]},  # a task that comes late
    {"a": [4], "c": [11]},
]


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 0.1), (torch.float16, 1e-2)],
)
def test_several_tasks_are_the_formula(dtype, tolerance, weight_decay):
    parameter = table(dtype)
    start = parameter.detach().double().clone()
    group = {**GROUP, "weight_decay": weight_decay}
    moments = {task: moments_of(parameter) for task in "abc"}
    steps = []
    for number, touched in enumerate(TASK_STEPS):
        gradients = {task: look_up(parameter, rows, number) for task, rows in touched.items()}
        steps.append({task: (g.double().to_dense(), touched[task]) for task, g in gradients.items()})
        decay([parameter], group, certain([gradients.values()]))
        for task, gradient in gradients.items():
            take([parameter], [gradient], [moments[task]], group)
    expected = recomputed(start, steps, weight_decay)
    torch.testing.assert_close(parameter.detach().double(), expected, rtol=tolerance, atol=tolerance)
    untouched = sorted(set(range(ROWS)) - {row for step in TASK_STEPS for rows in step.values() for row in rows})
    assert untouched
    assert torch.equal(parameter.detach().double()[untouched], start[untouched])
    assert {task: moments[task].steps.item() for task in "abc"} == {"a": 4, "b": 4, "c": 2}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_entries_of_one_row_add_up_in_half_precision(dtype):
    parameter = table(dtype)
    moments = moments_of(parameter)
    entries = torch.zeros(1, 4096, dtype=torch.long)
    ones = torch.sparse_coo_tensor(entries, torch.ones(4096, WIDTH, dtype=dtype), parameter.shape)
    take([parameter], [ones], [moments], GROUP)
    torch.testing.assert_close(
        moments.average[0].double(), torch.full((WIDTH,), 4096 * 0.2).double(), rtol=1e-2, atol=0
    )


def test_a_gradient_that_is_sparse_in_all_dimensions():
    own, whole = table(), table()
    places = torch.tensor([[1, 1, 4], [0, 0, 2]])
    gradient = torch.sparse_coo_tensor(places, torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64), own.shape)
    take([own], [gradient], [moments_of(own)], GROUP)
    take([whole], [gradient.to_dense()], [moments_of(whole)], {**GROUP, "eps": GROUP["eps"] / math.sqrt(1 - 0.99)})
    torch.testing.assert_close(own, whole)  # a first step moves nothing where the gradient is 0


def test_sparse_and_dense_gradients_side_by_side():
    parameters = [table(seed=seed) for seed in range(3)]
    alone = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    gradients = [table(seed=5).detach(), look_up(parameters[1], [3, 3, 1], 0), table(seed=6).detach()]
    take(parameters, gradients, [moments_of(parameter) for parameter in parameters], GROUP)
    for parameter, gradient in zip(alone, gradients, strict=True):
        take([parameter], [gradient], [moments_of(parameter)], GROUP)
    for parameter, expected in zip(parameters, alone, strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=0)


def test_moments_of_rows_that_are_not_touched_stay():
    parameter = table()
    moments = moments_of(parameter)
    take([parameter], [look_up(parameter, [1, 4], 0)], [moments], GROUP)
    kept = parameter.detach()[4].clone(), moments.average[4].clone(), moments.square[4].clone()
    take([parameter], [look_up(parameter, [1], 1)], [moments], GROUP)
    assert torch.equal(parameter.detach()[4], kept[0])
    assert torch.equal(moments.average[4], kept[1])
    assert torch.equal(moments.square[4], kept[2])
    assert kept[1].abs().min() > 0


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64)], ids=["float", "tensor"])
def test_decay_is_once_on_the_rows_that_any_task_touches(lr):
    group = {**GROUP, "lr": lr, "weight_decay": 0.5}
    parameters = [table(seed=seed) for seed in range(5)]
    rows, mixed, _, still, unlike = parameters
    before = [parameter.detach().clone() for parameter in parameters]
    dense = torch.ones(ROWS, WIDTH, dtype=torch.float64)
    gradients = [
        [look_up(rows, [2, 2, 5], 0), look_up(rows, [], 1), look_up(rows, [5, 7], 2)],
        [look_up(mixed, [2], 0), dense],
        [dense, dense],
        [look_up(still, [], 0)],
        [look_up(unlike, [2], 0), dense.to_sparse(2)],
    ]
    decay(parameters, group, certain(gradients))
    factor = torch.ones(ROWS, 1, dtype=torch.float64)
    factor[[2, 5, 7]] = 0.95
    for parameter, old, by in zip(parameters, before, (factor, 0.95, 0.95, 1.0, 0.95), strict=True):
        torch.testing.assert_close(parameter.detach(), old * by, rtol=1e-14, atol=0)


def test_decay_without_gradients_is_of_whole_parameters():
    parameter = table()
    before = parameter.detach().clone()
    decay([parameter], {**GROUP, "weight_decay": 0.5})
    torch.testing.assert_close(parameter.detach(), before * 0.95, rtol=1e-14, atol=0)


def test_cost_is_that_of_the_touched_rows():
    class Elements(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            given = {id(one) for one in tree_leaves((args, kwargs))}
            for made in tree_leaves(result):
                if isinstance(made, torch.Tensor) and id(made) not in given:  # what is changed in place is not made
                    self.largest = max(self.largest, (made._values() if made.is_sparse else made).numel())
            return result

    parameter = table(torch.float32, (100_000, WIDTH))
    moments = moments_of(parameter)
    gradient = look_up(parameter, torch.randint(100_000, (64,)).tolist(), 0)
    with Elements() as elements:
        decay([parameter], {**GROUP, "weight_decay": 0.1}, certain([[gradient, gradient]]))
        take([parameter], [gradient], [moments], GROUP)
    assert 64 <= elements.largest <= 64 * WIDTH * 2
