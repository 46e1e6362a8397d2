"""What every registered method has to satisfy; to be in the registry is to be under these tests."""

import copy
import io
import pickle

import pytest
import torch
from networks import TASKS, assert_same, batch, snapshot
from registry import (
    LEARNED,
    METRICS,
    NAMES,
    PRESENT,
    RANDOM,
    STATELESS,
    every_method,
    is_optimizer,
    make,
    step,
    train,
)


def tensors(state):
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors(value)


def finite(state):
    return all(t.isfinite().all() for t in tensors(state) if t.is_floating_point())


@every_method
def test_trains_and_stays_finite(name):
    model, method = make(name)
    assert method.name == name
    assert method.tasks == TASKS
    first = copy.deepcopy(model.state_dict())
    for index, tasks in enumerate(PRESENT):
        weights = step(model, method, index, tasks)
        expected = [t for t in tasks if not name.startswith("single:") or name.endswith(t)]
        assert list(weights) == expected
        for weight in weights.values():
            assert weight.dim() == 0
            assert not weight.requires_grad
            assert weight.isfinite()
        assert finite(model.state_dict())
        assert finite(method.state_dict())
        if index % 4 == 3:
            method.end_epoch(METRICS[index // 4])
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, first[key])}
    if name.startswith("single:"):
        task = name[-1]
        assert changed == {
            k for k in first if k.startswith(("trunk", f"heads.{task}", "own" if task == "c" else "branch"))
        }
    else:
        assert changed == {k for k in first if not k.startswith(("frozen", "unused"))}


@every_method
def test_loss_falls_on_one_batch(name):
    model, method = make(name, lr=0.01, weight_decay=0.0)
    tasks = [name[-1]] if name.startswith("single:") else TASKS
    with torch.no_grad():
        before = model.losses(batch(0))
    for _ in range(40):
        method.zero_grad()
        method.backward(model.losses(batch(0)))
        method.step()
        if method.needs_after_step:
            method.after_step(model.losses(batch(0)))
    with torch.no_grad():
        after = model.losses(batch(0))
    assert sum(after[t].log() for t in tasks) < sum(before[t].log() for t in tasks)


@every_method
def test_resumes_bit_for_bit(name):
    """Saved in the middle, loaded into a new method with `weights_only=True`; the first step after lacks tasks."""
    model, method = make(name)
    train(model, method, 0, 6)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "method": method.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin, resumed = make(name, seed=77, lr=9.0)
    twin.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["method"])
    assert_same(resumed.state_dict(), method.state_dict())
    train(model, method, 6)
    train(twin, resumed, 6)
    assert_same(twin.state_dict(), model.state_dict())
    assert_same(resumed.state_dict(), method.state_dict())


@every_method
@pytest.mark.parametrize("how", ["copied", "pickled", "saved"])
def test_goes_on_as_a_copy(name, how):
    """Model and method together, after steps that lack tasks; what the copy does leaves the first alone."""
    model, method = make(name)
    train(model, method, 0, 6)
    method.zero_grad()
    if how == "copied":
        twin, other = copy.deepcopy((model, method))
    elif how == "pickled":
        twin, other = pickle.loads(pickle.dumps((model, method)))
    else:
        file = io.BytesIO()
        torch.save((model, method), file)
        file.seek(0)
        twin, other = torch.load(file, weights_only=False)
    before = snapshot(model, method)
    train(twin, other, 6)
    assert_same(snapshot(model, method), before)
    train(model, method, 6)
    assert_same(snapshot(twin, other), snapshot(model, method))


@every_method
def test_a_balancers_state_is_tensors_whose_sizes_stay(name):
    """Formats of checkpoints ask for it: safetensors for the one, PyTorch's distributed ones for the other."""
    if is_optimizer(name):
        return
    model, method = make(name)
    shapes = [{key: value.shape for key, value in method.balancer.state_dict().items()}]
    for stop in (3, 12):
        train(model, method, stop=stop)
        shapes.append({key: value.shape for key, value in method.balancer.state_dict().items()})
    assert shapes[0] == shapes[1] == shapes[2]


@every_method
def test_goes_back_to_a_saved_state(name):
    """Loading into a method that has gone on forgets what came after."""
    model, method = make(name)
    train(model, method, 0, 3)
    saved = copy.deepcopy((model.state_dict(), method.state_dict()))
    train(model, method, 3)
    expected = copy.deepcopy((model.state_dict(), method.state_dict()))
    model.load_state_dict(saved[0])
    method.load_state_dict(copy.deepcopy(saved[1]))
    assert_same(method.state_dict(), saved[1])
    train(model, method, 3)
    assert_same((model.state_dict(), method.state_dict()), expected)


@every_method
def test_saving_changes_nothing(name):
    runs = []
    for save in (False, True):
        model, method = make(name)
        for index in range(6):
            step(model, method, index, PRESENT[index])
            if save:
                method.state_dict()
        runs.append(snapshot(model, method))
    assert_same(*runs)


@every_method
def test_is_determined_by_the_seed(name):
    results = []
    for seed in (0, 0, 1):
        model, method = make(name, seed=seed)
        train(model, method, 0, 4)
        results.append(model.state_dict())
    assert_same(results[0], results[1])
    assert all(torch.equal(results[0][k], results[2][k]) for k in results[0]) == (name not in RANDOM)


@every_method
def test_does_not_disturb_the_default_generator(name):
    model, method = make(name)
    before = torch.get_rng_state()
    train(model, method, 0, 4)
    assert torch.equal(torch.get_rng_state(), before)


@every_method
def test_order_of_the_mapping_does_not_matter(name):
    results = []
    for reverse in (False, True):
        model, method = make(name)
        for index in range(4):
            method.zero_grad()
            losses = model.losses(batch(index))
            method.backward(dict(reversed(losses.items())) if reverse else losses)
            method.step()
        results.append(snapshot(model, method))
    assert_same(*results)


@pytest.mark.parametrize("pair", ["ab", "ac", "bc"])
@every_method
def test_a_task_that_is_never_there_might_as_well_not_exist(name, pair):
    """With two of three tasks in every step a method for three does what a method for two does."""
    if name.startswith("single:") and name[-1] not in pair:
        model, method = make(name)
        before = snapshot(model, method)
        train(model, method, 0, 4, present=[pair] * 4)
        assert_same(snapshot(model), before[:2])
        return
    model, method = make(name, dtype=torch.float64)
    twin, smaller = make(name, tasks=tuple(pair), dtype=torch.float64)
    train(model, method, 0, 7, present=[pair] * 7)
    train(twin, smaller, 0, 7, present=[pair] * 7)
    for (key, found), expected in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        if name in LEARNED:  # AdamW's arithmetic on a vector of three rounds differently from one of two
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=key)
        else:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12, msg=key)


def state_of(method, position, task):
    """What the method keeps of a task: entries of `[K]` and `[K, K]` tensors, and MAO's moments."""
    kept: list[torch.Tensor] = []
    if method.balancer is None:
        for state in method.optimizer.state.values():
            kept += [state["step"][position], *(value for key, value in state.items() if key.endswith(f".{task}"))]
    else:
        for part in (method.balancer.objective, method.balancer.aggregator):
            if part is not None:
                kept += [t[position] for t in part.buffers()]
                kept += [t[:, position] for name, t in part.named_buffers() if name in part._pairs]
                kept += [p for name, p in part.named_parameters() if name.endswith(f".{position}")]
    return [t.detach().clone() for t in kept]


@pytest.mark.parametrize("absent", TASKS)
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("single:")])
def test_the_state_of_an_absent_task_is_untouched(name, absent):
    model, method = make(name)
    train(model, method, 0, 5)
    method.end_epoch()
    position = TASKS.index(absent)
    before = state_of(method, position, absent)
    for index in range(5, 8):
        step(model, method, index, [t for t in TASKS if t != absent])
        method.end_epoch({t: 0.5 for t in TASKS if t != absent})
    assert bool(before) == (name not in STATELESS)
    assert_same(state_of(method, position, absent), before)


@pytest.mark.parametrize("name", [n for n in NAMES if not is_optimizer(n)])
def test_double(name):
    model, method = make(name)
    train(model, method, 0, 4)
    model.double()
    method.balancer.double()
    for index in range(4, 8):
        method.zero_grad()
        method.backward(model.losses(batch(index), PRESENT[index]))
        for parameter in (*model.parameters(), *method.balancer.parameters()):
            assert parameter.dtype == torch.float64
            assert parameter.grad is None or (parameter.grad.dtype == torch.float64 and parameter.grad.isfinite().all())


@every_method
def test_bfloat16_model(name):
    model, method = make(name, dtype=torch.bfloat16, lr=1e-3)
    train(model, method, 0, 6)
    assert finite(model.state_dict())
    assert finite(method.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", [n for n in NAMES if not is_optimizer(n)])
def test_state_never_becomes_narrower(name, dtype):
    """A balancer that is part of a model goes along with `.bfloat16()`; what it keeps does not."""
    results = []
    for moved in (True, False):
        model, method = make(name)
        for start in (0, 6):
            if moved:
                method.balancer.to(dtype)
            train(model, method, start, start + 6)
        results.append((model.state_dict(), method.state_dict()))
    assert_same(*results)


@every_method
def test_micro_batches_and_counts(name):
    """Accepts every keyword, and with one micro-batch and counts does what it does without."""
    results = []
    for counts in (None, dict.fromkeys(TASKS, 4)):
        model, method = make(name, dtype=torch.float64)
        for index in range(3):
            method.zero_grad()
            method.backward(model.losses(batch(index)), counts=counts)
            method.step()
        results.append(model.state_dict())
    for key, found in results[0].items():
        torch.testing.assert_close(found, results[1][key], rtol=1e-6, atol=1e-9)
    model, method = make(name)
    method.backward(model.losses(batch(0)), accumulate=True)
    method.backward(model.losses(batch(1)), accumulate=True, retain_graph=True)
    method.backward(model.losses(batch(2)))
    method.step()
    assert finite(model.state_dict())


@every_method
def test_grad_scaler(name):
    """What is learned with a scaler is what is learned without, and an overflow leaves everything as it was."""
    results = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**12)):
        model, method = make(name, dtype=torch.float64)
        for index in range(5):
            method.zero_grad()
            losses = model.losses(batch(index))
            if index == 3:
                if scaler is None:
                    continue
                broken = (model.trunk.weight - model.trunk.weight.detach())[0, 0].sqrt()
                losses = {task: loss + broken for task, loss in losses.items()}
                before = snapshot(model, method)[::2]
            method.backward(losses, scaler=scaler)
            if scaler is None:
                method.step()
            else:
                scaler.step(method.optimizer)
                scaler.update()
            if index == 3:
                assert_same(snapshot(model, method)[::2], before)
        results.append(model.state_dict())
    for key, found in results[0].items():
        torch.testing.assert_close(found, results[1][key], rtol=1e-6, atol=1e-9, msg=key)
