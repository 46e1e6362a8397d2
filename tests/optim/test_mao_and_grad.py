"""What other code puts into `.grad` of MAO's parameters: an Adam update of its own, beside the tasks'."""

import copy
import io
import pickle

import pytest
import torch
from networks import TASKS, Network, assert_same, batch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import equipoise as eq

STEPS = 6
OWN = {"grad_step", "grad_exp_avg", "grad_exp_avg_sq"}


def everything(model):
    return [p for p in model.parameters() if p.requires_grad]


def grouped(model):
    return [
        {"params": list(model.trunk.parameters()), "lr": 0.1, "weight_decay": 0.0},
        {"params": [*model.branch.parameters(), *model.own.parameters()], "betas": (0.5, 0.9)},
        {"params": list(model.heads.parameters()), "eps": 1e-2},
    ]


def summed(model, index, tasks=TASKS):
    return sum(model.losses(batch(index), tasks).values())


def penalty(model):
    """Reaches the trunk and what no task reaches."""
    return 0.3 * (model.trunk.weight.square().sum() + model.trunk.bias.exp().sum() + model.unused.weight.sum() ** 2)


def mao(model, params=everything, **options):
    return eq.MAO(params(model), TASKS, **{"lr": 0.03, "weight_decay": 0.1, **options})


def own_keys(optimizer):
    return {key for state in optimizer.state.values() for key in state if key in OWN}


# --- a plain training loop ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("params", [everything, grouped])
def test_a_plain_backward_pass_is_adamw_bit_for_bit(params, fused, set_to_none):
    models = Network(), Network()
    optimizers = (
        mao(models[0], params, fused=fused),
        torch.optim.AdamW(params(models[1]), lr=0.03, weight_decay=0.1, fused=fused, foreach=False),
    )
    for model, optimizer in zip(models, optimizers, strict=True):
        for index in range(STEPS):
            summed(model, index, TASKS if index != 3 else ("a",)).backward()
            torch.nn.utils.clip_grad_norm_(everything(model), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none)
    assert_same(*(model.state_dict() for model in models))
    assert not torch.equal(models[0].trunk.weight, Network().trunk.weight)
    assert own_keys(optimizers[0]) == OWN


@pytest.mark.parametrize("lr", [0.03, torch.tensor(0.03)], ids=["number", "tensor"])
def test_warming_up_from_zero_is_adamw_bit_for_bit(lr):
    models = Network(), Network()
    optimizers = (
        eq.MAO(everything(models[0]), TASKS, lr=lr, fused=True),
        torch.optim.AdamW(everything(models[1]), lr=copy.copy(lr), weight_decay=0.0, fused=True),
    )
    for model, optimizer in zip(models, optimizers, strict=True):
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / STEPS)
        for index in range(STEPS):
            optimizer.zero_grad()
            summed(model, index).backward()
            optimizer.step()
            schedule.step()
    assert_same(*(model.state_dict() for model in models))
    assert not any(key.startswith("exp_avg") for state in optimizers[0].state.values() for key in state)


def test_a_scaler_and_a_plain_backward_pass_are_adamw():
    models = Network(), Network()
    optimizers = (
        mao(models[0], fused=False),
        torch.optim.AdamW(everything(models[1]), lr=0.03, weight_decay=0.1, fused=False, foreach=False),
    )
    for model, optimizer in zip(models, optimizers, strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        for index in range(STEPS):
            optimizer.zero_grad()
            scaler.scale(summed(model, index) * (torch.inf if index == 2 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert_same(*(model.state_dict() for model in models))


# --- beside tasks ---------------------------------------------------------------------------------------------------


class Formula:
    """`θ ← θ − Σ_n η m̂_n/(√v̂_n + ε) − η λ θ` in float64; n goes over the tasks, and over what is in `.grad`."""

    def __init__(self, model, lr=0.03, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1):
        self.model, self.lr, self.betas, self.eps, self.weight_decay = model, lr, betas, eps, weight_decay
        self.moments = {}

    def step(self, sources, clip=None):
        """Takes a step from scalars by name; `clip`: to what norm the whole `.grad` is clipped."""
        parameters = everything(self.model)
        rows = {
            name: torch.autograd.grad(scalar, parameters, retain_graph=True, allow_unused=True)
            for name, scalar in sources.items()
        }
        if clip is not None:
            norm = sum(g.square().sum() for g in rows["penalty"] if g is not None).sqrt()
            rows["penalty"] = [None if g is None else g * min(1.0, clip / (norm + 1e-6)) for g in rows["penalty"]]
        with torch.no_grad():
            for index, parameter in enumerate(parameters):
                present = {name: row[index] for name, row in rows.items() if row[index] is not None}
                update = -self.lr * self.weight_decay * parameter if present else torch.zeros_like(parameter)
                for name, gradient in present.items():
                    first, second, time = self.moments.get((name, index), (0.0, 0.0, 0))
                    first = self.betas[0] * first + (1 - self.betas[0]) * gradient
                    second = self.betas[1] * second + (1 - self.betas[1]) * gradient.square()
                    self.moments[name, index] = first, second, time + 1
                    m = first / (1 - self.betas[0] ** (time + 1))
                    v = second / (1 - self.betas[1] ** (time + 1))
                    update = update - self.lr * m / (v.sqrt() + self.eps)
                parameter += update


def assert_close(model, expected):
    for (name, found), wanted in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


WAYS = ["before", "after", "between micro-batches", "every other step"]


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize(
    ("way", "scaled"), [*((way, scaled) for way in WAYS for scaled in (False, True)), ("streaming", False)]
)
def test_a_penalty_has_moments_beside_the_tasks(way, scaled, clip):
    model, twin = Network().double(), Network().double()
    optimizer, formula = mao(model, streaming=way == "streaming"), Formula(twin)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    options = {"scaler": scaler} if scaled else {}

    def add_penalty():
        scaler.scale(penalty(model)).backward()

    for index in range(STEPS):
        model.zero_grad()
        without = way == "every other step" and index % 2
        if way == "before":
            add_penalty()
        if way == "between micro-batches":
            optimizer.backward(model.losses(batch(index), ["a", "b"]), accumulate=True, **options)
            add_penalty()
            optimizer.backward(model.losses(batch(index), ["b", "c"]), **options)
        else:
            optimizer.backward(model.losses(batch(index)), **options)
            if way != "before" and not without:
                add_penalty()
        scaler.unscale_(optimizer)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        sources = twin.losses(batch(index))
        if way == "between micro-batches":
            sources["b"] = 2 * sources["b"]
        formula.step(sources if without else {**sources, "penalty": penalty(twin)}, None if without else clip)
    assert_close(model, twin)
    assert own_keys(optimizer) == OWN


def test_a_penalty_of_zero_is_a_gradient_and_no_clearing():
    """Biases start at 0, where the gradient of their square is 0; they are what is marked."""

    def step(model, optimizer):
        optimizer.backward(model.losses(batch(0)))
        sum(p.square().sum() for p in everything(model)).backward()
        optimizer.step()

    model, twin = Network().double(), Network().double()
    for one in (model, twin):
        for name, p in one.named_parameters():
            if name.endswith("bias"):
                p.data.zero_()
    step(model, mao(model))
    Formula(twin).step({**twin.losses(batch(0)), "penalty": sum(p.square().sum() for p in everything(twin))})
    assert_close(model, twin)


def test_the_state_of_a_step_in_which_there_is_nothing_but_tasks_holds_tasks_alone():
    model = Network()
    optimizer = mao(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    for index in range(STEPS):
        optimizer.zero_grad() if index % 2 else model.zero_grad()
        optimizer.backward(model.losses(batch(index)), accumulate=True, scaler=scaler)
        overflows = {"a": model.trunk.weight.sum() * torch.inf}
        optimizer.backward(overflows if index == 3 else model.losses(batch(index)), scaler=scaler)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        scaler.step(optimizer)
        scaler.update()
    optimizer.backward(model.losses(batch(0)))
    torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3)
    optimizer.backward(model.losses(batch(0)))
    optimizer.step()
    optimizer.step()
    assert optimizer.state
    assert not own_keys(optimizer)
    assert model.unused.weight.grad is None


# --- saving and copying ---------------------------------------------------------------------------------------------


def train(model, optimizer, start, stop, penalized=True):
    for index in range(start, stop):
        optimizer.zero_grad()
        optimizer.backward(model.losses(batch(index), TASKS if index % 3 else ("a", "c")))
        if penalized and index % 2 == 0:
            penalty(model).backward()
        optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("penalized", [True, False])
def test_resuming_is_bit_for_bit(penalized, fused):
    model = Network()
    optimizer = mao(model, grouped, fused=fused)
    train(model, optimizer, 0, 4, penalized)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    saved = torch.load(file)
    train(model, optimizer, 4, 8, penalized)

    resumed = Network(seed=5)
    resumed.load_state_dict(saved[0])
    other = mao(resumed, grouped, fused=fused)
    other.load_state_dict(saved[1])
    train(resumed, other, 4, 8, penalized)
    assert_same(resumed.state_dict(), model.state_dict())
    assert_same(other.state_dict(), optimizer.state_dict())
    assert own_keys(other) == (OWN if penalized else set())


@pytest.mark.parametrize("fused", [True, False])
def test_counts_beyond_the_parameters_precision_are_loaded(fused):
    """bfloat16 has no integer between 300 and 302."""
    model = Network().to(torch.bfloat16)
    optimizer = mao(model, fused=fused)
    for index in range(2):
        model.trunk.weight.grad = torch.ones_like(model.trunk.weight)
        optimizer.step()
        found = optimizer.state[model.trunk.weight]["grad_step"]
        if not index:
            found.fill_(300)
        optimizer.load_state_dict(optimizer.state_dict())
    found = optimizer.state[model.trunk.weight]["grad_step"]
    assert found.dtype == torch.float32
    assert found == 301


def pickled(pair):
    return pickle.loads(pickle.dumps(pair))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_goes_on_with_all_moments(copied):
    model = Network()
    optimizer = mao(model)
    train(model, optimizer, 0, 4)
    twin, other = copied((model, optimizer))
    for one, its in ((model, optimizer), (twin, other)):
        train(one, its, 4, 8)
    assert_same(twin.state_dict(), model.state_dict())
    assert_same(other.state_dict(), optimizer.state_dict())


@pytest.mark.parametrize("penalized", [True, False])
def test_a_distributed_checkpoint_finds_room_for_all_moments_and_leaves_no_trace(penalized):
    model, fresh = Network(), Network()
    optimizer, new = mao(model), mao(fresh)
    train(model, optimizer, 0, 4, penalized)
    before = copy.deepcopy(fresh.state_dict())
    room = get_optimizer_state_dict(fresh, new)["state"]
    assert_same(fresh.state_dict(), before)
    wanted = get_optimizer_state_dict(model, optimizer)["state"]
    for name, state in wanted.items():
        assert set(state) <= set(room[name]), name
        assert not any(value.any() for value in room[name].values())
    new.load_state_dict(new.state_dict())
    assert all(not any("exp_avg" in key or key in OWN for key in state) for state in new.state.values())
