"""MAO's moments in less memory: first ones in bfloat16, second ones factored, against float64 that rounds alike."""

import copy
import io

import pytest
import torch
from mao_and_reference import PRESENT, Reference
from networks import TASKS, Network, assert_same, batch, snapshot
from torch import nn

import equipoise as eq

WAYS = {
    "bfloat16": {"state_dtype": torch.bfloat16},
    "factored": {"factored": True},
    "both": {"state_dtype": torch.bfloat16, "factored": True},
}
every_way = pytest.mark.parametrize("way", WAYS)


class ByHand(Reference):
    """MAO's formula in float64; first moments are rounded after their use, second ones are of rank one."""

    def __init__(self, model, rounds, factored, **options):
        super().__init__(model, **options)
        self.rounds, self.factored = rounds, factored

    @torch.no_grad()
    def step(self, rows):
        (beta1, beta2), eta = self.betas, self.lr
        for name, p in self.parameters.items():
            tasks = [task for task in rows if name in rows[task]]
            update = eta * self.weight_decay * p
            for task in tasks:
                key, g = (task, name), rows[task][name]
                self.times[key] = t = self.times.get(key, 0) + 1
                m = beta1 * self.first.get(key, 0.0) + (1 - beta1) * g
                self.first[key] = m.bfloat16().double() if self.rounds else m
                if self.factored and p.dim() >= 2:
                    square = g.reshape(len(g), -1) ** 2
                    old = self.second.get(key, (0.0, 0.0))
                    means = square.mean(1), square.mean(0)
                    r, c = self.second[key] = [
                        beta2 * was + (1 - beta2) * new for was, new in zip(old, means, strict=True)
                    ]
                    v = (torch.outer(r, c) / r.mean()).reshape(p.shape)
                else:
                    v = self.second[key] = beta2 * self.second.get(key, 0.0) + (1 - beta2) * g**2
                update += eta * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + self.eps)
            if tasks:
                p.sub_(update)


def train(model, optimizer, indices):
    for index in indices:
        optimizer.zero_grad()
        optimizer.backward(model.losses(batch(index), PRESENT[index]))
        optimizer.step()


def make(way, seed=0, dtype=torch.float32, **options):
    model = Network(seed).to(dtype)
    options = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, **WAYS[way], **options}
    return model, eq.MAO(model.parameters(), TASKS, **options)


@every_way
def test_is_the_formula_with_the_same_rounding(way):
    model, optimizer = make(way, dtype=torch.float64)
    twin = Network().double()
    options = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    reference = ByHand(twin, way != "factored", way != "bfloat16", **options)
    for index in range(10):
        train(model, optimizer, [index])
        reference.step(reference.gradients(twin.losses(batch(index), PRESENT[index])))
    # a sum in another order may now and then round to the next number of bfloat16
    close = {"rtol": 1e-9, "atol": 1e-12} if way == "factored" else {"rtol": 1e-5, "atol": 1e-5}
    for (key, found), expected in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected, **close, msg=key)


def test_second_moments_of_rank_one_are_exact_and_a_kernel_is_a_matrix():
    """With gradients of rank one in absolute value factored moments lose nothing, in any number of dimensions."""
    results = []
    for factored in (False, True):
        kernel = nn.Parameter(torch.zeros(3, 2, 2, dtype=torch.float64))
        optimizer = eq.MAO([kernel], ["a"], lr=0.1, factored=factored)
        g = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)[:, None, None] * torch.tensor([[1.0, 4.0], [-5.0, 2.0]])
        for _ in range(3):
            optimizer.zero_grad()
            optimizer.backward({"a": (kernel * g).sum()})
            optimizer.step()
        results.append(kernel.detach())
    torch.testing.assert_close(*results, rtol=1e-12, atol=0)
    state = optimizer.state[kernel]
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "step": (1,),
        "exp_avg.a": (3, 2, 2),
        "row_mean_sq.a": (3,),
        "column_mean_sq.a": (4,),
    }


@every_way
def test_resumes_bit_for_bit_and_goes_on_as_a_copy(way):
    model, optimizer = make(way)
    train(model, optimizer, range(4))
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin, resumed = make(way, seed=1, lr=9.0)
    twin.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert_same(resumed.state_dict(), optimizer.state_dict())
    third, copied = copy.deepcopy((model, optimizer))
    for each in ((model, optimizer), (twin, resumed), (third, copied)):
        each[1].zero_grad()
        train(*each, range(4, 8))
    assert_same(snapshot(twin, resumed), snapshot(model, optimizer))
    assert_same(snapshot(third, copied), snapshot(model, optimizer))


@every_way
def test_streams_the_same_numbers(way):
    results = []
    for streaming in (False, True):
        model, optimizer = make(way, streaming=streaming)
        train(model, optimizer, range(5))
        results.append(snapshot(model, optimizer)[::2])
    assert_same(results[0][0], results[1][0])
    assert_same(results[0][1]["state"], results[1][1]["state"])


@every_way
def test_sparse_gradients_are_those_of_a_dense_table(way):
    results = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(5, 3, sparse=sparse)
        optimizer = eq.MAO(table.parameters(), ["a", "b"], lr=0.1, weight_decay=0.1, **WAYS[way])
        for index in range(3):
            optimizer.zero_grad()
            z = table(torch.tensor([index, index + 1]))
            optimizer.backward({"a": z.square().sum(), "b": z.exp().sum()})
            optimizer.step()
        results.append(table.weight.detach())
    torch.testing.assert_close(*results)


@every_way
def test_a_monitor_sees_the_rates(way):
    model, optimizer = make(way)
    monitor = eq.BalanceMonitor(optimizer, model, every=1)
    train(model, optimizer, range(2))
    monitor.detach()
    assert len(monitor.records) == 2


@pytest.mark.parametrize(
    ("options", "dtype", "words"),
    [
        (
            {"state_dtype": torch.float16},
            torch.float32,
            r"state_dtype must be torch\.bfloat16 or None, found torch.float16",
        ),
        ({"state_dtype": torch.bfloat16}, torch.float16, r"is of torch\.float16"),
        ({"factored": True}, torch.complex64, r"is of torch\.complex64"),
    ],
)
def test_what_it_is_not_for(options, dtype, words):
    with pytest.raises(ValueError, match=words):
        eq.MAO([nn.Parameter(torch.ones(2, 2, dtype=dtype))], TASKS, **options)


def test_refuses_moments_of_another_kind():
    model, optimizer = make("both")
    train(model, optimizer, [0])
    for other in (make("factored")[1], eq.MAO(model.parameters(), TASKS)):
        with pytest.raises(
            ValueError, match=r"is of MAO with torch\.bfloat16 first moments and factored second moments"
        ):
            other.load_state_dict(optimizer.state_dict())
