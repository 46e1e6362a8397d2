"""On a GPU: no waiting for it in a step but for a Gramian, and state that goes where the model goes.

What waits is shown for every method in contract/test_no_waiting.py, without a GPU. Here it is the driver that is asked.
"""

import copy
import importlib

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, gradients

import equipoise as eq
from equipoise.aggregators import RowStateAggregator
from equipoise.registry.aggregators import AGGREGATORS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

POTENTIALS = {"a": 0.9, "b": 0.6, "c": 0.8}
SOLVED = [name for name, spec in AGGREGATORS.items() if isinstance(spec.aggregator(), eq.GramianAggregator)]
"""Methods that find weights from the Gramian on the host, for which they wait once in a step."""

NEVER = [*(name for name in eq.list_methods() if name not in SOLVED), "single:a"]
PRESENT = ["abc", "ac", "abc", "b"]


def make(name, device, **options):
    model = Network().to(device)
    torch.manual_seed(0)
    potentials = POTENTIALS if name.startswith("amtl") else None
    return model, eq.make_method(name, model, TASKS, potentials=potentials, lr=0.01, **options)


def step(model, method, x, tasks, scaler=None):
    method.zero_grad()
    method.backward(model.losses(x, tasks), scaler=scaler)
    method.step()
    if method.needs_after_step:
        with torch.no_grad():
            method.after_step(model.losses(x, tasks))


@pytest.fixture
def no_synchronisation():
    def watch(mode):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(mode)

    yield watch
    torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def solves(monkeypatch):
    """Counts the copies to the host that the library waits for; the driver is not asked meanwhile."""
    base = importlib.import_module("equipoise.aggregators._base")
    on_host, counted = base.on_host, []

    def counting(values):
        counted.append(values.shape)
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        try:
            return on_host(values)
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    monkeypatch.setattr(base, "on_host", counting)
    return counted


@pytest.mark.parametrize("name", [*NEVER, *SOLVED])
def test_a_step_waits_for_nothing_but_a_gramian(name, no_synchronisation, solves):
    model, method = make(name, "cuda")
    inputs = [batch(index).cuda() for index in range(2 * len(PRESENT))]
    present = ["abc", "a"] * 2 if name.startswith("single:") else PRESENT
    for x, tasks in zip(inputs, present, strict=False):  # what happens once may wait
        step(model, method, x, tasks)
    no_synchronisation("error")
    for x, tasks in zip(inputs[len(present) :], present, strict=True):
        solves.clear()
        step(model, method, x, tasks)
        assert len(solves) == (name in SOLVED)
    no_synchronisation("default")
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["ew", "ema", "uw", "famo", "gls", "graddrop", "mao", "gradnorm", "imtl-g"])
def test_counts_and_micro_batches_do_not_wait_either(name, no_synchronisation, solves):
    model, method = make(name, "cuda")
    inputs = [batch(index).cuda() for index in range(2)]
    counts = {"a": torch.tensor(3.0, device="cuda"), "b": 2, "c": 6}
    for mode in ("default", "error"):
        no_synchronisation(mode)
        solves.clear()
        method.zero_grad()
        method.backward(model.losses(inputs[0]), accumulate=True, counts=counts)
        method.backward(model.losses(inputs[1]), counts=counts)
        method.step()
        assert len(solves) == (name in SOLVED)
    no_synchronisation("default")


@pytest.mark.parametrize("options", [{"groups": 2}, {"max_norm": 1.0}, {"streaming": True}], ids=str)
def test_mao_does_not_wait(options, no_synchronisation):
    model, method = make("mao", "cuda", **options)
    x = batch(0).cuda()
    counts = {"a": torch.tensor(3.0, device="cuda"), "b": 2, "c": 6}
    for mode in ("default", "error"):
        no_synchronisation(mode)
        method.zero_grad()
        method.backward(model.losses(x), counts=counts)
        method.step()
    no_synchronisation("default")


@pytest.mark.parametrize("name", [name for name in eq.list_methods() if name not in ("rlw", "rlw-g", "graddrop")])
def test_a_count_of_0_on_the_device_leaves_the_task_out(name):
    results = []
    for device in ("cpu", "cuda"):
        model, method = make(name, device)
        model.double()
        if method.balancer is not None:
            method.balancer.double()
        step(model, method, batch(0).to(device).double(), "abc")
        method.zero_grad()
        labels = {"a": 3, "b": 0, "c": 5}
        counts = {task: torch.tensor(n, device=device) if device == "cuda" else n for task, n in labels.items()}
        method.backward(model.losses(batch(1).to(device).double()), counts=counts)
        if method.balancer is None:
            method.step()
            results.append({key: value.cpu() for key, value in model.state_dict().items()})
        else:
            results.append({k: torch.zeros(()) if g is None else g.cpu() for k, g in gradients(model).items()})
    for key, found in results[1].items():
        expected = results[0][key].expand(found.shape)  # zeros stand for None
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8, check_dtype=False, msg=key)


@pytest.mark.parametrize("name", ["ema", "gls", "famo", "gradnorm"])
def test_a_loss_that_cannot_be_used_is_left_out_and_said_in_a_later_step(name, no_synchronisation, solves):
    results = []
    for tasks in ("abc", "ac"):
        model, method = make(name, "cuda")
        for index in range(2):
            step(model, method, batch(index).cuda(), "abc")
        method.zero_grad()
        losses = model.losses(batch(2).cuda(), tasks)
        if "b" in losses:
            losses["b"] = losses["b"] * 0 - 1.5
        no_synchronisation("error")
        method.backward(losses)
        no_synchronisation("default")
        results.append({k: torch.zeros(()) if g is None else g.cpu() for k, g in gradients(model).items()})
        if "b" in losses:
            with pytest.warns(UserWarning, match="the loss of task 'b' is 0 or below"):
                step(model, method, batch(3).cuda(), "abc")
    for key, found in results[0].items():
        torch.testing.assert_close(found, results[1][key].expand(found.shape), rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", [name for name in eq.list_methods() if name != "graddrop"])  # draws on the device
def test_equals_the_cpu(name):
    results = []
    for device in ("cpu", "cuda"):
        model, method = make(name, device)
        model.double()
        if method.balancer is not None:
            method.balancer.double()
        for index, tasks in enumerate(PRESENT * 2):
            step(model, method, batch(index).to(device).double(), tasks)
        results.append({key: value.cpu() for key, value in model.state_dict().items()})
    for key, found in results[1].items():
        torch.testing.assert_close(found, results[0][key], rtol=1e-5, atol=1e-7, msg=key)


@pytest.mark.parametrize("name", [*eq.list_methods(), "single:b"])
def test_state_moves_between_devices(name):
    model, method = make(name, "cuda")
    for index, tasks in enumerate(PRESENT):
        step(model, method, batch(index).cuda(), tasks)
    twin, other = make(name, "cpu")
    twin.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    for index in range(2):
        step(twin, other, batch(index), "abc")
    assert all(p.isfinite().all() and p.device.type == "cpu" for p in twin.parameters())
    back, again = make(name, "cuda")
    back.load_state_dict(twin.state_dict())
    again.load_state_dict(copy.deepcopy(other.state_dict()))
    step(back, again, batch(3).cuda(), "abc")
    if again.balancer is not None:
        tensors = (*again.balancer.objective.buffers(), *again.balancer.objective.parameters())
        assert all(t.is_cuda for t in tensors)
        aggregator = again.balancer.aggregator
        if aggregator is not None:  # where weights are found on the host, so is state
            rows = isinstance(aggregator, RowStateAggregator)
            assert all(buffer.is_cuda == rows for buffer in aggregator.buffers())


def test_a_balancer_follows_the_losses():
    balancer = eq.Balancer(TASKS, eq.EMA(), eq.GradNorm())
    model = Network().cuda()
    balancer.backward(model.losses(batch(0).cuda()))
    assert all(buffer.is_cuda for buffer in balancer.objective.buffers())
    assert not any(buffer.is_cuda for buffer in balancer.aggregator.buffers())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["ema", "uw", "famo", "gradnorm", "imtl-g", "mgda", "pcgrad", "cagrad", "nash-mtl"])
def test_nan_is_not_checked_and_stays_out_of_the_state(name, value):
    model, method = make(name, "cuda")
    step(model, method, batch(0).cuda(), "abc")
    before = {k: v.clone() for k, v in method.balancer.state_dict().items() if isinstance(v, torch.Tensor)}
    losses = model.losses(batch(1).cuda())
    method.zero_grad()
    method.backward({**losses, "b": losses["b"] * value})
    after = {k: v for k, v in method.balancer.state_dict().items() if isinstance(v, torch.Tensor)}
    assert_same(after, before)
    assert gradients(model)["trunk.weight"].isnan().all()


@pytest.mark.parametrize("name", ["ema", "mao"])
def test_check_finite_raises_on_the_device_too(name):
    model = Network().cuda()
    if name == "mao":
        method = eq.MAO(model.parameters(), TASKS, check_finite=True)
    else:
        method = eq.Balancer(TASKS, eq.EMA(), check_finite=True)
    losses = model.losses(batch(0).cuda())
    with pytest.raises(ValueError, match="'b' is nan"):
        method.backward({**losses, "b": losses["b"] * torch.nan})
    assert all(gradient is None for gradient in gradients(model).values())


@pytest.mark.parametrize("name", ["ema", "uw", "gradnorm", "imtl-g", "mao"])
def test_half_precision_with_a_scaler(name):
    model, method = make(name, "cuda")
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**14)
    for index in range(8):
        method.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            losses = model.losses(batch(index).cuda())
        method.backward(losses, scaler=scaler)
        scaler.step(method.optimizer)
        scaler.update()
    assert all(p.isfinite().all() for p in model.parameters())
    assert not torch.equal(model.trunk.weight.cpu(), Network().trunk.weight)


def test_mao_in_a_cuda_graph_and_with_a_tensor_lr():
    models = [Network().cuda(), Network().cuda()]
    lr = torch.tensor(0.01, device="cuda")
    optimizers = [
        eq.MAO(models[0].parameters(), TASKS, lr=lr, weight_decay=0.1, capturable=True, fused=False),
        eq.MAO(models[1].parameters(), TASKS, lr=0.01, weight_decay=0.1, fused=True),
    ]
    for index in range(4):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.backward(model.losses(batch(index).cuda()))
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
