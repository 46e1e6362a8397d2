"""PerTask: any optimizer with a state a task, against the optimizer itself, MAO, and sums written out by hand."""

import copy
import io

import pytest
import torch
from mao_and_reference import PRESENT, Reference
from networks import TASKS, Network, assert_same, batch, snapshot

import equipoise as eq

BASES = {
    "adamw": (torch.optim.AdamW, {"lr": 0.02, "weight_decay": 0.1}),
    "sgd": (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.02, "weight_decay": 0.1}),
    "adam": (torch.optim.Adam, {"lr": 0.02, "weight_decay": 0.1}),
    "nadam": (torch.optim.NAdam, {"lr": 0.02, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 0.02, "maximize": True, "weight_decay": 0.1}),
    "adafactor": (torch.optim.Adafactor, {"lr": 0.02, "weight_decay": 0.0}),
    "asgd": (torch.optim.ASGD, {"lr": 0.02, "weight_decay": 0.1}),
}
if hasattr(torch.optim, "Muon"):
    BASES["muon and adamw"] = (eq.optim.MuonAndAdamW, {"lr": 0.02, "weight_decay": 0.1})

every_base = pytest.mark.parametrize("name", BASES)


def make(name, seed=0, tasks=TASKS, dtype=torch.float32, **options):
    model = Network(seed).to(dtype)
    base, own = BASES[name]
    return model, eq.PerTask(base, model.parameters(), tasks, **{**own, **options})


def train(model, optimizer, start, stop, present=PRESENT):
    for index in range(start, stop):
        optimizer.zero_grad()
        optimizer.backward(model.losses(batch(index), present[index]))
        optimizer.step()


def of_task(optimizer, task):
    """Place of a parameter → the state that the task has of it."""
    return {place: own[task] for place, own in sorted(optimizer.state_dict()["state"].items()) if task in own}


@pytest.mark.parametrize("options", [{}, {"priorities": {"a": 3.0}}, {"groups": 2}, {"max_norm": 0.5}], ids=str)
def test_of_adamw_is_mao_bit_for_bit(options):
    model, optimizer = make("adamw", **options)
    twin = Network()
    mao = eq.MAO(twin.parameters(), TASKS, lr=0.02, weight_decay=0.1, **options)
    for index in range(6):
        for each, own in ((model, optimizer), (twin, mao)):
            own.zero_grad()
            own.backward(each.losses(batch(index), PRESENT[index]))
            penalty = 0.01 * each.own.weight.square().sum()  # no task's
            penalty.backward()
            own.step()
    assert_same(model.state_dict(), twin.state_dict())


@every_base
def test_with_one_task_is_the_base_number_for_number(name):
    base, options = BASES[name]
    if name.startswith("adam"):
        options = {**options, "fused": False}  # whose kernels would decay by another order of operations
    model, twin = Network(), Network()
    optimizer = eq.PerTask(base, model.parameters(), ["a"], **options)
    plain = base([p for p in twin.parameters() if p.requires_grad], **options)
    for index in range(5):
        train(model, optimizer, index, index + 1, ["a"] * 5)
        plain.zero_grad()
        twin.losses(batch(index), "a")["a"].backward()
        plain.step()
    assert_same(model.state_dict(), twin.state_dict())


def test_of_sgd_is_that_of_the_summed_losses():
    """Its update is linear in the gradients, its weight decay too."""
    model, optimizer = make("sgd", dtype=torch.float64)
    twin = Network().double()
    plain = torch.optim.SGD(twin.parameters(), **BASES["sgd"][1])
    for index in range(5):
        train(model, optimizer, index, index + 1, ["abc"] * 5)
        plain.zero_grad()
        sum(twin.losses(batch(index)).values()).backward()
        plain.step()
    for found, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["rmsprop", "adafactor", "asgd", "adagrad"])
def test_adds_up_the_updates_that_the_base_makes_at_the_same_place(name):
    """Each task's own optimizer on a network of its own, put back to the common place before every step."""
    model, optimizer = make(name, dtype=torch.float64)
    base, options = BASES[name]
    decay = options["weight_decay"]
    copies = {task: Network().double() for task in TASKS}
    bases = {task: base(copies[task].parameters(), **{**options, "weight_decay": 0}) for task in TASKS}
    sign = -1 if options.get("maximize") else 1
    place = Network().double()
    for index in range(6):
        train(model, optimizer, index, index + 1)
        rows = Reference(place, lr=0.0).gradients(place.losses(batch(index), PRESENT[index]))
        movers = {key: [task for task in rows if key in rows[task]] for key, _ in place.named_parameters()}
        for task, row in rows.items():
            copies[task].load_state_dict(place.state_dict())
            for key, p in copies[task].named_parameters():
                p.grad = row[key] + sign * decay * p.detach() / len(movers[key]) if key in row else None
            bases[task].step()
        with torch.no_grad():
            for key, p in place.named_parameters():
                p += sum((copies[task].get_parameter(key) - p for task in movers[key]), torch.zeros_like(p))
    for (key, found), expected in zip(model.named_parameters(), place.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12, msg=key)


def test_decoupled_weight_decay_of_an_update_that_depends_on_the_place():
    decayed, plain = (make("adafactor", dtype=torch.float64, weight_decay=wd) for wd in (0.5, 0.0))
    before = {key: p.detach().clone() for key, p in plain[0].named_parameters()}
    for each in (decayed, plain):
        train(*each, 0, 1)
    moved = [key for key, p in plain[0].named_parameters() if not torch.equal(p, before[key])]
    assert len(moved) > 8
    for key in moved:
        expected = plain[0].get_parameter(key) - 0.02 * 0.5 * before[key]
        torch.testing.assert_close(decayed[0].get_parameter(key), expected, rtol=1e-13, atol=0)


@every_base
def test_resumes_bit_for_bit_and_goes_on_as_a_copy(name):
    model, optimizer = make(name)
    train(model, optimizer, 0, 4)
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin, resumed = make(name, seed=1, lr=9.0)
    train(twin, resumed, 0, 1)
    twin.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert_same(resumed.state_dict(), optimizer.state_dict())
    third, copied = copy.deepcopy((model, optimizer))
    for each in ((model, optimizer), (twin, resumed), (third, copied)):
        each[1].zero_grad()
        train(*each, 4, 7)
    assert_same(snapshot(twin, resumed), snapshot(model, optimizer))
    assert_same(snapshot(third, copied), snapshot(model, optimizer))


@every_base
def test_a_task_that_is_left_out_keeps_its_state(name):
    model, optimizer = make(name)
    train(model, optimizer, 0, 3, ["abc"] * 3)
    kept = copy.deepcopy(of_task(optimizer, "b"))
    assert kept
    train(model, optimizer, 3, 5, ["ac"] * 5)
    assert_same(of_task(optimizer, "b"), kept)


def test_micro_batches_scalars_scalers_closures_and_schedulers():
    def losses(model, index):
        return model.losses(batch(index))

    def plain(model, optimizer, index, scaler):
        optimizer.backward(losses(model, index))
        optimizer.step()

    def scaled(model, optimizer, index, scaler):
        optimizer.backward(losses(model, index), scaler=scaler)
        scaler.step(optimizer)
        scaler.update()

    def scalar(model, optimizer, index, scaler):
        scaler.scale(optimizer.loss(losses(model, index))).backward()
        scaler.step(optimizer)
        scaler.update()

    def closure(model, optimizer, index, scaler):
        def compute():
            optimizer.zero_grad()
            optimizer.backward(losses(model, index))
            return 3.0

        assert optimizer.step(compute) == 3.0

    def in_parts(model, optimizer, index, scaler):
        halves = [{task: loss / 2 for task, loss in losses(model, index).items()} for _ in range(2)]
        optimizer.backward(halves[0], accumulate=True)
        optimizer.backward(halves[1])
        optimizer.step()

    results = []
    for way in (plain, scaled, scalar, closure, in_parts):
        model, optimizer = make("rmsprop", dtype=torch.float64)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for index in range(3):
            way(model, optimizer, index, scaler)
            optimizer.zero_grad()
            scheduler.step()
        results.append(model.state_dict())
    for other in results[1:]:
        for key, found in other.items():
            torch.testing.assert_close(found, results[0][key], rtol=1e-12, atol=1e-14, msg=key)


def test_takes_over_the_state_of_the_tasks_of_both():
    model, optimizer = make("sgd", tasks=["a", "b"])
    train(model, optimizer, 0, 3, ["ab"] * 3)
    twin, other = make("sgd", tasks=["b", "c"])
    train(twin, other, 0, 3, ["bc"] * 3)
    of_c = copy.deepcopy(of_task(other, "c"))
    other.load_state_dict(optimizer.state_dict(), tasks="intersection")
    assert of_c
    assert_same(of_task(other, "c"), of_c)
    assert_same(of_task(other, "b"), of_task(optimizer, "b"))
    assert not of_task(other, "a")


class Unknown(torch.optim.Optimizer):
    """Not PyTorch's: the sign of the gradient, with weight decay, on state that is a number."""

    def __init__(self, params, lr=0.1, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["calls"] = self.state[p].get("calls", 0) + 1
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(p.grad.sign(), alpha=group["lr"] / self.state[p]["calls"])


def test_a_class_of_somebody_elses():
    model = Network().double()
    optimizer = eq.PerTask(Unknown, model.parameters(), TASKS, weight_decay=0.5, decoupled=True)
    start = model.trunk.weight.detach().clone()
    rows = Reference(model, lr=0.0).gradients(model.losses(batch(0)))
    train(model, optimizer, 0, 1)
    expected = start * (1 - 0.1 * 0.5) - 0.1 * sum(row["trunk.weight"].sign() for row in rows.values())
    torch.testing.assert_close(model.trunk.weight.detach(), expected)
    train(model, optimizer, 1, 3, ["ac"] * 3)
    state = optimizer.state_dict()
    assert state["state"][0] == {"a": {"calls": 3}, "b": {"calls": 1}, "c": {"calls": 3}}
    other = eq.PerTask(Unknown, Network().double().parameters(), TASKS, weight_decay=0.5, decoupled=True)
    other.load_state_dict(state)
    assert_same(other.state_dict(), state)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"base": torch.optim.LBFGS}, ValueError, r"LBFGS\.step needs a closure"),
        ({"base": eq.MAO}, TypeError, "base must be the class of an optimizer.*found <class"),
        ({"base": "adamw"}, TypeError, "found 'adamw'"),
        ({"base": Unknown, "weight_decay": 0.1}, ValueError, "say decoupled=True or decoupled=False"),
        ({"momentum": -1.0}, ValueError, "Invalid momentum"),
        ({"beta": 1.0}, TypeError, "beta"),
        ({"max_norm": 0.0}, ValueError, "max_norm must be"),
        ({"tasks": []}, ValueError, "tasks is empty"),
        ({"params": []}, ValueError, "empty parameter list"),
    ],
)
def test_bad_arguments(arguments, error, words):
    given = {"base": torch.optim.SGD, "params": Network().parameters(), "tasks": TASKS, **arguments}
    with pytest.raises(error, match=words):
        eq.PerTask(**given)


def test_refuses_the_state_of_another_optimizer():
    model, optimizer = make("sgd")
    train(model, optimizer, 0, 1)
    before = snapshot(optimizer)
    for other in (make("rmsprop")[1], eq.MAO(model.parameters(), TASKS), eq.MTAdam(model.parameters(), TASKS)):
        with pytest.raises(ValueError, match=r"expected one of PerTask of torch\.optim\.sgd\.SGD"):
            optimizer.load_state_dict(other.state_dict())
        with pytest.raises(ValueError, match=r"of PerTask of torch\.optim\.sgd\.SGD, expected one of"):
            other.load_state_dict(optimizer.state_dict())
    assert_same(snapshot(optimizer), before)


def test_by_name():
    model = Network()
    method = eq.make_method("mao@sgd", model, TASKS, lr=0.02, weight_decay=0.1, max_norm=1.0)
    assert (method.name, type(method.optimizer), method.optimizer.base) == ("mao@sgd", eq.PerTask, torch.optim.SGD)
    group = method.optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"], method.optimizer.max_norm) == (0.02, 0.9, 0.1, 1.0)
    assert type(eq.make_method("mao@adamw", model, TASKS).optimizer) is eq.MAO
    with pytest.raises(ValueError, match="'mao@sgd' has no hyperparameter betas; it takes: groups, max_norm"):
        eq.make_method("mao@sgd", model, TASKS, betas=(0.9, 0.99))
    with pytest.raises(ValueError, match="'adatask' is an optimizer itself: leave @sgd out"):
        eq.make_method("adatask@sgd", model, TASKS)
