"""MAO does what is expected of an optimizer: states, copies, closures, hooks, GradScaler."""

import copy
import io

import pytest
import torch
from mao_and_reference import PRESENT, STEPS, pair, run, trainable
from networks import TASKS, Network, assert_same, batch, gradients, snapshot
from torch import nn

import equipoise as eq


def mixed_run(model, optimizer, start, stop):
    for index in range(start, stop):
        run(model, optimizer, steps=[index], tasks=PRESENT[index])


@pytest.mark.parametrize("fused", [True, False])
def test_state_dict_resumes_bit_for_bit(fused):
    model = Network()
    optimizer = eq.MAO(trainable(model), TASKS, lr=0.02, weight_decay=0.1, fused=fused)
    mixed_run(model, optimizer, 0, 4)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin = Network(seed=5)
    resumed = eq.MAO(trainable(twin), TASKS, lr=3.0, fused=fused)
    twin.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert_same(resumed.state_dict(), optimizer.state_dict())
    mixed_run(model, optimizer, 4, len(PRESENT))
    mixed_run(twin, resumed, 4, len(PRESENT))
    assert_same(twin.state_dict(), model.state_dict())
    assert_same(resumed.state_dict(), optimizer.state_dict())


def test_state_moves_between_fused_and_not():
    model = Network().double()
    optimizer = eq.MAO(trainable(model), TASKS, lr=0.02, fused=True)
    mixed_run(model, optimizer, 0, 4)
    twin = copy.deepcopy(model)
    other = eq.MAO(trainable(twin), TASKS, lr=0.02, fused=False)
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["fused"] = False
    other.load_state_dict(state)
    mixed_run(model, optimizer, 4, len(PRESENT))
    mixed_run(twin, other, 4, len(PRESENT))
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)


def test_a_copy_goes_on_by_itself():
    model = Network()
    optimizer = eq.MAO(trainable(model), TASKS, lr=0.02, max_norm=1.0, check_finite=True)
    mixed_run(model, optimizer, 0, 4)
    twin, other = copy.deepcopy((model, optimizer))
    assert (other.max_norm, other.check_finite, other.tasks) == (1.0, True, TASKS)
    before = snapshot(model, optimizer)
    mixed_run(twin, other, 4, len(PRESENT))
    assert_same(snapshot(model, optimizer), before)
    mixed_run(model, optimizer, 4, len(PRESENT))
    assert_same(twin.state_dict(), model.state_dict())


@pytest.mark.parametrize("through", ["made", "copied", "loaded"])
@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda p: eq.MAO(p, ["c", "b", "a"]), r"other tasks: found \['c', 'b', 'a'\], expected \['a', 'b', 'c'\]"),
        (lambda p: eq.MAO(p, ["a", "b"]), "other tasks"),
        (lambda p: torch.optim.AdamW(p), "not of MAO"),
    ],
)
def test_state_of_another_is_refused_before_anything_changes(other, words, through):
    model = Network()
    optimizer = eq.MAO(trainable(model), TASKS)
    run(model, optimizer, tasks=TASKS)
    if through == "copied":
        model, optimizer = copy.deepcopy((model, optimizer))
    elif through == "loaded":
        optimizer.load_state_dict(optimizer.state_dict())
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match=words):
        optimizer.load_state_dict(other(trainable(model)).state_dict())
    assert_same(snapshot(model, optimizer), before)


def test_state_of_another_number_of_parameters_is_refused():
    model = Network()
    optimizer = eq.MAO(trainable(model), TASKS)
    run(model, optimizer, tasks=TASKS)
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError):
        optimizer.load_state_dict(eq.MAO(model.trunk.parameters(), TASKS).state_dict())
    assert_same(snapshot(model, optimizer), before)


def test_two_backward_calls_add_up():
    models = [Network().double(), Network().double()]
    split, whole = (eq.MAO(m.parameters(), TASKS, lr=0.1) for m in models)
    for index in range(0, STEPS, 2):
        split.backward(models[0].losses(batch(index)))
        split.backward(models[0].losses(batch(index + 1), ["a", "c"]))
        split.step()
        split.zero_grad()
        first, second = models[1].losses(batch(index)), models[1].losses(batch(index + 1), ["a", "c"])
        whole.backward({task: loss + second[task] if task in second else loss for task, loss in first.items()})
        whole.step()
        whole.zero_grad()
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_forgets(set_to_none):
    model = Network()
    optimizer = eq.MAO(trainable(model), TASKS)
    before = snapshot(model, optimizer)
    optimizer.backward(model.losses(batch(0)))
    optimizer.zero_grad(set_to_none)
    optimizer.step()
    assert_same(snapshot(model, optimizer)[::2], before[::2])


def test_step_without_backward_does_nothing():
    model = Network()
    optimizer = eq.MAO(trainable(model), TASKS, weight_decay=0.5)
    before = snapshot(model)
    assert optimizer.step() is None
    assert_same(snapshot(model), before)


def test_step_twice_takes_the_same_gradients_again():
    models, optimizers = pair(lambda m: (trainable(m), {"lr": 0.1, "weight_decay": 0.1}), fused=True)
    optimizers[0].backward(models[0].losses(batch(0), ["a"]))
    models[1].losses(batch(0), ["a"])["a"].backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.step()
    assert_same(*(model.state_dict() for model in models))


def test_closure():
    models, optimizers = pair(lambda m: (trainable(m), {"lr": 0.1, "weight_decay": 0.0}), fused=True)

    def closure(model, optimizer, index):
        def compute():
            optimizer.zero_grad()
            losses = model.losses(batch(index), ["a"])
            assert torch.is_grad_enabled()
            if isinstance(optimizer, eq.MAO):
                optimizer.backward(losses)
            else:
                losses["a"].backward()
            return losses["a"].item()

        return compute

    for index in range(STEPS):
        values = [o.step(closure(m, o, index)) for m, o in zip(models, optimizers, strict=True)]
        assert values[0] == values[1]
    assert_same(*(model.state_dict() for model in models))


def test_hooks():
    model = Network()
    optimizer = eq.MAO(trainable(model), TASKS)
    calls = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: calls.append("before"))
    optimizer.register_step_post_hook(lambda o, args, kwargs: calls.append("after"))
    optimizer.register_state_dict_post_hook(lambda o, state: calls.append("saved"))
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("loaded"))
    run(model, optimizer, steps=[0], tasks=TASKS)
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["before", "after", "saved", "loaded"]


def test_a_hook_may_translate_what_is_loaded():
    """The check sees what hooks made of the state, when they are registered to run first."""
    model = Network()
    renamed = eq.MAO(trainable(model), ["x", "b", "c"])
    run_losses = model.losses(batch(0))
    renamed.backward({"x": run_losses["a"], "b": run_losses["b"], "c": run_losses["c"]})
    renamed.step()
    optimizer = eq.MAO(trainable(model), TASKS)

    def rename(_, state):
        state = copy.deepcopy(state)
        for group in state["param_groups"]:
            group["tasks"] = list(TASKS)
        for values in state["state"].values():
            for moment in ("exp_avg", "exp_avg_sq"):
                if f"{moment}.x" in values:
                    values[f"{moment}.a"] = values.pop(f"{moment}.x")
        return state

    optimizer.register_load_state_dict_pre_hook(rename, prepend=True)
    optimizer.load_state_dict(renamed.state_dict())
    found = optimizer.state[model.trunk.weight]
    assert_same(found["exp_avg.a"], renamed.state[model.trunk.weight]["exp_avg.x"])


def test_parameters_it_does_not_hold_get_grad():
    model, twin = Network().double(), Network().double()
    optimizer = eq.MAO(model.trunk.parameters(), TASKS)
    for index in range(2):
        optimizer.backward(model.losses(batch(index)))
        torch.autograd.backward(list(twin.losses(batch(index)).values()))
    for (name, found), wanted in zip(gradients(model).items(), gradients(twin).values(), strict=True):
        if name.startswith("trunk"):
            assert found.norm() < 1e-20  # there to see whether it is cleared
        elif wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_parameters_no_loss_reaches_stay_as_they_are():
    """No gradient, no decay, as in AdamW."""
    model = Network()
    run(model, eq.MAO(model.parameters(), TASKS, weight_decay=0.5), tasks=TASKS)
    for part in ("unused", "frozen"):
        assert_same(getattr(model, part).state_dict(), getattr(Network(), part).state_dict())


def test_tied_weights_are_one_parameter():
    table = nn.Embedding(5, 3).double()
    decoder = nn.Linear(3, 5, bias=False).double()
    decoder.weight = table.weight
    before = table.weight.detach().clone()
    optimizer = eq.MAO({*table.parameters(), *decoder.parameters()}, ["a", "b"], lr=0.1, eps=1e-12)
    rows = torch.tensor([0, 1])
    losses = {"a": decoder(table(rows)).square().sum(), "b": table(rows).sum()}
    first, second = (torch.autograd.grad(loss, table.weight, retain_graph=True)[0] for loss in losses.values())
    optimizer.backward(losses)
    optimizer.step()
    torch.testing.assert_close(table.weight.detach(), before - 0.1 * (first.sign() + second.sign()))


def test_retain_graph():
    model = Network()
    optimizer = eq.MAO(trainable(model), TASKS)
    losses = model.losses(batch(0))
    optimizer.backward(losses, retain_graph=True)
    optimizer.backward(losses)
    with pytest.raises(RuntimeError, match="second time"):
        optimizer.backward(losses)


# --- GradScaler -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [False, True])
def test_scaler_changes_nothing_but_skips_overflows(accumulate):
    model, twin = Network().double(), Network().double()
    scaled, plain = (eq.MAO(m.parameters(), TASKS, lr=0.05) for m in (model, twin))
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for index in range(6):
        overflow = index == 3
        losses = model.losses(batch(index))
        if overflow:
            losses["b"] = losses["b"] + (model.trunk.weight - model.trunk.weight.detach())[0, 0].sqrt()
            before = snapshot(model, scaled)[::2]
        if accumulate:
            scaled.backward(losses, scaler=scaler, accumulate=True)
            losses = model.losses(batch(index + 50))
        scaled.backward(losses, scaler=scaler)
        scaler.step(scaled)
        scaler.update()
        scaled.zero_grad()
        if overflow:
            assert_same(snapshot(model, scaled)[::2], before)
            assert scaler.get_scale() == 128.0
            continue
        if accumulate:
            plain.backward(twin.losses(batch(index)), accumulate=True)
        plain.backward(twin.losses(batch(index + 50) if accumulate else batch(index)))
        plain.step()
        plain.zero_grad()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_scaler_with_clipping():
    """Task gradients are clipped unscaled, and `unscale_` of the rest leaves them alone."""
    model, twin = Network().double(), Network().double()
    optimizer, plain = (eq.MAO(m.parameters(), TASKS, lr=0.1, max_norm=0.5) for m in (model, twin))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    for index in range(3):
        optimizer.backward(model.losses(batch(index)), scaler=scaler)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        plain.backward(twin.losses(batch(index)))
        plain.step()
        plain.zero_grad()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert all("grad_step" not in state for state in optimizer.state.values())
