"""Tables with sparse gradients (`nn.Embedding(sparse=True)`): those of dense tables, and sparse to the end."""

import copy

import pytest
import torch
from networks import assert_same
from torch import nn
from torchjd import aggregation as torchjd
from training_loop.sparse_tables import ROWS, TASKS, WIDTH, Elements, Large, Tables, assert_same_gradients, dense

import equipoise as eq

AGGREGATORS = {
    "none": lambda: None,
    "gradnorm": eq.GradNorm,
    "imtl-g": eq.IMTLG,
    "mgda": eq.MGDA,
    "pcgrad": lambda: eq.PCGrad(seed=0),
    "cagrad": eq.CAGrad,
    "nash-mtl": eq.NashMTL,
    "graddrop": lambda: eq.GradDrop(leak=1.0, seed=0),  # everything leaks: what is drawn does not matter
    "torchjd-gramian": torchjd.UPGrad,
    "torchjd-matrix": torchjd.ConFIG,
}
GRAMIAN = ["gradnorm", "imtl-g", "mgda", "pcgrad", "cagrad", "nash-mtl", "torchjd-gramian"]


def backward(model, balancer, step, how="plain", **keywords):
    """A step's backward passes."""
    if how == "representation":
        z = model.representation(step)
        return balancer.backward(model.losses(step, representation=z), representation=z, **keywords)
    if how == "missing":
        tasks = ["abc", "ac", "b"][step % 3]
        return balancer.backward(model.losses(step, tasks), **keywords)
    if how in ("accumulate", "counts"):
        counts = [{"a": 3, "b": 1, "c": 2}, {"a": 1, "b": 5, "c": 1}] if how == "counts" else [None, None]
        balancer.backward(model.losses(step), accumulate=True, counts=counts[0], **keywords)
        return balancer.backward(model.losses(step + 1), counts=counts[1], **keywords)
    return balancer.backward(model.losses(step), **keywords)


def probe_of(model, how):
    return {
        "probe": model.trunk,
        "probe-table": model.users,
        "probe-tables": [model.tags.weight, model.trunk.weight],
    }.get(how)


HOW = ["plain", "accumulate", "counts", "missing", "probe", "probe-table", "probe-tables", "representation"]
CASES = [
    (name, how)
    for name in AGGREGATORS
    for how in HOW
    if name in GRAMIAN or not how.startswith(("probe", "representation"))
]


@pytest.mark.parametrize(("name", "how"), CASES)
def test_gradients_are_those_of_dense_tables_and_stay_sparse(name, how):
    models = [Tables(sparse=True), Tables(sparse=False)]
    balancers = [eq.Balancer(TASKS, eq.EMA(), AGGREGATORS[name](), probe=probe_of(m, how)) for m in models]
    for step in range(4):
        weights = [backward(m, b, step, how) for m, b in zip(models, balancers, strict=True)]
        for task, weight in weights[1].items():
            torch.testing.assert_close(weights[0][task], weight, rtol=1e-9, atol=1e-12)
        assert_same_gradients(*models, rtol=1e-8, atol=1e-11)
        for m in models:
            torch.optim.SGD(m.parameters(), lr=0.05).step()
            m.zero_grad()


@pytest.mark.parametrize("leak", [0.0, {"a": 0.25}])
def test_graddrop_lets_one_sign_through_on_touched_rows_and_leaves_the_others_alone(leak):
    model = Tables(sparse=True)
    rows = eq.task_gradients(model.losses(0), model.tables())
    balancer = eq.Balancer(TASKS, aggregator=eq.GradDrop(leak=leak, seed=0))
    balancer.backward(model.losses(0))
    leaks = leak if isinstance(leak, dict) else {}
    for index, table in enumerate(model.tables()):
        own = {task: dense(row[index]) for task, row in rows.items() if row[index] is not None}
        shared = len(own) > 1
        ways = [
            sum(g if not shared else g.where(sign * g > 0, g * leaks.get(task, 0.0)) for task, g in own.items())
            for sign in (1, -1)
        ]
        assert table.grad.is_sparse
        found = table.grad.to_dense()
        hits = [(found - way).abs() < 1e-12 for way in ways]
        assert (hits[0] | hits[1]).all()
        touched = sum(g.abs() for g in own.values()) > 0
        assert not shared or ((hits[0] & touched & ~hits[1]).any() and (hits[1] & touched & ~hits[0]).any())


@pytest.mark.parametrize("name", ["none", "mgda", "graddrop"])
@pytest.mark.parametrize("before", ["sparse", "dense", "twice"])
def test_adds_into_what_is_in_grad(name, before):
    models = [Tables(sparse=True), Tables(sparse=False)]
    found = []
    for model in models:
        if before == "twice":
            eq.Balancer(TASKS, aggregator=AGGREGATORS[name]()).backward(model.losses(1))
        elif before == "sparse":
            sum(model.losses(1).values()).backward()
        else:
            for table in model.tables():
                table.grad = torch.full_like(table, 0.5)
        found.append([table.grad for table in model.tables()])
        eq.Balancer(TASKS, aggregator=AGGREGATORS[name]()).backward(model.losses(0))
    if before == "dense":
        for table, other, was in zip(models[0].tables(), models[1].tables(), found[0], strict=True):
            assert table.grad is was  # added to in place, as autograd does
            torch.testing.assert_close(table.grad, other.grad, rtol=1e-9, atol=1e-12)
    else:
        assert_same_gradients(*models)


@pytest.mark.parametrize(
    ("name", "how"),
    [("none", "plain"), ("none", "accumulate"), *(("mgda", how) for how in ("plain", "probe", "accumulate"))],
)
def test_sparse_adam_and_adamw_step_under_a_scaler(name, how):
    """The steps that both optimizers make of gradients computed by hand from the balancer's weights."""
    model, twin = Tables(sparse=True), Tables(sparse=True)
    balancer = eq.Balancer(TASKS, aggregator=AGGREGATORS[name](), probe=probe_of(model, how))
    optimizers = [
        (torch.optim.SparseAdam(m.tables(), lr=0.1), torch.optim.AdamW(m.others(), lr=0.1)) for m in (model, twin)
    ]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    own = {"words"} | {f"heads.{task}" for task in TASKS}
    for step in range(4):
        weights = backward(model, balancer, step, how, scaler=scaler)
        for optimizer in optimizers[0]:
            scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 2.0**10
        for p_name, p in twin.named_parameters():
            for index in range(2 if how == "accumulate" else 1):
                losses = twin.losses(step + index)
                shared = p_name.rpartition(".")[0] not in own
                total = sum(loss * (weights[task] if shared else 1.0) for task, loss in losses.items())
                total.backward(inputs=[p])
        for optimizer in optimizers[1]:
            optimizer.step()
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
        for m in (model, twin):
            m.zero_grad()


@pytest.mark.parametrize("how", ["plain", "accumulate", "counts", "probe", "probe-table", "representation"])
def test_an_overflow_in_a_table_alone_drops_the_step(how):
    model = Tables(sparse=True)
    balancer = eq.Balancer(TASKS, eq.EMA(), eq.GradNorm(), probe=probe_of(model, how))
    tables, others = torch.optim.SparseAdam(model.tables(), lr=0.1), torch.optim.AdamW(model.others(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    backward(model, balancer, 0, how, scaler=scaler)
    model.zero_grad()
    state = copy.deepcopy(balancer.state_dict())
    weights = copy.deepcopy(model.state_dict())
    handle = model.words.weight.register_hook(lambda g: g * torch.inf)
    backward(model, balancer, 1, how, scaler=scaler)
    handle.remove()
    assert_same(balancer.state_dict(), state)
    for optimizer in (tables, others):
        scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert torch.equal(model.words.weight, weights["words.weight"])


@pytest.mark.parametrize("how", ["plain", "probe", "probe-table", "representation", "accumulate"])
@pytest.mark.parametrize("before", [None, "sparse"])
def test_a_table_that_a_loss_uses_as_a_whole_gets_a_dense_gradient(how, before):
    models = [Tables(sparse=True), Tables(sparse=False)]
    for model in models:
        if before == "sparse":
            model.users(torch.tensor([3, 3])).sum().backward()
            model.words(torch.tensor([3, 3])).sum().backward()
        given = model.losses

        def penalized(*args, model=model, given=given, **keywords):
            whole = 0.1 * (model.users.weight.square().sum() + model.words.weight.square().sum())
            return {task: loss + whole if task == "a" else loss for task, loss in given(*args, **keywords).items()}

        model.losses = penalized
        backward(model, eq.Balancer(TASKS, aggregator=eq.MGDA(), probe=probe_of(model, how)), 0, how)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(dense(one.grad), other.grad, rtol=1e-9, atol=1e-12)
    assert [table.grad.is_sparse for table in models[0].tables()] == [False, True, False, True]


def test_float16_entries_that_add_up_to_an_overflow_drop_the_step():
    table = nn.Embedding(4, 2, sparse=True).half()
    balancer = eq.Balancer(["a", "b"], eq.EMA(), eq.MGDA())
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    row = table(torch.tensor([1, 1])).float()
    losses = {"a": (row * 40000).sum(), "b": row.sum() + 1}
    losses = {"a": losses["a"] - losses["a"].detach() + 1, "b": losses["b"] - losses["b"].detach() + 1}
    state = copy.deepcopy(balancer.state_dict())
    balancer.backward(losses, scaler=scaler)
    assert_same(balancer.state_dict(), state)


COSTS = {
    "none": lambda model: eq.Balancer(["a", "b"]),
    "mgda": lambda model: eq.Balancer(["a", "b"], aggregator=eq.MGDA()),
    "probe": lambda model: eq.Balancer(["a", "b"], aggregator=eq.MGDA(), probe=model.trunk),
    "probe-table": lambda model: eq.Balancer(["a", "b"], aggregator=eq.MGDA(), probe=model.shared),
    "graddrop": lambda model: eq.Balancer(["a", "b"], aggregator=eq.GradDrop()),
    "torchjd-matrix": lambda model: eq.Balancer(["a", "b"], aggregator=torchjd.ConFIG()),
    "mao": lambda model: eq.MAO(model.parameters(), ["a", "b"], weight_decay=0.1, max_norm=1.0),
}


@pytest.fixture(scope="module")
def large():
    return Large()


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", COSTS)
def test_a_step_costs_what_its_rows_cost(name, scaled, accumulate, large):
    method = COSTS[name](large)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    for _ in range(2):  # MAO's first step makes moments of the tables' size
        with Elements() as elements:
            if accumulate:
                method.backward(large.losses(), accumulate=True, scaler=scaler)
            method.backward(large.losses(), scaler=scaler)
            if isinstance(method, eq.MAO):
                scaler.step(method)
                scaler.update()
        method.zero_grad()
        large.zero_grad()
    assert 0 < elements.made < ROWS // 20
    assert elements.largest < 200 * WIDTH
