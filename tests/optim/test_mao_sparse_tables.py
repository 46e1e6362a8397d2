"""MAO on tables with sparse gradients: each task moves the rows that it touches, as `torch.optim.SparseAdam` does."""

import copy

import pytest
import torch
from mao_and_reference import take
from networks import assert_same
from torch import nn
from training_loop.sparse_tables import TASKS, Tables

import equipoise as eq
from equipoise.optim.moments import Moments

LR = 0.05


class ByHand:
    """The sum of the steps of one SparseAdam and one AdamW a task, on parameters that are zero before each step."""

    def __init__(self, model, tasks, weight_decay=0.0, max_norm=None):
        self.model, self.weight_decay, self.max_norm = model, weight_decay, max_norm
        tables = set(model.tables())
        self.copies = {task: {p: nn.Parameter(torch.zeros_like(p)) for p in model.parameters()} for task in tasks}
        self.optimizers = {
            task: [
                torch.optim.SparseAdam([q for p, q in copies.items() if p in tables], lr=LR),
                torch.optim.AdamW([q for p, q in copies.items() if p not in tables], lr=LR, weight_decay=0),
            ]
            for task, copies in self.copies.items()
        }

    def step(self, losses):
        """Moves the model by the gradients of the losses, task → scalar."""
        rows = {task: self.row(loss) for task, loss in losses.items()}
        with torch.no_grad():
            for p in self.model.parameters():
                own = [row[p] for row in rows.values() if p in row]
                if own:
                    touched = {int(i) for g in own for i in g._indices()[0]} if own[0].is_sparse else range(len(p))
                    p[list(touched)] *= 1 - LR * self.weight_decay
            for task, row in rows.items():
                for p, q in self.copies[task].items():
                    q.zero_()
                    q.grad = row.get(p)
                for optimizer in self.optimizers[task]:
                    optimizer.step()
                for p, q in self.copies[task].items():
                    if p in row:
                        p += q

    def row(self, loss):
        found = torch.autograd.grad(loss, list(self.model.parameters()), allow_unused=True, retain_graph=True)
        row = {p: g for p, g in zip(self.model.parameters(), found, strict=True) if g is not None}
        if self.max_norm is not None:
            norm = torch.stack([g.to_dense().norm() for g in row.values()]).norm()
            factor = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
            row = {p: g * factor for p, g in row.items()}
        return row


OPTIONS = {
    "plain": {},
    "decay": {"weight_decay": 0.5},
    "clipped": {"max_norm": 0.3},
    "groups": {"groups": {"one": ["a", "c"], "other": ["b"]}},
    "unfused": {"fused": False},
}
HOW = ["plain", "missing", "accumulate", "counts", "scaler"]
COUNTS = [{"a": 3, "b": 1, "c": 2}, {"a": 1, "b": 5, "c": 1}]


@pytest.mark.parametrize(
    ("options", "how"),
    [
        *((o, "plain") for o in OPTIONS),
        *(("plain", how) for how in HOW[1:]),
        ("clipped", "accumulate"),
        ("groups", "missing"),
        ("decay", "scaler"),
    ],
)
def test_each_task_moves_the_rows_it_touches_as_sparse_adam(options, how):
    model, twin = Tables(sparse=True), Tables(sparse=True)
    optimizer = eq.MAO(model.parameters(), TASKS, lr=LR, **OPTIONS[options])
    groups = OPTIONS[options].get("groups", {task: [task] for task in TASKS})
    given = {key: value for key, value in OPTIONS[options].items() if key in ("weight_decay", "max_norm")}
    by_hand = ByHand(twin, groups, **given)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(5):
        tasks = ["abc", "ac", "b"][step % 3] if how == "missing" else TASKS
        losses = twin.losses(step, tasks)
        if how in ("accumulate", "counts"):
            counts = COUNTS if how == "counts" else [None, None]
            optimizer.backward(model.losses(step), accumulate=True, counts=counts[0])
            optimizer.backward(model.losses(step + 1), counts=counts[1])
            shares = {t: 1.0 if how == "accumulate" else COUNTS[0][t] / (COUNTS[0][t] + COUNTS[1][t]) for t in TASKS}
            last = {t: 1.0 if how == "accumulate" else 1 - shares[t] for t in TASKS}
            again = twin.losses(step + 1)
            losses = {task: shares[task] * loss + last[task] * again[task] for task, loss in losses.items()}
        else:
            optimizer.backward(model.losses(step, tasks), scaler=scaler if how == "scaler" else None)
        if how == "scaler":
            scaler.step(optimizer)
            scaler.update()
            assert scaler.get_scale() == 1024
        else:
            optimizer.step()
        optimizer.zero_grad()
        together = {g: [losses[t] for t in members if t in losses] for g, members in groups.items()}
        by_hand.step({group: sum(parts) for group, parts in together.items() if parts})
        for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=name)


def test_streaming_makes_tables_dense():
    sparse, model = Tables(sparse=True), Tables(sparse=False)
    optimizers = [eq.MAO(m.parameters(), TASKS, lr=LR, weight_decay=0.1, streaming=True) for m in (sparse, model)]
    for step in range(3):
        for m, optimizer in zip((sparse, model), optimizers, strict=True):
            optimizer.backward(m.losses(step))
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(sparse.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_resumes_bit_for_bit():
    def step(model, optimizer, index):
        optimizer.backward(model.losses(index))
        optimizer.step()
        optimizer.zero_grad()

    model = Tables(sparse=True)
    optimizer = eq.MAO(model.parameters(), TASKS, lr=LR, weight_decay=0.1)
    for index in range(2):
        step(model, optimizer, index)
    other = Tables(sparse=True)
    resumed = eq.MAO(other.parameters(), TASKS, lr=LR, weight_decay=0.1)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for index in (2, 3):
        step(model, optimizer, index)
        step(other, resumed, index)
    assert_same(dict(other.state_dict()), dict(model.state_dict()))


def test_a_loss_that_is_not_finite_counts_as_zero_where_nobody_looks():
    model, twin = Tables(sparse=True), Tables(sparse=True)
    optimizers = [eq.MAO(m.parameters(), TASKS, lr=LR, check_finite=False) for m in (model, twin)]
    losses, zero = model.losses(0), twin.losses(0)
    optimizers[0].backward({**losses, "a": losses["a"] * torch.nan})
    optimizers[1].backward({**zero, "a": zero["a"] * 0.0})
    for optimizer in optimizers:
        optimizer.step()
    assert_same(dict(model.state_dict()), dict(twin.state_dict()))
    for table in model.tables():
        state = [value for value in optimizers[0].state[table].values() if isinstance(value, torch.Tensor)]
        assert all(value.isfinite().all() for value in state)


@pytest.mark.parametrize("fused", [True, False])
def test_a_task_that_the_device_finds_without_label_changes_no_row(fused):
    table = nn.Parameter(torch.ones(6, 2))
    moments = Moments(torch.zeros(()), torch.zeros(6, 2), torch.zeros(6, 2))
    gradient = torch.sparse_coo_tensor([[4, 1, 4]], torch.ones(3, 2), (6, 2), check_invariants=True)
    group = {"lr": LR, "betas": (0.9, 0.999), "eps": 1e-8, "fused": fused, "capturable": False}
    take([table], [gradient], [moments], group, torch.tensor(False))
    assert table.eq(1).all()
    assert not any(moment.any() for moment in moments)
    take([table], [gradient], [moments], group, torch.tensor(True))
    assert table[:, 0].ne(1).tolist() == [False, True, False, False, True, False]
    assert moments.steps == 1


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_penalty_in_grad_moves_its_own_rows_alone(when, scaled):
    """What is in `.grad` beside the tasks' gradients is sparse, and stays so while task gradients wait."""
    model = Tables(sparse=True)
    optimizer = eq.MAO(model.parameters(), TASKS, lr=LR, weight_decay=0.5)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    before = model.words.weight.detach().clone()

    def penalty():
        scaler.scale(model.words(torch.tensor([7, 8, 8])).square().sum()).backward()

    if when == "before":
        penalty()
    optimizer.backward(model.losses(0), scaler=scaler)
    if when == "after":
        penalty()
    assert model.words.weight.grad.is_sparse
    scaler.step(optimizer)
    assert (model.words.weight != before).any(1).tolist() == [i in (0, 1, 4, 7, 8) for i in range(9)]


class OnlyTables(nn.Module):
    def __init__(self, rows=5):
        super().__init__()
        self.table = nn.Embedding(rows, 2, sparse=True)

    def losses(self):
        z = self.table(torch.tensor([[3, 1], [3, 2]]))
        return {"a": z.square().sum(), "b": (z - 1).square().sum()}


@pytest.mark.parametrize("rows", [5, 5000])
@pytest.mark.parametrize("kind", ["mao", "balancer"])
@pytest.mark.parametrize("clear", ["none", "zero", "kept"])
def test_clearing_is_seen_where_all_gradients_are_sparse(kind, clear, rows):
    torch.manual_seed(0)
    model = OnlyTables(rows)
    once = torch.autograd.grad(sum(model.losses().values()), model.table.weight)[0].to_dense()
    balancer = eq.Balancer(["a", "b"], aggregator=eq.GradDrop(leak=1.0))
    optimizer = eq.MAO(model.parameters(), ["a", "b"]) if kind == "mao" else balancer
    optimizer.backward(model.losses(), accumulate=True)
    assert model.table.weight.grad.is_sparse
    if clear != "kept":
        torch.optim.SGD(model.parameters()).zero_grad(set_to_none=clear == "none")
    optimizer.backward(model.losses())
    if kind == "mao":
        found = sum(row[model.table.weight].to_dense() for row in optimizer._pending.rows.values())
    else:
        assert model.table.weight.grad.is_sparse
        found = model.table.weight.grad.to_dense()
    torch.testing.assert_close(found, 2 * once if clear == "kept" else once)
