"""A diagnosis finds what was built into a problem, and nothing else, and leaves no trace."""

import copy
import itertools
import math
import random

import numpy as np
import pytest
import torch
from networks import assert_same
from quadratics import ALIKE, STILL, Quadratics, diagnose
from torch import nn

import equipoise as eq
from equipoise.monitor.diagnosis.regimes import (
    NAMES,
    OPPOSED,
    SCALE,
    SIZE,
    SPEED,
)


def sure_no(diagnosis, *names):
    for regime in diagnosis.regimes:
        if regime.name in names:
            assert not regime.found, str(diagnosis)
            assert regime.sure, str(diagnosis)


@pytest.mark.parametrize("own", [False, True], ids=["agreeing", "unrelated"])
def test_nothing_to_balance_is_found(own):
    found = diagnose(Quadratics(ALIKE, own=own), costs=True)
    assert found.found == ()
    assert not found.needs_balancing
    sure_no(found, *NAMES)
    assert [one.method for one in found.recommended] == ["ew"]
    assert str(found).splitlines()[0] == "Nothing here needs balancing: keep equal weights (ew)."


def test_false_alarms_are_rare():
    alarms = [
        diagnose(Quadratics(ALIKE, noise=2.0, own=seed % 2 == 0, seed=seed), steps=50).found for seed in range(20)
    ]
    assert sum(bool(found) for found in alarms) <= 1


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_a_scale_is_an_imbalance_where_the_optimizer_does_not_remove_it(kind):
    model = Quadratics(ALIKE, {"c": 1000.0}, own=True)  # Adam sees every task's elements apart
    found = diagnose(model, STILL, kind)
    sure_no(found, OPPOSED, SPEED)
    if kind is torch.optim.AdamW:
        assert found.found == (SCALE,)
        sure_no(found, SIZE)
        assert not found.needs_balancing
        assert "what they do to the shared parameters is not" in found.answer
    else:
        assert found.found == (SCALE, SIZE)
        size = found.regimes[1]
        assert size.strength == pytest.approx(1000, rel=0.2)
        assert size.pair[0] == "c"
        assert [one.method for one in found.recommended] == ["ema", "imtl-l", "mao"]


def test_gradients_of_unlike_size_alone():
    model = Quadratics(ALIKE, {"a": 0.01, "b": 0.01, "c": 0.1}, {"a": 10.0, "b": 10.0, "c": 8.0})
    found = diagnose(model, STILL)
    assert found.found == (SIZE,)
    sure_no(found, SCALE, OPPOSED, SPEED)
    assert found.regimes[1].strength == pytest.approx(10, rel=0.1)  # one √v̂ for all
    assert [one.method for one in found.recommended] == ["mao", "imtl-g", "gradnorm"]
    assert "gradients of unlike size" in found.answer


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_opposed_directions_alone(noise):
    found = diagnose(Quadratics({"a": 1.0, "b": -1.0}, noise=noise), STILL)
    assert found.found == (OPPOSED,)
    sure_no(found, SCALE, SIZE, SPEED)
    opposed = found.regimes[2]
    assert opposed.strength == pytest.approx(-1, abs=0.3)  # the noise has been taken out
    assert opposed.evidence["cosine"] == pytest.approx(-1 / (1 + noise**2), abs=0.1)
    assert opposed.evidence["first with itself"] == pytest.approx(1 / (1 + noise**2), abs=0.1)
    assert opposed.evidence["share below 0"] > 0.8 > 0.2 > opposed.evidence["first with itself, share below 0"]
    assert [one.method for one in found.recommended] == ["cagrad", "pcgrad", "nash-mtl"]


def test_directions_that_noise_alone_opposes_are_not_opposed():
    found = diagnose(Quadratics({"a": 0.0, "b": 0.0, "c": 0.0}), STILL)
    assert found.regimes[2].evidence["share below 0"] > 0.3
    assert OPPOSED not in found.found


def test_unlike_speed_alone():
    targets = {"near": 1.0, "far": 20.0}
    model = Quadratics(targets, {task: 1 / target**2 for task, target in targets.items()}, noise=0.05, own=True)
    found = diagnose(model)
    assert found.found == (SPEED,)
    assert found.regimes[3].pair == ("far", "near")
    sure_no(found, SCALE, OPPOSED)
    assert [one.method for one in found.recommended] == ["famo", "dwa", "gradnorm"]


def test_several_regimes_together():
    found = diagnose(Quadratics({"a": 1.0, "b": -1.0}, {"b": 100.0}), STILL)
    assert found.found == (SCALE, SIZE, OPPOSED)
    assert [one.method for one in found.recommended] == ["imtl-g", "nash-mtl", "mao"]


def test_no_parameter_is_shared():
    model = nn.ModuleDict({task: nn.Linear(3, 1) for task in "ab"})
    batches = [torch.randn(8, 3) for _ in range(5)]

    def losses_of(batch):
        return {
            task: factor * layer(batch).square().mean()
            for factor, (task, layer) in zip((1, 99), model.items(), strict=True)
        }

    found = eq.diagnose(model, batches, losses_of, steps=20)
    assert not found.shared
    assert not found.needs_balancing
    assert found.answer.startswith("No parameter is shared")
    assert [one.method for one in found.recommended] == ["ew"]
    assert found.regimes[0].found
    found.picture()


@pytest.mark.parametrize("together", [True, False], ids=["at times", "never"])
def test_tasks_may_be_missing_in_batches(together):
    batches = [["a"], ["b"], [], ["c"], *([["a", "c"], ["b", "c"]] if together else [])]
    model = Quadratics({"a": 1.0, "b": -1.0, "c": 1.0}, noise=0.3)
    found = diagnose(model, STILL, batches=batches, steps=250, tasks=[*"abc"])
    assert found.found == (OPPOSED,)
    assert found.unjudged == ()
    assert ("seldom in one batch" in str(found)) == (not together or {*found.regimes[2].pair} == {"a", "b"})
    assert {*found.regimes[2].pair} in ({"a", "b"}, {"b", "c"})
    assert int((~found.measured.losses[:, 0].isnan()).sum()) == sum(
        "a" in b for b in itertools.islice(itertools.cycle(batches), 250)
    )
    found.picture()


def test_too_little_is_said_to_be_unknown():
    found = diagnose(Quadratics(ALIKE), batches=[["a", "b"]] * 59 + [["a", "c"]], steps=60, tasks=[*"abc"])
    assert "c" not in {task for regime in found.regimes for task in regime.pair}
    assert math.isnan(found.regimes[1].evidence["c"])
    assert found.unjudged == ("c",)
    assert found.answer.startswith("Nothing here needs balancing, as far as 60 steps tell")
    assert "to judge: c." in str(found)


class Untidy(nn.Module):
    """A network with everything that training changes."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in "ab"})
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def losses(self, batch):
        (x,) = batch
        x.requires_grad_()
        self.mean = 0.9 * self.mean + 0.1 * x.mean().detach()  # takes another buffer's place
        random.random(), np.random.rand()
        features = self.trunk(x)
        return {task: (100 if task == "b" else 1) * head(features).square().mean() for task, head in self.heads.items()}


@pytest.mark.parametrize("kind", ["fused AdamW", "SGD", "default", "raises"])
def test_nothing_changes(kind):
    torch.manual_seed(0)
    model = Untidy()
    model.heads["a"].eval()
    data = torch.utils.data.TensorDataset(torch.randn(64, 4))
    loader = torch.utils.data.DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(1))
    make = {"fused AdamW": lambda p: torch.optim.AdamW(p, fused=True)}.get(
        kind, lambda p: torch.optim.SGD(p, 1e-4, 0.9)
    )
    optimizer = make(model.parameters())
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    sum(model.losses(next(iter(loader))).values()).backward()
    optimizer.step()
    steps = []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    gradients = {name: p.grad for name, p in model.named_parameters()}

    def everything():
        return copy.deepcopy(
            {
                "parameters": dict(model.named_parameters()),
                "gradients": {name: p.grad for name, p in model.named_parameters()},
                "buffers": dict(model.named_buffers()),
                "modes": [module.training for module in model.modules()],
                "optimizer": optimizer.state_dict(),
                "loader": loader.generator.get_state(),
                "random": [
                    torch.get_rng_state(),
                    random.getstate(),
                    [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
                ],
                "inputs": data.tensors[0].grad,
            }
        )

    before = everything()
    if kind == "raises":
        count = itertools.count()

        def losses_of(batch):
            return {t: loss * (math.nan if next(count) > 30 else 1) for t, loss in model.losses(batch).items()}

        with pytest.raises(ValueError, match="is nan at step"):
            eq.diagnose(model, loader, losses_of, optimizer=optimizer)
    else:
        given = None if kind == "default" else optimizer
        found = eq.diagnose(model, loader, model.losses, optimizer=given, steps=24, costs=kind == "SGD")
        assert found.measured.optimizer == ("SGD" if kind == "SGD" else "AdamW")
    assert_same(everything(), before)
    assert {name: p.grad for name, p in model.named_parameters()} == gradients  # the same tensors
    assert not steps


def test_costs_are_measured_with_the_optimizer_given():
    found = diagnose(Quadratics({"a": 1.0, "b": -1.0}), STILL, torch.optim.SGD, steps=40, costs=True)
    for one in found.recommended:
        assert one.failure == ""
        assert one.cost.relative_time > 0
        assert one.cost.relative_memory >= 1
        assert f"{one.method}: {one.reason}; {one.cost.relative_time:.2f} × the time" in " ".join(str(found).split())


def test_a_method_that_fails_here_is_said_to():
    model = Quadratics({"a": 1.0, "b": -1.0})
    calls = itertools.count()

    def losses_of(batch):
        if next(calls) > 130:
            raise RuntimeError("no more")
        return model.losses(batch)

    found = eq.diagnose(model, [["a", "b"]], losses_of, steps=60)
    assert {one.failure for one in found.recommended} == {"no more"}
    assert "could not be measured (no more)" in " ".join(str(found).split())


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, found int"),
        ({"steps": 19}, ValueError, "at least 20; found 19"),
        ({"batches": []}, ValueError, "batches is empty"),
        ({"batches": iter([["a", "b"]] * 7)}, ValueError, "ended after 7, and an iterator does not begin anew"),
        ({"batches": [["a"]]}, ValueError, "nothing to balance with one task"),
        ({"tasks": ["a", "b", "d"]}, ValueError, "had a loss of 'd'"),
        ({"tasks": ["a", "d"]}, ValueError, "unknown task 'b'"),
        ({"losses_of": lambda batch: [1.0]}, TypeError, "losses must be a mapping"),
        ({"optimizer": "mao"}, TypeError, "MAO balances"),
        ({"optimizer": "NAdam"}, TypeError, "found NAdam"),
        ({"nan": True}, ValueError, "The loss of 'a' is nan at step 0.*look at the data"),
        ({"lr": 1e30}, ValueError, "lower learning rate"),
    ],
)
def test_errors(changes, error, words):
    model = Quadratics({"a": 1.0, "b": 1.0}, {"a": math.nan} if changes.pop("nan", False) else None)
    optimizer = torch.optim.SGD(model.parameters(), changes.pop("lr", 1e-3))
    if changes.get("optimizer") == "mao":
        changes["optimizer"] = eq.MAO(model.parameters(), ["a", "b"])
    elif "optimizer" in changes:
        changes["optimizer"] = torch.optim.NAdam(model.parameters())
    arguments = {
        "model": model,
        "batches": [["a", "b"]],
        "losses_of": model.losses,
        "optimizer": optimizer,
        "steps": 40,
    }
    before = model.w.detach().clone()
    with pytest.raises(error, match=words):
        eq.diagnose(**arguments | changes)
    assert torch.equal(model.w, before)
    assert model.w.grad is None
