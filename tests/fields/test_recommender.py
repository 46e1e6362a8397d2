"""The recommender: sparse tables beside dense layers, conversions known of few impressions."""

import pytest
import torch
from fields.examples import example
from torch.nn.functional import binary_cross_entropy_with_logits
from training_loop.sparse_tables import Elements

import equipoise as eq

recommender = example("recommender.py")
ROWS = 3000


def batch_of(count, seed, clicks=True):
    ids, labels, known = recommender.impressions(count, torch.Generator().manual_seed(seed))
    if not clicks:
        labels = {task: torch.zeros_like(value) for task, value in labels.items()}
        known = {**known, "conversion": torch.zeros_like(known["conversion"])}
    return ids, labels, known


def training(method="balancer", rows=ROWS):
    made = recommender.Training(rows)
    if method == "mao":
        made.balancer = eq.MAO(made.model.parameters(), recommender.TASKS, lr=1e-2)
        made.optimizers = [made.balancer]
    return made


def rows_of(ids, rows=ROWS):
    return {name: set((found * 2654435761 % rows).flatten().tolist()) for name, found in ids.items()}


def test_it_learns_both():
    areas = recommender.main(steps=300)
    assert areas["click"] > 0.58
    assert areas["conversion"] > 0.75  # its labels are those of one impression in eight


def test_gradients_are_those_of_averages_and_projections_by_hand():
    """EMA's and PCGrad's formulas on dense gradients of all that is shared."""
    run, averages, found = training(), {}, {}
    shared = [*run.model.tables.parameters(), *run.model.bottom.parameters()]
    for optimizer in run.optimizers:
        optimizer.register_step_pre_hook(
            lambda optimizer, *_: found.update((p, p.grad) for p in optimizer.param_groups[0]["params"])
        )
    for index in range(4):
        ids, labels, known = batch_of(64, index, clicks=index != 2)  # then no conversion is known
        logits = run.model(ids)
        expected, rows = {}, {}
        for task in recommender.TASKS if index != 2 else ["click"]:
            loss = binary_cross_entropy_with_logits(logits[task][known[task]], labels[task][known[task]])
            averages[task] = 0.1 * loss.item() + 0.9 * averages.get(task, loss.item())
            own = list(run.model.towers[task].parameters())
            gradients = torch.autograd.grad(loss / averages[task], [*shared, *own], retain_graph=True)
            rows[task] = torch.cat([g.to_dense().flatten() for g in gradients[: len(shared)]])
            expected.update(zip(own, gradients[len(shared) :], strict=True))
        total = 0
        for task, row in rows.items():
            total = total + row
            for other in (rows[o] for o in rows if o != task):
                total = total - (row @ other).clamp(max=0) / (other @ other) * other
        expected.update(zip(shared, total.split([p.numel() for p in shared]), strict=True))
        run.step((ids, labels, known))
        for name, p in run.model.named_parameters():
            if p not in expected:
                assert found[p] is None, name
            else:
                assert found[p].is_sparse == name.startswith("tables")
                torch.testing.assert_close(found[p].to_dense(), expected[p].view_as(p), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", ["balancer", "mao"])
def test_only_touched_rows_and_their_moments_are_written(method):
    run = training(method)
    ever = {name: set() for name in run.model.tables}
    for index in range(3):
        batch = batch_of(16, index, clicks=index != 1)
        before = {name: table.weight.detach().clone() for name, table in run.model.tables.items()}
        run.step(batch)
        touched = rows_of(batch[0])
        for name, table in run.model.tables.items():
            ever[name] |= touched[name]
            changed = set((table.weight != before[name]).any(1).nonzero().flatten().tolist())
            assert changed == touched[name]  # and no other, though SparseAdam's and MAO's averages are not 0 there
            state = run.optimizers[0].state[table.weight]
            averages = {key: value for key, value in state.items() if "exp_avg" in key}
            assert len(averages) == (2 if method == "balancer" else 4)
            for average in averages.values():
                assert set(average.any(1).nonzero().flatten().tolist()) <= ever[name]


@pytest.mark.parametrize("method", ["balancer", "mao"])
def test_a_step_makes_as_many_numbers_whatever_the_rows(method):
    made = []
    for rows in (ROWS, 40 * ROWS):
        run = training(method, rows)
        run.step(batch_of(16, 0))
        with Elements() as elements:
            run.step(batch_of(16, 1))
        made.append(elements.made)
        assert elements.largest < 100 * recommender.WIDTH * 64
    assert made[1] < 1.1 * made[0]
