"""Every method as a scalar whose backward pass balances: what `backward(losses)` does, times what reaches it."""

import copy

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, gradients
from registry import GRAMIAN, KEEP_ROWS, NAMES, PRESENT, every_method, has_aggregator, is_optimizer, make

import equipoise as eq

BALANCERS = [name for name in NAMES if not is_optimizer(name)]
every_balancer = pytest.mark.parametrize("name", BALANCERS)


def pair(name, **options):
    """Two like models with the method."""
    return make(name, **options), make(name, **options)


def learned(method):
    return [] if method.balancer is None else list(method.balancer.parameters())


def assert_close(found, expected, rtol=1e-6):
    assert list(found) == list(expected)
    for name, gradient in expected.items():
        assert (gradient is None) == (found[name] is None), name
        if gradient is not None:
            torch.testing.assert_close(found[name], gradient, rtol=rtol, atol=1e-7, msg=name)


@every_method
def test_training_by_scalars_is_training_by_backward(name):
    """With missing tasks, over many steps; the weights' state included."""
    (model, method), (other, scalars) = pair(name)
    for index, tasks in enumerate(PRESENT):
        if name.startswith("single:"):
            tasks = name[-1]
        for net, by, way in ((model, method, "backward"), (other, scalars, "loss")):
            by.zero_grad()
            losses = net.losses(batch(index), tasks)
            by.backward(losses) if way == "backward" else by.loss(losses).backward()
        assert_close(gradients(other), gradients(model))
        for by, net in ((method, model), (scalars, other)):
            by.step()
            if by.needs_after_step:
                with torch.no_grad():
                    by.after_step(net.losses(batch(index), tasks))
    torch.testing.assert_close(dict(other.named_parameters()), dict(model.named_parameters()), rtol=1e-4, atol=1e-5)
    if method.balancer is not None:
        buffers = dict(method.balancer.named_buffers())
        torch.testing.assert_close(dict(scalars.balancer.named_buffers()), buffers, rtol=1e-5, atol=1e-6)


@every_balancer
def test_the_value_is_the_objectives(name):
    model, method = make(name)
    tasks = name[-1] if name.startswith("single:") else TASKS
    losses = model.losses(batch(0), tasks)
    objective = copy.deepcopy(method.balancer.objective)
    value = method.loss(losses)
    assert value.dim() == 0
    assert value.dtype == torch.float32
    with objective.step():
        expected = objective(torch.stack([loss.detach().double() for loss in losses.values()]))
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-6, atol=0)


@every_method
def test_a_factor_multiplies_and_what_is_added_is_plain(name):
    (model, method), (other, scalars) = pair(name)
    tasks = name[-1] if name.startswith("single:") else TASKS
    method.backward(model.losses(batch(0), tasks))
    if is_optimizer(name):
        expected = {p: g / 4 for p, g in flat(method.optimizer._pending.rows, model).items()}
        (scalars.loss(other.losses(batch(0), tasks)) / 4).backward()
        found = flat(scalars.optimizer._pending.rows, other)
        assert all(torch.equal(found[key], g) for key, g in expected.items())
        return
    for p in trained(model):
        p.grad = 2e-2 * p.detach() if p.grad is None else p.grad / 3 + 2e-2 * p.detach()
    for p in learned(method):
        p.grad = None if p.grad is None else p.grad / 3
    loss = scalars.loss(other.losses(batch(0), tasks)) / 3 + 1e-2 * sum(p.square().sum() for p in trained(other))
    loss.backward()
    assert_close(gradients(other), gradients(model), rtol=1e-5)
    for p, q in zip(learned(scalars), learned(method), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def flat(rows, model):
    names = {p: name for name, p in model.named_parameters()}
    return {(task, names[p]): g for task, row in rows.items() for p, g in row.items()}


def losses_of(name, model, index=0):
    return model.losses(batch(index), name[-1] if name.startswith("single:") else TASKS)


@every_method
def test_backward_twice(name):
    """The second pass of one scalar is autograd's usual error; with retain_graph it adds the same again."""
    model, method = make(name)
    loss = method.loss(losses_of(name, model))
    loss.backward()
    before = gradients(model)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    assert_same(gradients(model), before)
    (model, method), (other, twice) = pair(name)
    loss = twice.loss(losses_of(name, other))
    loss.backward(retain_graph=True)
    if name in {"pcgrad", "graddrop", "gradnorm", "nash-mtl", "imtl", "gradvac"} | KEEP_ROWS:  # draw, or learn, anew
        loss.backward()
        return
    once = gradients(other)
    loss.backward()
    if not is_optimizer(name):
        assert_close(gradients(other), {key: None if g is None else 2 * g for key, g in once.items()})


@every_balancer
def test_gradients_can_be_asked_for_without_writing_them(name):
    (model, method), (other, scalars) = pair(name)
    method.backward(losses_of(name, model))
    loss = scalars.loss(losses_of(name, other))
    found = torch.autograd.grad(loss, trained(other), allow_unused=True)
    assert all(p.grad is None for p in other.parameters())
    for gradient, p in zip(found, trained(model), strict=True):
        assert (gradient is None) == (p.grad is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, p.grad, rtol=1e-6, atol=1e-7)


@every_balancer
def test_differentiating_twice_is_right_or_an_error(name):
    """Meta-learning: the gradient of the gradient's norm, the weights constant."""
    model, method = make(name, dtype=torch.float64)
    losses = losses_of(name, model)
    loss = method.loss(losses)
    if has_aggregator(name):
        with pytest.raises(RuntimeError, match="create_graph"):
            loss.backward(create_graph=True)
        return
    weights = method.balancer._balancing.held.weights
    plain = sum(weights[task] * losses[task] for task in losses)
    wanted = [p for p in trained(model) if p in set(reached(plain, model))]

    def second(scalar):
        first = torch.autograd.grad(scalar, wanted, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), wanted, retain_graph=True)

    for found, expected in zip(second(loss), second(plain), strict=True):
        torch.testing.assert_close(found, expected)


def reached(loss, model):
    found = torch.autograd.grad(loss, trained(model), retain_graph=True, allow_unused=True)
    return [p for p, g in zip(trained(model), found, strict=True) if g is not None]


def frozen(method):
    return method.balancer.frozen()


def evaluation(method):
    method.balancer.eval()
    return torch.no_grad()


@pytest.mark.parametrize("how", [frozen, evaluation])
@every_balancer
def test_nothing_is_learned_and_weights_stay(name, how):
    if name.startswith("single:"):
        return
    model, method = make(name)
    for index in range(2):
        method.zero_grad()
        weights = method.backward(model.losses(batch(index)))
    held = {task: float(weight) for task, weight in weights.items()}
    before = copy.deepcopy(method.balancer.state_dict())
    losses = model.losses(batch(7))
    with how(method):
        value = method.loss(losses)
        expected = sum(held[task] * float(losses[task].detach()) for task in TASKS)
        assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
        if torch.is_grad_enabled():
            value.backward()
            for p in learned(method):
                p.grad = None
            found = method.backward(model.losses(batch(8)))
            if name in GRAMIAN or not has_aggregator(name):
                assert {task: float(w) for task, w in found.items()} == {task: float(w) for task, w in weights.items()}
    assert_same(method.balancer.state_dict(), before)


def test_before_the_first_step_the_first_weights_are_held():
    model = Network()
    balancer = eq.Balancer(TASKS, eq.EMA())
    with balancer.frozen():
        first = balancer.backward(model.losses(batch(0)))
        second = balancer.backward(model.losses(batch(1)))
    assert_same(second, first)


def test_held_weights_are_saved():
    model = Network()
    balancer, loaded = (eq.Balancer(TASKS, eq.EMA(), eq.IMTLG(), model=model) for _ in range(2))
    weights = balancer.backward(model.losses(batch(0)))
    loaded.load_state_dict(balancer.state_dict())
    with loaded.frozen():
        found = loaded.backward(model.losses(batch(1)))
    for task in TASKS:
        torch.testing.assert_close(found[task], weights[task], rtol=1e-7, atol=0)


@pytest.mark.parametrize("aggregator", [None, eq.PCGrad, eq.IMTLG])
def test_hooks_see_what_backward_shows_them(aggregator):
    calls = {}
    found = {}
    for way in ("backward", "loss"):
        model = Network()
        torch.manual_seed(0)
        balancer = eq.Balancer(TASKS, eq.EMA(), None if aggregator is None else aggregator())
        calls[way] = []
        model.trunk.weight.register_hook(lambda g, seen=calls[way]: (seen.append("hook"), 2 * g)[1])
        model.trunk.bias.register_post_accumulate_grad_hook(lambda p, seen=calls[way]: seen.append("after"))
        losses = model.losses(batch(0))
        balancer.backward(losses) if way == "backward" else balancer(losses).backward()
        found[way] = gradients(model)
    assert calls["loss"] == calls["backward"]
    assert_close(found["loss"], found["backward"])


SCALE = 2.0**12


@every_method
def test_under_a_gradient_scaler(name):
    """As without one: the scale is taken out before the optimizer's step, and an overflow leaves the step out."""
    (model, method), (other, scaled) = pair(name)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=2)
    for index in range(4):
        method.zero_grad()
        method.loss(losses_of(name, model, index)).backward()
        method.step()
        scaled.zero_grad()
        scaler.scale(scaled.loss(losses_of(name, other, index))).backward()
        if index % 2:
            scaler.unscale_(scaled.optimizer)  # as before clipping
        scaler.step(scaled.optimizer)
        scaler.update()
        if method.needs_after_step:
            for by, net in ((method, model), (scaled, other)):
                with torch.no_grad():
                    by.after_step(losses_of(name, net, index))
    assert scaler.get_scale() == 4 * SCALE
    torch.testing.assert_close(dict(other.named_parameters()), dict(model.named_parameters()), rtol=1e-4, atol=1e-6)
    before = copy.deepcopy(other.state_dict())
    state = copy.deepcopy(scaled.optimizer.state_dict())
    scaled.zero_grad()
    (scaled.loss(losses_of(name, other)) * torch.inf).backward()
    scaler.scale(torch.zeros(()))
    scaler.step(scaled.optimizer)
    scaler.update()
    assert_same(other.state_dict(), before)
    assert_same(scaled.optimizer.state_dict(), state)


def test_mao_under_a_scaler_beside_a_penalty_everywhere_says_what_to_do():
    model = Network()
    optimizer = eq.MAO(model.parameters(), TASKS, lr=0.1)
    loss = optimizer.loss(model.losses(batch(0))) + sum(p.square().sum() for p in trained(model))
    loss.backward()
    optimizer.step()  # a factor of 1 needs nothing
    optimizer.zero_grad()
    (2 * (optimizer.loss(model.losses(batch(0))) + sum(p.square().sum() for p in trained(model)))).backward()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"scaler=\.\.\."):
        optimizer.step()
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize("aggregator", [False, True])
def test_a_scalar_among_micro_batches_is_an_error(aggregator):
    model = Network()
    balancer = eq.Balancer(TASKS, eq.EMA(), eq.PCGrad() if aggregator else None)
    balancer.backward(model.losses(batch(0)), accumulate=True)
    with pytest.raises(ValueError, match="Micro-batches"):
        balancer(model.losses(batch(1)))
    optimizer = eq.MAO(model.parameters(), TASKS)
    optimizer.zero_grad()
    optimizer.backward(model.losses(batch(0)), accumulate=True)
    with pytest.raises(ValueError, match="Micro-batches"):
        optimizer.loss(model.losses(batch(1)))


def test_streaming_mao_has_no_scalar():
    model = Network()
    with pytest.raises(ValueError, match="streaming"):
        eq.MAO(model.parameters(), TASKS, streaming=True).loss(model.losses(batch(0)))


@every_balancer
def test_lbfgs_converges_on_held_weights(name):
    """Its line search needs one function during a step."""
    if name.startswith("single:") or has_aggregator(name):
        return
    model, method = make(name)
    optimizer = torch.optim.LBFGS(trained(model), line_search_fn="strong_wolfe", max_iter=5)

    def closure():
        optimizer.zero_grad()
        loss = method.loss(model.losses(batch(0)))
        loss.backward()
        return loss

    values = []
    for _ in range(4):
        method.loss(model.losses(batch(0)))
        with method.balancer.frozen():
            values.append(
                (float(closure().detach()), float(optimizer.step(closure).detach()), float(closure().detach()))
            )
    for first, again, last in values:
        assert again == first  # the same function when it is asked again
        assert last < first


class Plain(torch.nn.Module):
    """All parameters are every task's, as in a physics-informed network."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()

    def losses(self, x):
        y, x = self.layers(x.double()), x.double()
        return {
            "a": y.square().mean(),
            "b": 900 * (y - x.sum(1, keepdim=True)).square().mean(),
            "c": (y - 1).exp().mean(),
        }


@pytest.mark.parametrize("name", [name for name in BALANCERS if name in GRAMIAN])
def test_a_held_aggregators_value_is_what_its_gradient_is_of(name):
    """Where all is shared; a line search compares the two."""
    torch.manual_seed(0)
    model = Plain()
    balancer = eq.make_method(name, model, TASKS).balancer
    for index in range(2):
        weights = balancer.backward(model.losses(batch(index)))
    with balancer.frozen():
        losses = model.losses(batch(2))
        loss = balancer(losses)
        held = sum(weights[task] * losses[task] for task in TASKS)
        torch.testing.assert_close(loss, held.detach())
        expected = torch.autograd.grad(held, list(model.parameters()), retain_graph=True)
        torch.testing.assert_close(torch.autograd.grad(loss, list(model.parameters())), expected)


def test_mao_does_not_unscale_what_never_was_scaled():
    """Task gradients of `backward` beside those of a scaled scalar, in one step."""
    model = Network()
    optimizer = eq.MAO(model.parameters(), TASKS, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    optimizer.backward(model.losses(batch(0)), scaler=scaler)
    scaler.scale(optimizer.loss(model.losses(batch(1)))).backward()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="one of both"):
        scaler.step(optimizer)
    assert_same(model.state_dict(), before)


def test_mao_adds_up_scalars_with_factors_of_their_own():
    models = [Network() for _ in range(2)]
    optimizers = [eq.MAO(model.parameters(), TASKS, lr=0.1) for model in models]
    optimizers[0].backward(models[0].losses(batch(0)))
    optimizers[0].backward({task: loss / 2 for task, loss in models[0].losses(batch(1)).items()})
    optimizers[1].loss(models[1].losses(batch(0))).backward()
    (optimizers[1].loss(models[1].losses(batch(1))) / 2).backward()
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(*(dict(model.named_parameters()) for model in models))
