"""On a GPU: no waiting for it in a step, and state that goes where the model goes."""

import copy

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, gradients

import equipoise as eq

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

POTENTIALS = {"a": 0.9, "b": 0.6, "c": 0.8}
AGGREGATORS = {"gradnorm", "imtl-g", "imtl", "mgda", "pcgrad", "graddrop", "cagrad", "nash-mtl"}
LOSS_BASED = [name for name in eq.list_methods() if name not in AGGREGATORS]
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


@pytest.mark.parametrize("name", [*LOSS_BASED, "single:a", "gradnorm", "imtl-g", "imtl"])
def test_a_step_does_not_wait_for_the_device(name, no_synchronisation):
    model, method = make(name, "cuda")
    inputs = [batch(index).cuda() for index in range(2 * len(PRESENT))]
    for x, tasks in zip(inputs, PRESENT, strict=False):  # what happens once may wait
        step(model, method, x, tasks)
    no_synchronisation("error")
    for x, tasks in zip(inputs[len(PRESENT) :], PRESENT, strict=True):
        step(model, method, x, tasks)
    no_synchronisation("default")
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["ew", "ema", "famo", "gradnorm", "mao"])
def test_counts_and_micro_batches_do_not_wait_either(name, no_synchronisation):
    model, method = make(name, "cuda")
    inputs = [batch(index).cuda() for index in range(2)]
    counts = {"a": torch.tensor(3.0, device="cuda"), "b": 2, "c": 6}
    for mode in ("default", "error"):
        no_synchronisation(mode)
        method.zero_grad()
        method.backward(model.losses(inputs[0]), accumulate=True, counts=counts)
        method.backward(model.losses(inputs[1]), counts=counts)
        method.step()
    no_synchronisation("default")


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
        tensors = (*again.balancer.buffers(), *again.balancer.parameters())
        assert all(t.is_cuda for t in tensors)


def test_a_balancer_follows_the_losses():
    balancer = eq.Balancer(TASKS, eq.EMA(), eq.GradNorm())
    model = Network().cuda()
    balancer.backward(model.losses(batch(0).cuda()))
    assert all(buffer.is_cuda for buffer in balancer.buffers())


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
