"""METHOD@OPTIMIZER: the same balancing with another optimizer behind it."""

import copy
import io
import math

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, snapshot
from torch import nn

import equipoise as eq
from equipoise.optim import MuonAndAdamW
from equipoise.registry import BASE_OPTIMIZERS, split_optimizer

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has Muon from 2.9 on")
OPTIMIZERS = [pytest.param(name, marks=needs_muon if name == "muon" else ()) for name in BASE_OPTIMIZERS]


class Mixed(nn.Module):
    """A table, a convolution, a matrix, vectors and a scalar."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.kernel = nn.Conv1d(4, 6, 2)
        self.matrix = nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.ones(()))

    def losses(self, index):
        words = torch.randint(5, (7, 3), generator=torch.Generator().manual_seed(index))
        z = self.kernel(self.table(words).transpose(1, 2)).tanh().mean(2)
        left, middle, right = (self.scale * self.matrix(z)).unbind(1)
        return {"a": (left - 1).square().mean(), "b": 9 * (middle + 1).square().mean(), "c": right.exp().mean()}


def make_mixed(name, seed=0, **options):
    torch.manual_seed(seed)
    model = Mixed()
    return model, eq.make_method(name, model, TASKS, **{"lr": 0.02, "weight_decay": 0.1, **options})


def train(model, method, start, stop):
    for index in range(start, stop):
        method.zero_grad()
        method.backward(model.losses(index))
        method.step()


@pytest.mark.parametrize("name", ["ema", "single:b", "uw", "pcgrad"])
def test_adamw_is_what_a_name_without_one_means(name):
    results = []
    for suffix in ("", "@adamw"):
        model, method = make_mixed(name + suffix)
        assert method.name == name + suffix
        train(model, method, 0, 3)
        results.append((model.state_dict(), method.optimizer.state_dict()))
    assert_same(*results)


@pytest.mark.parametrize("name", ["ew", "single:b"])
def test_sgd_is_gradient_descent_with_momentum(name):
    model, twin = Network(), Network()
    method = eq.make_method(f"{name}@sgd", model, TASKS, lr=0.02, weight_decay=0.1)
    assert method.name == f"{name}@sgd"
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.02, momentum=0.9, weight_decay=0.1)
    for index in range(3):
        method.zero_grad()
        method.backward(model.losses(batch(index)))
        method.step()
        optimizer.zero_grad()
        sum(twin.losses(batch(index), TASKS if name == "ew" else "b").values()).backward()
        optimizer.step()
    assert_same(model.state_dict(), twin.state_dict())


def orthogonalised(matrix):
    """Newton and Schulz's iteration in bfloat16, as Muon's author gives it."""
    x = matrix.bfloat16()
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    x = x / x.norm()
    for _ in range(5):
        product = x @ x.T
        x = 3.4445 * x + (-4.7750 * product + 2.0315 * product @ product) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix)


@needs_muon
def test_muon_is_its_papers_formula_on_matrices_and_kernels_and_adamw_on_the_rest():
    model, method = make_mixed("uw@muon")
    rest = [model.table.weight, model.kernel.bias, model.matrix.bias, model.scale]
    own = [p.detach().clone().requires_grad_() for p in rest]
    adamw = torch.optim.AdamW(own, 0.02, weight_decay=0.1, fused=True)
    matrices = {p: [p.detach().double().clone(), 0.0] for p in (model.matrix.weight, model.kernel.weight)}
    for index in range(4):
        method.zero_grad()
        method.backward(model.losses(index))
        for p, (value, momentum) in matrices.items():
            g = p.grad.double().flatten(1)
            momentum = 0.95 * momentum + 0.05 * g
            update = orthogonalised((0.05 * g + 0.95 * momentum).float()).double()
            value = value * (1 - 0.02 * 0.1)
            value -= 0.02 * 0.2 * math.sqrt(max(g.shape)) * update.view(p.shape)
            matrices[p] = [value, momentum]
        for p, twin in zip(rest, own, strict=True):
            twin.grad = p.grad.clone()
        adamw.step()
        method.step()
    assert all(torch.equal(p, twin) for p, twin in zip(rest, own, strict=True))
    for p, (value, _) in matrices.items():
        assert (p - value).abs().max() < 2e-2 * 0.02 * 4  # products of bfloat16 are not the same in all orders
    weights = next(group for group in method.optimizer.param_groups if group["weight_decay"] == 0)
    assert not weights["use_muon"]
    assert [id(p) for p in weights["params"]] == [id(p) for p in method.balancer.parameters()]


@needs_muon
def test_a_kernel_in_another_memory_format_moves_the_same():
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        kernel = nn.Conv2d(3, 4, 2).to(memory_format=memory_format)
        optimizer = MuonAndAdamW(kernel.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            kernel(torch.ones(1, 3, 3, 3)).square().sum().backward()
            optimizer.step()
        assert kernel.weight.is_contiguous(memory_format=memory_format)
        results.append(kernel.weight.detach())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumes_bit_for_bit_and_goes_on_as_a_copy(optimizer):
    model, method = make_mixed(f"uw@{optimizer}")
    train(model, method, 0, 3)
    file = io.BytesIO()
    torch.save((model.state_dict(), method.state_dict()), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin, resumed = make_mixed(f"uw@{optimizer}", seed=1, lr=9.0)
    twin.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    third, copied = copy.deepcopy((model, method))
    for each in ((model, method), (twin, resumed), (third, copied)):
        train(*each, 3, 5)
    assert_same(snapshot(twin, resumed), snapshot(model, method))
    assert_same(snapshot(third, copied), snapshot(model, method))
    with pytest.raises(ValueError, match="another method"):
        make_mixed("uw")[1].load_state_dict(saved[1])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_schedulers_scalers_and_new_tasks(optimizer):
    model, method = make_mixed(f"ema@{optimizer}")
    scheduler = torch.optim.lr_scheduler.OneCycleLR(method.optimizer, 0.1, total_steps=4)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    twin, plain = make_mixed(f"ema@{optimizer}")
    other = torch.optim.lr_scheduler.OneCycleLR(plain.optimizer, 0.1, total_steps=4)
    for index in range(3):
        method.zero_grad()
        method.backward(model.losses(index), scaler=scaler)
        scaler.step(method.optimizer)
        scaler.update()
        scheduler.step()
        train(twin, plain, index, index + 1)
        other.step()
    assert_same(model.state_dict(), twin.state_dict())
    more = eq.make_method(f"ema@{optimizer}", model, [*TASKS, "d"], lr=0.02)
    more.load_state_dict(method.state_dict(), tasks="intersection")
    states = [optimizer.state_dict()["state"] for optimizer in (more.optimizer, method.optimizer)]
    assert_same(*(dict(sorted(state.items())) for state in states))


@needs_muon
def test_groups_say_whose_they_are():
    model = Mixed()
    optimizer = MuonAndAdamW(model.matrix.named_parameters(), lr=0.1)
    assert [(group["param_names"], group["use_muon"]) for group in optimizer.param_groups] == [
        (["weight"], True),
        (["bias"], False),
    ]
    optimizer.add_param_group({"params": [("table", model.table.weight)], "use_muon": False, "lr": 0.5})
    assert (optimizer.param_groups[-1]["use_muon"], optimizer.param_groups[-1]["lr"]) == (False, 0.5)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"use_muon=True holds parameters of the shapes \[\(6,\)\]"):
        optimizer.add_param_group({"params": [("bias", model.kernel.bias)], "use_muon": True})
    for options in ({"lr": -1.0}, {"betas": (2.0, 0.5)}, {"momentum": 1.0}):
        with pytest.raises(ValueError, match=r"Invalid|momentum must be"):
            MuonAndAdamW(model.parameters(), **options)
    assert_same(optimizer.state_dict(), before)


def test_without_muon_it_says_since_when_there_is_one(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ImportError, match=r"PyTorch from 2\.9 on, found PyTorch"):
        make_mixed("ema@muon")


def test_names_and_what_is_wrong_with_them():
    assert split_optimizer("torchjd:UPGrad@sgd") == ("torchjd:UPGrad", "sgd")
    assert split_optimizer("single:a@b@sgd", ["a@b"]) == ("single:a@b", "sgd")
    assert split_optimizer("single:a@sgd", ["a@sgd"]) == ("single:a@sgd", "adamw")
    assert not [name for name in eq.list_methods() if "@" in name]
    assert all(list(base.grid) == sorted(base.grid) for base in BASE_OPTIMIZERS.values())
    model = Mixed()
    for name in ("ema@", "ema@adam", "single:a@adam"):
        with pytest.raises(ValueError, match=r"Unknown optimizer '(adam)?' in .*; the optimizers are adamw, sgd, muon"):
            eq.make_method(name, model, TASKS)
    with pytest.raises(ValueError, match="Unknown method 'nothing'"):
        eq.make_method("nothing@sgd", model, TASKS)
