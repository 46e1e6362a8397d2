"""MAO against torch.optim.AdamW with one task, and against its formula in float64 with several."""

import copy
import math

import pytest
import torch
from mao_and_reference import PRESENT, STEPS, Reference, pair, run, trainable
from networks import TASKS, Network, assert_same, batch
from torch import nn

import equipoise as eq

# --- one task: AdamW, bit for bit -----------------------------------------------------------------------------------


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
