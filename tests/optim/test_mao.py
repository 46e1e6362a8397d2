"""MAO against torch.optim.AdamW with one task, and against its formula in float64 with several."""

import copy
import io
import math

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, gradients, snapshot
from torch import nn

import equipoise as eq

STEPS = 8


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


# --- one task: AdamW, bit for bit -----------------------------------------------------------------------------------


def run(model, optimizer, steps=range(STEPS), scheduler=None, tasks=("a",)):
    """Trains on the sum of `tasks` with AdamW, or on the tasks with MAO."""
    for index in steps:
        losses = model.losses(batch(index), tasks)
        if isinstance(optimizer, eq.MAO):
            optimizer.backward(losses)
        else:
            torch.autograd.backward(list(losses.values()))
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()


def pair(make, fused, mutate=lambda optimizer, model: None, tasks=("a",)):
    """The same model under MAO with one task and under AdamW, with the arguments that `make(model)` gives."""
    models = Network(), Network()
    groups, arguments = zip(*(make(model) for model in models), strict=True)
    optimizers = (
        eq.MAO(groups[0], list(tasks), fused=fused, **arguments[0]),
        torch.optim.AdamW(groups[1], fused=fused, foreach=False, **arguments[1]),
    )
    for optimizer, model in zip(optimizers, models, strict=True):
        mutate(optimizer, model)
    return models, optimizers


def groups_with_options(model):
    return [
        {"params": list(model.trunk.parameters()), "lr": 0.1, "weight_decay": 0.0},
        {"params": list(model.branch.parameters()), "betas": (0.5, 0.9)},
        {"params": list(model.heads.parameters()), "eps": 1e-2, "weight_decay": 0.3},
    ], {"lr": 0.01, "weight_decay": 0.05}


def late_group(optimizer, model):
    optimizer.add_param_group({"params": list(model.heads.parameters()), "lr": 0.5, "weight_decay": 0.2})


CASES = {
    "defaults": (lambda m: (trainable(m), {"weight_decay": 0.0}), None),
    "weight decay": (lambda m: (trainable(m), {"lr": 0.05, "weight_decay": 0.3}), None),
    "betas": (lambda m: (trainable(m), {"lr": 0.05, "betas": (0.0, 0.9), "eps": 1e-3, "weight_decay": 0.0}), None),
    "eps 0": (lambda m: (trainable(m), {"eps": 1e-30, "weight_decay": 0.1}), None),
    "tensor lr": (lambda m: (trainable(m), {"lr": torch.tensor(0.03), "weight_decay": 0.1}), None),
    "groups": (groups_with_options, None),
    "add_param_group": (lambda m: ([*m.trunk.parameters(), *m.branch.parameters()], {"weight_decay": 0.0}), late_group),
    "names": (lambda m: ([(n, p) for n, p in m.named_parameters() if p.requires_grad], {"weight_decay": 0.1}), None),
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_one_task_is_adamw_bit_for_bit(case, fused):
    make, mutate = CASES[case]
    models, optimizers = pair(make, fused, mutate or (lambda optimizer, model: None))
    for model, optimizer in zip(models, optimizers, strict=True):
        run(model, optimizer)
    assert_same(*(model.state_dict() for model in models))
    assert not torch.equal(models[0].trunk.weight, Network().trunk.weight)


SCHEDULERS = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.1),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=STEPS + 1),  # moves beta1
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS),
    "warmup": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: (step + 1) / STEPS),
}


@pytest.mark.parametrize("lr", [0.05, "tensor"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(scheduler, lr):
    models, optimizers = pair(
        lambda m: (trainable(m), {"lr": torch.tensor(0.05) if lr == "tensor" else lr, "weight_decay": 0.1}), fused=True
    )
    for model, optimizer in zip(models, optimizers, strict=True):
        run(model, optimizer, scheduler=SCHEDULERS[scheduler](optimizer))
    assert_same(*(model.state_dict() for model in models))


def test_state_of_one_task_is_adamws():
    models, optimizers = pair(lambda m: (trainable(m), {"weight_decay": 0.1}), fused=False)
    for model, optimizer in zip(models, optimizers, strict=True):
        run(model, optimizer)
    mine, theirs = (optimizer.state[model.trunk.weight] for model, optimizer in zip(models, optimizers, strict=True))
    assert_same(mine["exp_avg.a"], theirs["exp_avg"])
    assert_same(mine["exp_avg_sq.a"], theirs["exp_avg_sq"])
    assert mine["step"].tolist() == [STEPS]


# --- K tasks: the formula -------------------------------------------------------------------------------------------


class Reference:
    """`θ ← θ − Σ_n η m̂_n/(√v̂_n + ε) − η λ θ` in float64, parameter by parameter and task by task."""

    def __init__(self, model, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.model, self.lr, self.betas, self.eps, self.weight_decay = model, lr, betas, eps, weight_decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.first, self.second, self.times = {}, {}, {}

    def gradients(self, losses):
        return {
            task: {
                name: g
                for name, g in zip(
                    self.parameters,
                    torch.autograd.grad(loss, list(self.parameters.values()), retain_graph=True, allow_unused=True),
                    strict=True,
                )
                if g is not None
            }
            for task, loss in losses.items()
        }

    @torch.no_grad()
    def step(self, rows):
        (beta1, beta2), eta = self.betas, self.lr
        for name, parameter in self.parameters.items():
            update = torch.zeros_like(parameter)
            tasks = [task for task in rows if name in rows[task]]
            for task in tasks:
                key, g = (task, name), rows[task][name]
                self.times[key] = t = self.times.get(key, 0) + 1
                self.first[key] = m = beta1 * self.first.get(key, torch.zeros_like(g)) + (1 - beta1) * g
                self.second[key] = v = beta2 * self.second.get(key, torch.zeros_like(g)) + (1 - beta2) * g * g
                update += eta * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + self.eps)
            if tasks:
                parameter.sub_(update + eta * self.weight_decay * parameter)


PRESENT = ["abc", "ac", "abc", "b", "ab", "c", "abc", "a", "bc", "abc"]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.02},
        {"lr": 0.05, "weight_decay": 0.4},
        {"lr": 0.01, "betas": (0.0, 0.9), "eps": 1e-3},
        {"lr": 0.01, "betas": (0.5, 0.7), "weight_decay": 0.1},
    ],
    ids=str,
)
def test_several_tasks_are_the_formula_with_missing_tasks_and_partial_sharing(options, fused):
    model, twin = Network().double(), Network().double()
    optimizer, reference = eq.MAO(model.parameters(), TASKS, fused=fused, **options), Reference(twin, **options)
    for index, present in enumerate(PRESENT):
        weights = optimizer.backward(model.losses(batch(index), present))
        optimizer.step()
        optimizer.zero_grad()
        reference.step(reference.gradients(twin.losses(batch(index), present)))
        assert {task: w.item() for task, w in weights.items()} == dict.fromkeys(present, 1.0)
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    state = optimizer.state[model.branch.weight]
    assert state["step"].tolist() == [sum("a" in p for p in PRESENT), sum("b" in p for p in PRESENT), 0.0]
    assert "exp_avg.c" not in state


def test_fused_equals_the_loop():
    results = []
    for fused in (True, False):
        model = Network().double()
        run(model, eq.MAO(model.parameters(), TASKS, lr=0.01, weight_decay=0.1, fused=fused), tasks=TASKS)
        results.append(list(model.parameters()))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_a_tasks_scale_does_not_matter(factor):
    models = [Network().double(), Network().double()]
    for model, scale in zip(models, (1.0, factor), strict=True):
        optimizer = eq.MAO(model.parameters(), TASKS, lr=0.01, eps=1e-30)
        for index in range(STEPS):
            losses = model.losses(batch(index))
            optimizer.backward({**losses, "b": scale * losses["b"]})
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)


def test_agreeing_tasks_take_as_many_steps():
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = eq.MAO([p], ["a", "b", "c"], lr=0.1, eps=1e-12)
    optimizer.backward({task: (scale * p).sum() for task, scale in zip("abc", (1.0, 10.0, 0.01), strict=True)})
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((3,), -0.3, dtype=torch.float64))


def test_a_left_out_task_keeps_its_moments():
    model = Network()
    optimizer = eq.MAO(model.parameters(), TASKS)
    run(model, optimizer, tasks=TASKS)
    before = copy.deepcopy(optimizer.state_dict()["state"])
    own = {name: p.clone() for name, p in model.named_parameters() if name.startswith(("own", "heads.c"))}
    run(model, optimizer, tasks=("a", "b"))
    after = optimizer.state_dict()["state"]
    kept = 0
    for index, state in before.items():
        for key, value in state.items():
            if key.endswith(".c"):
                kept += 1
                assert_same(after[index][key], value)
            elif key == "step":
                assert after[index][key][2] == value[2]
            else:
                assert not torch.equal(after[index][key], value), key
    assert kept == 2 * sum(1 for name, p in model.named_parameters() if name.startswith(("trunk", "own", "heads.c")))
    for name, value in own.items():
        assert torch.equal(model.get_parameter(name), value)


# --- max_norm -------------------------------------------------------------------------------------------------------


def test_max_norm_clips_each_tasks_gradient_over_all_parameters():
    limit = 0.5
    model, twin = Network().double(), Network().double()
    optimizer = eq.MAO(model.parameters(), TASKS, lr=0.02, max_norm=limit)
    reference = Reference(twin, lr=0.02)
    norms = []
    for index, present in enumerate(PRESENT):
        optimizer.backward(model.losses(batch(index), present))
        optimizer.step()
        optimizer.zero_grad()
        rows = reference.gradients(twin.losses(batch(index), present))
        for row in rows.values():
            norm = math.sqrt(sum(float(g.square().sum()) for g in row.values()))
            norms.append(norm)
            for name in row:
                row[name] = row[name] * min(1.0, limit / norm)
        reference.step(rows)
    assert min(norms) < limit < max(norms)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_max_norm_with_one_task_is_clip_grad_norm():
    model, twin = Network(), Network()
    mine = eq.MAO(trainable(model), ["a"], lr=0.05, max_norm=0.1, fused=False)
    theirs = torch.optim.AdamW(trainable(twin), lr=0.05, weight_decay=0.0, foreach=False)
    for index in range(STEPS):
        mine.backward(model.losses(batch(index), ["a"]))
        mine.step()
        mine.zero_grad()
        twin.losses(batch(index), ["a"])["a"].backward()
        torch.nn.utils.clip_grad_norm_(trainable(twin), 0.1)
        theirs.step()
        theirs.zero_grad()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("streaming", [False, True])
def test_max_norm_where_a_task_reaches_nothing_that_is_held(streaming):
    held, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = eq.MAO([held], ["a", "b"], lr=0.1, max_norm=1.0, streaming=streaming)
    optimizer.backward({"a": held.square().sum(), "b": other.square().sum()})
    optimizer.step()
    torch.testing.assert_close(held.detach(), torch.full((2,), 0.9))
    torch.testing.assert_close(other.grad, torch.full((2,), 2.0))


# --- what is expected of an optimizer -------------------------------------------------------------------------------


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


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"lr": -1.0}, ValueError, "lr must be a finite number ≥ 0, found -1"),
        ({"lr": math.nan}, ValueError, "lr must be"),
        ({"lr": torch.tensor(-1.0)}, ValueError, "lr must be"),
        ({"betas": (1.0, 0.9)}, ValueError, "beta1 must be .* < 1, found 1"),
        ({"betas": (0.9, -0.1)}, ValueError, "beta2 must be .*found -0.1"),
        ({"betas": (0.9,)}, ValueError, "betas must be two numbers"),
        ({"eps": -1e-8}, ValueError, "eps must be"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be"),
        ({"max_norm": 0.0}, ValueError, "max_norm must be a finite number > 0, found 0"),
        ({"tasks": ["a", "a"]}, ValueError, "found twice: 'a'"),
        ({"tasks": []}, ValueError, "tasks is empty"),
        ({"tasks": "a"}, TypeError, "single string"),
        ({"params": []}, ValueError, "empty parameter list"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        eq.MAO(**{"params": [nn.Parameter(torch.ones(1))], "tasks": ["a"], **arguments})


@pytest.mark.parametrize(
    "group", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": -1.0}, {"weight_decay": -1.0}, "twice"], ids=str
)
def test_a_bad_group_is_not_added(group):
    held, new = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = eq.MAO([held], ["a"])
    before = snapshot(optimizer)
    with pytest.raises(ValueError):
        optimizer.add_param_group({"params": [held]} if group == "twice" else {"params": [new], **group})
    assert_same(snapshot(optimizer), before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_nothing(value):
    models = [Network(), Network()]
    optimizers = [eq.MAO(trainable(m), TASKS) for m in models]
    for index, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
        run(model, optimizer, tasks=TASKS)
        optimizer.backward(model.losses(batch(0)))
        if index == 0:
            losses = model.losses(batch(1))
            with pytest.raises(ValueError, match=f"'c' is {value:g}: a NaN or infinite loss"):
                optimizer.backward({**losses, "c": losses["c"] * value})
        optimizer.step()
    assert_same(snapshot(models[0], optimizers[0]), snapshot(models[1], optimizers[1]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_unchecked_the_gradient_of_such_a_loss_counts_as_zero(value):
    """Without the check, the way of accelerators: never in the moments, and the other tasks go on."""
    model, twin = Network().double(), Network().double()
    optimizer = eq.MAO(model.parameters(), TASKS, lr=0.1, check_finite=False)
    reference = Reference(twin, lr=0.1)
    for index in range(4):
        losses, expected = model.losses(batch(index)), twin.losses(batch(index))
        if index == 2:
            losses["b"], expected["b"] = losses["b"] * value, expected["b"] * 0.0
        optimizer.backward(losses)
        optimizer.step()
        optimizer.zero_grad()
        reference.step(reference.gradients(expected))
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_unchecked_nan_reaches_grad_of_parameters_it_does_not_hold():
    model = Network()
    optimizer = eq.MAO(model.trunk.parameters(), TASKS, check_finite=False)
    losses = model.losses(batch(0))
    optimizer.backward({**losses, "a": losses["a"] * math.nan})
    optimizer.step()
    assert all(p.isfinite().all() for p in model.trunk.parameters())
    assert model.heads["a"].weight.grad.isnan().all()
    assert model.heads["b"].weight.grad.isfinite().all()
