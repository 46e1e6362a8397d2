"""Every objective with every aggregator."""

import pytest
import torch
from networks import TASKS, Network, batch

import equipoise as eq

OBJECTIVES = {
    "Equal": eq.Equal,
    "Static": lambda: eq.Static({"a": 1.0, "b": 0.2, "c": 3.0}),
    "RLW": lambda: eq.RLW(seed=3),
    "UW": eq.UW,
    "DWA": lambda: eq.DWA(interval=1),
    "EMA": eq.EMA,
    "REMA": eq.REMA,
    "DWEMA": eq.DWEMA,
    "DTP": eq.DTP,
    "Achievement": lambda: eq.Achievement(dict.fromkeys(TASKS, 0.8)),
    "IMTLL": eq.IMTLL,
    "FAMO": eq.FAMO,
    "GLS": lambda: eq.GeometricMean(eq.Equal()),
    "DWA-G": lambda: eq.GeometricMean(eq.DWA(interval=2)),
    "RLW-G": lambda: eq.GeometricMean(eq.RLW(seed=3)),
    "DTP-G": lambda: eq.GeometricMean(eq.DTP()),
    "AMTL": lambda: eq.GeometricMean(eq.Achievement(dict.fromkeys(TASKS, 0.8))),
    "EMA under WeightedSum": lambda: eq.WeightedSum(eq.EMA()),
}
AGGREGATORS = {
    "GradNorm": eq.GradNorm,
    "IMTLG": eq.IMTLG,
    "MGDA": eq.MGDA,
    "MGDA l2": lambda: eq.MGDA("l2"),
    "MGDA loss": lambda: eq.MGDA("loss"),
    "MGDA loss+": lambda: eq.MGDA("loss+"),
    "PCGrad": lambda: eq.PCGrad(seed=1),
    "GradDrop": lambda: eq.GradDrop(seed=1),
    "CAGrad": eq.CAGrad,
    "NashMTL": eq.NashMTL,
}
PRESENT = ["abc", "abc", "ac", "b", "abc"]


def task_gradients(model, x, tasks):
    """{task: {name: gradient}}, each from a forward and backward pass of its own."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    result = {}
    for task in tasks:
        found = torch.autograd.grad(model.losses(x, [task])[task], list(named.values()), allow_unused=True)
        result[task] = {name: g for name, g in zip(named, found, strict=True) if g is not None}
    return result


@pytest.mark.parametrize("aggregator", AGGREGATORS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_with_every_aggregator(objective, aggregator):
    """Heads get their own gradient times the objective's coefficient, shared parameters the rows' combination.

    The coefficients are those of the objective alone, on the same losses.
    """
    model = Network().double()
    alone = eq.Balancer(TASKS, OBJECTIVES[objective]())
    balancer = eq.Balancer(TASKS, OBJECTIVES[objective](), AGGREGATORS[aggregator]())
    ever_shared = set()
    for index, tasks in enumerate(PRESENT):
        x = batch(index)
        rows = task_gradients(model, x, tasks)
        ever_shared |= {n for n, _ in model.named_parameters() if sum(n in row for row in rows.values()) > 1}
        coefficients = {task: w.item() for task, w in alone.backward(model.losses(x, tasks)).items()}
        model.zero_grad()
        weights = {task: w.item() for task, w in balancer.backward(model.losses(x, tasks)).items()}
        assert list(weights) == list(tasks)
        for name, parameter in model.named_parameters():
            tasks_here = [task for task in tasks if name in rows[task]]
            if not tasks_here:
                assert parameter.grad is None
                continue
            assert parameter.grad.isfinite().all()
            if name not in ever_shared:
                (task,) = tasks_here
                torch.testing.assert_close(parameter.grad, coefficients[task] * rows[task][name], rtol=1e-8, atol=1e-11)
            elif aggregator == "GradDrop":  # every element comes from tasks of one sign, or is dropped
                scaled = torch.stack([coefficients[t] * rows[t][name] for t in tasks_here])
                sums = torch.stack([scaled.clamp(min=0).sum(0), scaled.clamp(max=0).sum(0)])
                assert (sums - parameter.grad).abs().amin(0).max() < 1e-9
            else:
                expected = sum(weights[task] * rows[task][name] for task in tasks_here)
                torch.testing.assert_close(parameter.grad, expected, rtol=1e-7, atol=1e-10)
        model.zero_grad()
        for one in (alone, balancer):
            one.zero_grad()
            if one.needs_after_step:
                one.after_step({task: loss * 0.9 for task, loss in model.losses(x, tasks).items()})
            if index == 1:
                one.end_epoch({"a": 0.4, "b": 0.5, "c": 0.6})


def test_a_scalarizer_of_ones_own_composes_too():
    class SoftMaximum(eq.Objective):
        """`log Σ e^{L_k}`: the coefficients are the softmax of the losses."""

        def forward(self, losses):
            return losses.logsumexp(0)

    class Half(eq.Weighting):
        def forward(self, losses):
            return torch.full_like(losses, 0.5)

    model = Network().double()
    losses = model.losses(batch(0))
    weights = eq.Balancer(TASKS, SoftMaximum()).backward(losses)
    expected = torch.stack(list(losses.values())).softmax(0)
    torch.testing.assert_close(torch.stack(list(weights.values())), expected.detach())
    weights = eq.Balancer(TASKS, Half(), eq.IMTLG()).backward(model.losses(batch(0)))
    plain = eq.Balancer(TASKS, None, eq.IMTLG()).backward(model.losses(batch(0)))
    for task in TASKS:  # IMTL-G does not see a common factor
        torch.testing.assert_close(weights[task], 0.5 * plain[task])
