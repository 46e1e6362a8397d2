"""On a GPU: the CPU's numbers, and no waiting for the device but in sampled steps, where there is one transfer."""

import pytest
import torch
from monitor.test_attaching import assert_close
from networks import TASKS, Network, assert_same, batch, snapshot

import equipoise as eq

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NAMES = ["ew", "ema", "imtl-g", "gradnorm", "mao"]


def train(name, device, every, steps=6, dtype=torch.float32):
    model = Network().to(device, dtype)
    torch.manual_seed(0)
    method = eq.make_method(name, model, TASKS, lr=0.01)
    monitor = None if every is None else eq.BalanceMonitor(method, model, every=every)
    for index in range(steps):
        step(model, method, index)
    return model, method, monitor


def step(model, method, index, scaler=None):
    x = batch(index).to(model.trunk.weight.device)
    method.backward(model.losses(x), scaler=scaler)
    method.step()
    method.zero_grad()


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_the_cpu(name):
    _, _, expected = train(name, "cpu", 2, dtype=torch.float64)
    _, _, found = train(name, "cuda", 2, dtype=torch.float64)
    for one, other in zip(found.records, expected.records, strict=True):
        assert_close(one, other, tolerance=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_training_is_unchanged_bit_for_bit(name):
    results = []
    for every in (None, 2):
        model, method, _ = train(name, "cuda", every)
        results.append((snapshot(model), method.state_dict(), torch.cuda.get_rng_state()))
    assert_same(results[1], results[0])


@pytest.mark.parametrize("name", NAMES)
def test_steps_between_samples_do_not_wait(name):
    model, method, monitor = train(name, "cuda", 1000)
    inputs = [batch(index).cuda() for index in range(4)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x in inputs:
            method.backward(model.losses(x))
            method.step()
            method.zero_grad()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert monitor.recording.steps == [0]


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_one_transfer(name):
    model, method, monitor = train(name, "cuda", 1)
    x = batch(9).cuda()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        method.backward(model.losses(x))
        method.step()
        method.zero_grad()
    copies = [event for event in profiler.events() if "DtoH" in event.name]
    assert len(copies) == 1
    assert len(monitor.records) == 7


def test_a_dropped_step_is_no_sample():
    model = Network().cuda()
    method = eq.make_method("ew", model, TASKS)
    monitor = eq.BalanceMonitor(method, model, every=1)
    scaler = torch.amp.GradScaler("cuda", init_scale=1e38, backoff_factor=1e-36)
    for index in (0, 1):
        losses = model.losses(batch(index).cuda())
        method.backward({task: loss * (1e3 if index == 0 else 1) for task, loss in losses.items()}, scaler=scaler)
        scaler.step(method.optimizer)
        scaler.update()
        method.zero_grad()
        assert len(monitor.records) == index
