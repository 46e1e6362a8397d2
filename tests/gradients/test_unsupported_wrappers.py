"""Wrappers that make of gradients what nobody else can see are refused, in one error that names what to use."""

import copy

import pytest
import torch
import torch.distributed as dist
from networks import assert_same
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

import equipoise as eq

TASKS = ("a", "b")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(3, 4)
        self.heads = nn.ModuleDict({task: nn.Linear(4, 1) for task in TASKS})

    def forward(self, x):
        z = self.trunk(x).tanh()
        return {task: head(z).square().mean() for task, head in self.heads.items()}


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def fsdp(original, inner=False):
    wrapped = Model()
    options = {"use_orig_params": original, "device_id": torch.device("cpu")}
    if inner:
        wrapped.trunk = FullyShardedDataParallel(wrapped.trunk, **options)
        return wrapped
    return FullyShardedDataParallel(wrapped, **options)


class _Broadcast(torch.autograd.Function):
    """As DataParallel's own, which copies parameters to devices of which a CPU has one."""

    @staticmethod
    def forward(ctx, *tensors):
        return tuple(tensor.clone() for tensor in tensors)

    @staticmethod
    def backward(ctx, *gradients):
        return gradients


_Broadcast.__module__ = "torch.nn.parallel._functions"


class Replicated(Model):
    """What DataParallel makes of the model: a replica's forward pass, on broadcast parameters."""

    def forward(self, x):
        names, parameters = zip(*self.named_parameters(), strict=True)
        replica = dict(zip(names, _Broadcast.apply(*parameters), strict=True))
        return torch.func.functional_call(Model(), replica, (x,))


class DeepSpeedEngine(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = Model()


class PipelineEngine(DeepSpeedEngine):
    """DeepSpeed derives others from its engine."""


DeepSpeedEngine.__module__ = "deepspeed.runtime.engine"
PipelineEngine.__module__ = "deepspeed.runtime.pipe.engine"


class Lit(nn.Module):
    """A wrapper around the wrapper, as frameworks have it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner


WRAPPED = {
    "fsdp": (lambda: fsdp(False), "FullyShardedDataParallel.*fully_shard"),
    "fsdp of a part": (lambda: fsdp(True, inner=True), "FullyShardedDataParallel.*fully_shard"),
    "data parallel": (lambda: nn.DataParallel(Model()), "DataParallel.*DistributedDataParallel, one process a device"),
    "deepspeed": (DeepSpeedEngine, "DeepSpeedEngine.*fully_shard"),
    "deepspeed pipeline": (PipelineEngine, "DeepSpeedEngine.*fully_shard"),
}


AROUND = {"": lambda model: model, "in a module": Lit, "compiled": torch.compile}
MAKE = {
    "balancer": lambda model: eq.Balancer(TASKS, model=model),
    "aggregator": lambda model: eq.Balancer(TASKS, aggregator=eq.MGDA(), model=model),
    **{name: lambda model, name=name: eq.make_method(name, model, TASKS) for name in ("ew", "mgda", "mao", "single:a")},
}


@pytest.mark.parametrize(
    ("make", "around"), [*((make, "") for make in MAKE), ("balancer", "in a module"), ("balancer", "compiled")]
)
@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.usefixtures("one_rank")
def test_a_model_in_one_is_refused_when_the_method_is_made(name, make, around):
    wrap, message = WRAPPED[name]
    model = AROUND[around](wrap())
    with pytest.raises(ValueError, match=f"The model is in {message}"):
        MAKE[make](model)


def test_what_only_has_such_a_name_is_not_one():
    class DataParallel(Model):
        pass

    eq.Balancer(TASKS, model=DataParallel())


FOUND = {
    "balancer": lambda model: eq.Balancer(TASKS, eq.EMA(), eq.MGDA()),
    "graddrop": lambda model: eq.Balancer(TASKS, eq.EMA(), eq.GradDrop()),
    "mao": lambda model: eq.MAO(model.parameters(), TASKS),
    "mao, streaming": lambda model: eq.MAO(model.parameters(), TASKS, streaming=True),
}


@pytest.mark.parametrize(
    "wrap", [lambda: fsdp(False), lambda: fsdp(True), Replicated], ids=["flat", "views", "replicas"]
)
@pytest.mark.parametrize(
    ("name", "accumulate"), [*((name, False) for name in FOUND), ("balancer", True), ("mao", True)]
)
@pytest.mark.usefixtures("one_rank")
def test_without_the_model_it_is_found_in_the_graph_before_anything_changes(name, wrap, accumulate):
    model = wrap()
    method = FOUND[name](model)
    before = copy.deepcopy([dict(method.state_dict()), [p.detach() for p in model.parameters()]])
    losses = model(torch.ones(2, 3))
    expected = "DataParallel.*one process a device" if wrap is Replicated else "FullyShardedDataParallel.*fully_shard"
    with pytest.raises(ValueError, match=f"The model is in {expected}"):
        method.backward(losses, accumulate=accumulate)
    assert_same([dict(method.state_dict()), [p.detach() for p in model.parameters()]], before)
    assert all(p.grad is None for p in model.parameters())
    sum(losses.values()).backward()  # the graph is still there


@pytest.mark.usefixtures("one_rank")
def test_task_gradients_says_so_too():
    model = fsdp(False)
    with pytest.raises(ValueError, match="The model is in FullyShardedDataParallel"):
        eq.task_gradients(model(torch.ones(2, 3)), model)


def test_a_flat_parameter_is_refused_without_an_aggregator_too():
    """One backward pass needs no walk through the graph; the first one has it, to see this."""
    flat = nn.Parameter(torch.ones(3))
    flat._is_flat_param = True
    with pytest.raises(ValueError, match=r"FullyShardedDataParallel.*fully_shard"):
        eq.Balancer(["a", "b"], eq.EMA()).backward({"a": flat.square().sum(), "b": flat.exp().sum()})
    assert flat.grad is None
