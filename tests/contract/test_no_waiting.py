"""No waiting for an accelerator in a step, shown without one.

A step runs on the `meta` device, whose tensors have no values, so that nothing can read one unnoticed. (Fake tensors on
"cuda" would look nearer, but autograd's engine asks the missing driver for a device.) A meta tensor plays the part of
an accelerator's, for the library asks whether a device is the host, never which one it is; MAO is told to use fused
kernels, which it would find out by itself. Three things have to be put in between:

- a `TorchDispatchMode` sees every operator, those of autograd's backward pass too. It refuses what waits: reading a
  value (`item()`, `bool()`, `tolist()`), copies between host and device that block, operators whose result's shape is a
  value (`nonzero`, `unique`, masks as indices). A copy to the host that does not block gives a tensor *on its way*:
  reading it before an event was waited for would be reading garbage, and is refused, too.
- a `TorchFunctionMode` sees calls that upload what is in Python and block while they do, and that no operator shows:
  indexing with lists, `torch.tensor(..., device=...)`.
- `torch.Event` is replaced by one that counts who waits for it.
"""

import importlib
from contextlib import contextmanager

import pytest
import torch
from networks import TASKS, Network
from registry import GRAMIAN, METRICS, POTENTIALS, is_optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import equipoise as eq
from equipoise.registry import METHODS

aten = torch.ops.aten

VALUE_DEPENDENT = {
    aten._local_scalar_dense,
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.bincount,
    aten.is_nonzero,
}
"""Operators that wait: what they return to the host, or how large it is, is a value on the device."""

UPLOADS = {torch.tensor, torch.as_tensor, torch.asarray}
INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}


class Waited(BaseException):
    """Something would have waited for the device. (No `Exception`, for the library goes another way after some.)"""


def on_device(value):
    return isinstance(value, torch.Tensor) and value.device.type == "meta"


def holds_python(index):
    """Whether an index has lists in it, which are copied to the device."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list | range) for part in parts)


class Accelerator(TorchDispatchMode):
    """A device that takes its time: see above.

    Attributes:
        waits: how often the host has waited for an event.
    """

    def __init__(self):
        super().__init__()
        self.waits = self.recorded = self.arrived = 0
        self.on_their_way = {}  # address → a tensor on the host that has yet to arrive

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = function.overloadpacket
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if packet in VALUE_DEPENDENT and any(map(on_device, tensors)):
            raise Waited(f"{function} looks at values")
        if packet in (aten.index, aten.index_put, aten.index_put_) and on_device(args[0]):
            for index in args[1]:
                if index is not None and not on_device(index):
                    raise Waited(f"{function} uploads an index")
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    raise Waited(f"{function} counts a mask")
        if packet is aten._to_copy and "device" in kwargs:
            return self.copied(function, args, kwargs)
        if packet is aten.copy_ and on_device(args[0]) != on_device(args[1]):
            self.check_copy(args[1], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
            if on_device(args[0]):
                return args[0]
            return self.send(args[0])
        for tensor in tensors:
            if not on_device(tensor) and tensor.layout == torch.strided:
                if tensor.untyped_storage().data_ptr() in self.on_their_way:
                    raise Waited(f"{function} reads what has not arrived")
                if tensor.dim() and any(map(on_device, tensors)) and packet not in (aten._foreach_copy_,):
                    raise Waited(f"{function} mixes devices")  # an error on an accelerator
        return function(*args, **kwargs)

    def copied(self, function, args, kwargs):
        from_device, to_device = on_device(args[0]), torch.device(kwargs["device"]).type == "meta"
        if from_device == to_device:
            return function(*args, **kwargs)
        self.check_copy(args[0], kwargs.get("non_blocking", False))
        if to_device:
            return function(*args, **kwargs)
        return self.send(torch.empty(args[0].shape, dtype=kwargs.get("dtype", args[0].dtype), device="cpu"))

    def check_copy(self, source, non_blocking):
        if not non_blocking:
            raise Waited(f"a copy from {source.device} blocks")

    def send(self, tensor):
        """Sends values to the host: a Gramian with ones below it, for methods to solve; of flags, that none is up."""
        values = torch.ones(tensor.shape, dtype=torch.float64, device="cpu")
        if tensor.dim() == 2:
            values[: tensor.shape[1]] = torch.eye(tensor.shape[1], dtype=torch.float64, device="cpu") + 0.5
        tensor.copy_(values if tensor.dtype != torch.bool else torch.zeros_like(values))
        self.on_their_way[tensor.untyped_storage().data_ptr()] = tensor
        return tensor


class Event:
    """Stands for `torch.Event`. Nothing arrives unless somebody waits, for it or for what was sent after it."""

    def __init__(self, accelerator):
        self.accelerator, self.before, self.number = accelerator, (), 0

    def record(self, stream=None):
        self.accelerator.recorded += 1
        self.number = self.accelerator.recorded
        self.before = tuple(self.accelerator.on_their_way)

    def query(self):
        return self.number <= self.accelerator.arrived

    def synchronize(self):
        if not self.query():
            self.accelerator.waits += 1
            self.accelerator.arrived = self.number
        for address in self.before:
            self.accelerator.on_their_way.pop(address, None)


class Calls(TorchFunctionMode):
    """Sees what is called from Python."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        there = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta"
        if function in INDEXING and on_device(args[0]) and holds_python(args[1]):
            raise Waited("an index of Python's is uploaded")
        if function is torch.Tensor.new_tensor and on_device(args[0]):
            raise Waited("new_tensor uploads what is in Python")
        if function in UPLOADS and there and not on_device(args[0]):
            raise Waited(f"{function.__name__} uploads what is in Python")
        if there:
            kwargs.pop("generator", None)  # there are none for meta tensors
        return function(*args, **kwargs)


@contextmanager
def no_waiting():
    """What runs within must not wait for the device but by events, which the `Accelerator` counts."""
    accelerator, generator, autocast = Accelerator(), torch.Generator, torch.autocast
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Event", lambda device=None, **_: Event(accelerator))
        patch.setattr(torch, "autocast", lambda device, **options: autocast("cpu", **options))
        patch.setattr("equipoise.gradients.batching._fitting", lambda count, *_: count)  # it asks the driver
        patch.setattr(torch, "Generator", lambda device="cpu": generator(device="cpu"))  # there are none for meta
        engine = torch.autograd._engine_run_backward

        def run_backward(*args, **kwargs):
            with Calls():  # a mode is off within what it handles, such as `torch.autograd.grad`
                return engine(*args, **kwargs)

        patch.setattr(torch.autograd, "_engine_run_backward", run_backward)
        with accelerator, Calls():
            yield accelerator


class Scaler:
    """What a step asks of a `torch.amp.GradScaler`."""

    def is_enabled(self):
        return True

    def scale(self, loss):
        return loss * torch.full((), 1024.0, device="meta")


EVERY = [*eq.list_methods(), "single:a"]
SOLVED = set(EVERY) & GRAMIAN
"""Methods that find weights from the Gramian on the host, and wait for it once."""

every_method = pytest.mark.parametrize("name", EVERY)


def make_there(name, **options):
    """A network on the device, and its method."""
    model = Network().to("meta")
    if is_optimizer(name) and "fused" in METHODS[name].hyperparameters:
        options.setdefault("fused", True)
    if name.startswith("amtl"):
        options["potentials"] = POTENTIALS
    method = eq.make_method(name, model, TASKS, lr=0.01, weight_decay=0.01, **options)
    if method.balancer is not None:
        method.balancer.to("meta")
    return model, method


def losses_of(model, tasks=TASKS):
    return model.losses(torch.empty(6, 4, device="meta"), tasks)


def step(model, method, tasks=TASKS, **options):
    """Makes a step in which nothing waits that must not; returns how often the host waited."""
    method.zero_grad()
    losses = losses_of(model, tasks)
    with no_waiting() as accelerator:
        method.observe_validation(losses)
        method.backward(losses, **options)
        method.step()
        if method.needs_after_step:
            with torch.no_grad():
                method.after_step(losses_of(model, tasks))
    return accelerator.waits


@every_method
def test_a_step_waits_for_nothing_but_a_gramian(name):
    model, method = make_there(name)
    for tasks in ("abc", "ac", "abc"):
        assert step(model, method, tasks) == (name in SOLVED)
        method.end_epoch(METRICS[0])
    assert step(model, method, "a") == (name in SOLVED)


def counts_of(tasks=TASKS):
    """Numbers of labels, some known to the host and some to the device."""
    there = {"a": 3, "b": torch.empty((), device="meta"), "c": torch.empty((), dtype=torch.int64, device="meta")}
    return {task: there[task] for task in tasks}


@every_method
def test_counts_on_the_device_wait_for_nothing(name):
    model, method = make_there(name)
    for tasks in ("abc", "ab"):
        assert step(model, method, tasks, counts=counts_of(tasks)) == (name in SOLVED)


@pytest.mark.parametrize("counted", [False, True], ids=["without counts", "with counts"])
@every_method
def test_micro_batches_wait_once_for_all(name, counted):
    model, method = make_there(name)
    method.zero_grad()
    with no_waiting() as accelerator:
        for tasks, last in (("abc", False), ("ac", False), ("ab", True)):
            counts = counts_of(tasks) if counted else None
            method.backward(losses_of(model, tasks), accumulate=not last, counts=counts)
        method.step()
    assert accelerator.waits == (name in SOLVED)


@every_method
def test_a_gradient_scaler_waits_for_nothing(name):
    model, method = make_there(name)
    method.zero_grad()
    with no_waiting() as accelerator:
        method.backward(losses_of(model), scaler=Scaler(), counts=counts_of())
        method.zero_grad()
        method.backward(losses_of(model), accumulate=True, scaler=Scaler())
        method.backward(losses_of(model), scaler=Scaler())
    assert accelerator.waits == 2 * (name in SOLVED)


@pytest.mark.parametrize("options", [{"engine": "layers"}, {"chunk_size": 2}, {"probe": "trunk"}], ids=str)
@pytest.mark.parametrize("aggregator", [eq.MGDA, eq.GradNorm])
def test_every_way_to_a_gramian_waits_once(aggregator, options):
    model = Network().to("meta")
    given = {**options, "probe": model.trunk} if "probe" in options else options
    balancer = eq.Balancer(TASKS, aggregator=aggregator(), model=model, **given)
    for tasks in ("abc", "ab"):
        model.zero_grad()
        losses = losses_of(model, tasks)
        with no_waiting() as accelerator:
            balancer.backward(losses, counts=counts_of(tasks))
        assert accelerator.waits == 1


def test_only_a_step_that_takes_statistics_waits():
    model, method = make_there("mgda", every=3)
    assert [step(model, method) for _ in range(5)] == [1, 0, 0, 1, 0]
    held = {"aggregator": dict.fromkeys(TASKS, 0.5)}  # from a checkpoint: on the host
    method.balancer._balancing.choose({"no_layers": [], "position": 2, "weights": held})
    assert [step(model, method) for _ in range(2)] == [0, 1]


MAO_OPTIONS = [
    {"groups": 2},
    {"max_norm": 1.0},
    {"chunk_size": 2},
    {"streaming": True},
    {"fused": False},
    {"betas": (0.0, 0.99), "groups": {"x": ["a", "c"], "y": ["b"]}},
]


@pytest.mark.parametrize("options", MAO_OPTIONS, ids=str)
def test_mao_does_not_wait(options):
    model, method = make_there("mao", **options)
    for tasks in ("abc", "ab"):
        assert step(model, method, tasks) == 0
        if options != {"fused": False}:
            assert step(model, method, tasks, counts=counts_of(tasks)) == 0


def test_mao_with_step_counts_on_the_device(monkeypatch):
    """`capturable`, and a tensor as learning rate: what goes into a CUDA graph cannot wait."""
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda *_, **__: ["meta"])
    model, method = make_there("mao", fused=False, capturable=True)
    for group in method.optimizer.param_groups:
        group["lr"] = torch.empty((), device="meta")
    for tasks in ("abc", "ab"):
        assert step(model, method, tasks) == 0
        assert step(model, method, tasks, counts=counts_of(tasks)) == 0


FAULTS = {
    "reads a value": lambda losses: losses.sum().item(),
    "asks whether": lambda losses: bool((losses > 0).all()),
    "makes a list": lambda losses: losses.tolist(),
    "copies": lambda losses: losses.cpu(),
    "copies, and does not wait to look": lambda losses: losses.to("cpu", non_blocking=True) + 1,
    "uploads": lambda losses: losses * torch.ones(len(losses), device="cpu").to(losses.device),
    "uploads a list": lambda losses: losses * torch.tensor([1.0] * len(losses), device=losses.device),
    "uploads the same, new": lambda losses: losses * losses.new_tensor([1.0] * len(losses)),
    "picks by a list": lambda losses: losses[[0, 1]],
    "writes by a list": lambda losses: losses.clone().__setitem__([0, 1], 0.0),
    "picks by a tensor on the host": lambda losses: losses[torch.tensor([0, 1], device="cpu")],
    "picks by a mask": lambda losses: losses[losses > 0],
    "counts": lambda losses: losses.nonzero(),
    "waits": lambda losses: wait(losses.device),
}


def wait(device):
    event = torch.Event(device)
    event.record()
    event.synchronize()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("where", ["objective", "aggregator", "optimizer", "backward pass"])
def test_a_step_that_waits_is_noticed(monkeypatch, where, fault):
    """Somebody adds a line to the library that waits."""

    def before(function, values):
        def first(*arguments, **keywords):
            FAULTS[fault](values(*arguments))
            return function(*arguments, **keywords)

        return first

    name = {"objective": "ema", "aggregator": "graddrop"}.get(where, "mao")
    model, method = make_there(name)
    if where == "objective":
        monkeypatch.setattr(eq.EMA, "forward", before(eq.EMA.forward, lambda _, losses: losses))
    elif where == "aggregator":
        monkeypatch.setattr(eq.GradDrop, "aggregate", before(eq.GradDrop.aggregate, lambda *given: given[2]))
    elif where == "optimizer":
        module = importlib.import_module("equipoise.optim._adam_by_task")
        monkeypatch.setattr(module, "update", before(module.update, lambda *given: given[1][0].flatten()[:2]))
    else:
        model.trunk.bias.register_hook(lambda gradient: (FAULTS[fault](gradient), None)[1])
    try:
        waits = step(model, method)
    except Waited:
        waits = 1
    assert waits > 0
