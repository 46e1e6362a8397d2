"""Every aggregator, weighting and scalarizer of TorchJD, against TorchJD itself on the same model."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import assert_same
from torch import Tensor, nn

import equipoise as eq

torchjd = pytest.importorskip("torchjd")
from torchjd import aggregation, autojac, scalarization  # noqa: E402

TASKS = ["a", "b", "c"]
BASES = {"Aggregator", "Weighting", "GramianWeightedAggregator", "WeightedAggregator", "Scalarizer"}
TWO_BATCHES = {"MoDoWeighting", "SDMGradWeighting"}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "CAGrad": {"c": 0.5},
    "CAGradWeighting": {"c": 0.5},
    "Constant": {"weights": [0.5, 1.0, 2.0]},
    "ConstantWeighting": {"weights": [0.5, 1.0, 2.0]},
    "COSMOS": {"lambda_": 0.5, "weights": [0.2, 0.3, 0.5]},
    "FairGrad": {"alpha": 1.0},
    "FairGradWeighting": {"alpha": 1.0},
    "Krum": {"n_byzantine": 0},
    "KrumWeighting": {"n_byzantine": 0},
    "PBI": {"theta": 5.0, "weights": [0.2, 0.3, 0.5]},
    "STCH": {"mu": 0.5},
    "TrimmedMean": {"trim_number": 1},
}
AGGREGATION = [name for name in aggregation.__all__ if name not in BASES | TWO_BATCHES]
SCALARIZATION = [name for name in scalarization.__all__ if name not in BASES]

pytestmark = pytest.mark.filterwarnings("ignore:You are solving a parameterized problem", "ignore:.*ECOS")


class Model(nn.Module):
    """Float64, with losses that conflict."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(4)
            self.trunk = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh())
            self.heads = nn.ModuleDict({task: nn.Linear(3, 1) for task in TASKS})
        self.double()

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        z = self.trunk(x)
        signs = {"a": 1.0, "b": -2.0, "c": 0.3}
        return z, {t: 0.1 + (self.heads[t](z) - signs[t] * x.sum(1, keepdim=True)).square().mean() for t in TASKS}


def batch(step: int) -> Tensor:
    return torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))


def instance(module: Any, name: str) -> Any:
    if name == "CRMOGMWeighting":
        return aggregation.CRMOGMWeighting(aggregation.UPGradWeighting())
    given = {k: torch.tensor(v).double() if isinstance(v, list) else v for k, v in ARGUMENTS.get(name, {}).items()}
    given |= {"n_tasks": 3} if name == "NashMTL" else {}
    given |= {"shape": 3} if name in ("FAMO", "IMTLL", "UW") and module is scalarization else {}
    return getattr(module, name)(**given)


def as_aggregator(part: Any) -> Any:
    """TorchJD's own way from a weighting to an aggregator."""
    if not isinstance(part, aggregation.Weighting):
        return part
    matrix = isinstance(part, aggregation._weighting_bases._MatrixWeighting)
    return (aggregation.WeightedAggregator if matrix else aggregation.GramianWeightedAggregator)(part)


def next_seed(balancer: eq.Balancer, part: str) -> int:
    generator = torch.Generator()
    generator.set_state(getattr(balancer, part).generator.get_state())
    return int(torch.randint(2**62, (), generator=generator))


def assert_gradients_close(found: nn.Module, expected: nn.Module, tolerance: float = 1e-9) -> None:
    for p, q in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=tolerance, atol=1e-3 * tolerance)


@pytest.mark.parametrize("name", AGGREGATION)
def test_aggregators_and_weightings(name: str) -> None:
    ours, theirs = Model(), Model()
    part = instance(aggregation, name)
    aggregator = as_aggregator(copy.deepcopy(part) if name != "NashMTL" else instance(aggregation, name))
    balancer = eq.Balancer(TASKS, aggregator=part, model=ours)
    for step in range(3):
        ours.zero_grad()
        theirs.zero_grad()
        seed = next_seed(balancer, "aggregator")
        before = torch.get_rng_state()
        balancer.backward(ours(batch(step))[1])
        assert torch.equal(torch.get_rng_state(), before), "the person's own random numbers are left alone"
        features, losses = theirs(batch(step))
        autojac.mtl_backward(list(losses.values()), features=features)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            autojac.jac_to_grad(theirs.trunk.parameters(), aggregator)
        iterates = name == "NashMTL"  # until a step is below 1e-6: rounding of the Jacobian decides beyond
        assert_gradients_close(ours, theirs, 1e-6 if iterates else 1e-9)
        for model in (ours, theirs):
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.02 * p.grad


@pytest.mark.parametrize("name", SCALARIZATION)
def test_scalarizers(name: str) -> None:
    ours, theirs = Model(), Model()
    part, scalarizer = instance(scalarization, name), instance(scalarization, name)
    balancer = eq.Balancer(TASKS, part)
    for step in range(6):
        for module in (ours, theirs, balancer, scalarizer):
            module.zero_grad()
        seed = next_seed(balancer, "objective")
        balancer.backward(ours(batch(step))[1])
        values = torch.stack(list(theirs(batch(step))[1].values()))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            scalarizer(values).backward()
        assert_gradients_close(ours, theirs)
        assert_gradients_close(balancer, scalarizer)
        for module in (ours, theirs, balancer, scalarizer):
            with torch.no_grad():
                for p in module.parameters():
                    if p.grad is not None:
                        p -= 0.02 * p.grad
        if name == "FAMO":
            assert balancer.needs_after_step
            balancer.after_step(ours(batch(step))[1])
            scalarizer.update(torch.stack(list(theirs(batch(step))[1].values())))
        if name == "DWA" and step % 2:
            balancer.end_epoch()
            scalarizer.step()


def test_a_composed_aggregator_of_their_own() -> None:
    composed = aggregation.GramianWeightedAggregator(aggregation.CRMOGMWeighting(aggregation.UPGradWeighting()))
    one, other = Model(), Model()
    eq.Balancer(TASKS, aggregator=composed).backward(one(batch(0))[1])
    eq.Balancer(TASKS, aggregator=instance(aggregation, "CRMOGMWeighting")).backward(other(batch(0))[1])
    assert_gradients_close(one, other)


def run(method: Any, model: nn.Module, steps: range) -> None:
    for step in steps:
        method.backward(model(batch(step))[1])
        method.step()
        method.zero_grad()
        method.after_step(model(batch(step))[1])
        if step % 2:
            method.end_epoch({})


ALL = [f"torchjd:aggregation.{n}" for n in AGGREGATION] + [f"torchjd:scalarization.{n}" for n in SCALARIZATION]


def made(name: str, model: nn.Module) -> Any:
    torch.manual_seed(8)
    arguments = dict(ARGUMENTS.get(name.rpartition(".")[2], {}))
    if name.endswith("CRMOGMWeighting"):
        arguments["weighting"] = aggregation.UPGradWeighting()
    return eq.make_method(name, model, TASKS, lr=0.01, **arguments)


@pytest.mark.parametrize("name", ALL)
def test_by_name_and_resumed_bit_for_bit(name: str) -> None:
    model = Model()
    method = made(name, model)
    run(method, model, range(3))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "method": method.state_dict()}, file)
    run(method, model, range(3, 7))

    other = Model()
    resumed = made(name, other)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["method"])
    run(resumed, other, range(3, 7))
    assert_same(dict(other.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize("name", ALL)
def test_overflow_changes_no_state(name: str) -> None:
    model = Model()
    method = made(name, model)
    method.balancer.check_finite = False
    run(method, model, range(2))
    state = copy.deepcopy(method.balancer.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    losses = model(batch(2))[1]
    infinite = {task: loss + 0 * (loss * 1e200).square() for task, loss in losses.items()}
    method.backward(infinite, scaler=scaler)
    method.zero_grad()
    assert_same(dict(method.balancer.state_dict()), dict(state))


@pytest.mark.parametrize("name", sorted(TWO_BATCHES))
def test_weightings_of_two_batches_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match="two independent batches"):
        eq.Balancer(TASKS, aggregator=getattr(aggregation, name)())


@pytest.mark.parametrize("name", ["GradVac", "PCD", "ExcessMTL", "NashMTL", "CRMOGMWeighting"])
def test_stateful_ones_refuse_missing_tasks(name: str) -> None:
    model = Model()
    balancer = eq.Balancer(TASKS, aggregator=instance(aggregation, name))
    balancer.backward(model(batch(0))[1])
    state, losses = copy.deepcopy(balancer.state_dict()), model(batch(1))[1]
    losses.pop("b")
    with pytest.raises(ValueError, match="Leave out none"):
        balancer.backward(losses)
    assert_same(dict(balancer.state_dict()), dict(state))


def test_stateless_ones_take_missing_tasks() -> None:
    one, other = Model(), Model()
    losses = one(batch(0))[1]
    losses.pop("b")
    balancer = eq.Balancer(TASKS, aggregator=aggregation.UPGrad())
    balancer.backward(other(batch(1))[1])
    other.zero_grad()
    eq.Balancer(["a", "c"], aggregator=aggregation.UPGrad()).backward(losses)
    balancer.backward({task: loss for task, loss in other(batch(0))[1].items() if task != "b"})
    for p, q in zip(one.trunk.parameters(), other.trunk.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("torchjd:UpGrad", {}, ValueError, "TorchJD has no 'UpGrad'; it has .*UPGrad"),
        ("torchjd:scalarization.UPGrad", {}, ValueError, "TorchJD has no"),
        ("torchjd:Aggregator", {}, ValueError, "TorchJD has no 'Aggregator'; it has AlignedMTL"),
        ("torchjd:Weighting", {}, ValueError, r"it has (?!.*\bWeighting\b)(?!.*\bScalarizer\b)(?!.*MoDoWeighting)"),
        ("torchjd:CAGrad", {}, ValueError, "CAGrad needs the hyperparameter c"),
        ("torchjd:CAGrad", {"d": 1}, ValueError, "has no hyperparameter d; it takes: c, norm_eps"),
    ],
)
def test_errors_by_name(name: str, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        eq.make_method(name, Model(), TASKS, **arguments)


def test_the_wrong_place() -> None:
    with pytest.raises(TypeError, match="goes into aggregator="):
        eq.Balancer(TASKS, aggregation.UPGrad())
    with pytest.raises(TypeError, match="aggregator takes TorchJD's aggregators and weightings"):
        eq.Balancer(TASKS, aggregator=scalarization.Mean())


@pytest.mark.release
def test_in_a_comparison_by_name(tmp_path: Path) -> None:
    problem = Path(__file__).parents[2] / "examples" / "tabular.py"
    methods = "torchjd:UPGrad,torchjd:scalarization.GeometricMean"
    options = ["--quick", "--seeds", "1", "--out", "out", "--methods", methods]
    command = [sys.executable, "-m", "equipoise", "compare", f"{problem}:problem", *options]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    runs = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    finished = {run["method"] for run in runs if run["status"] == "finished"}
    assert finished >= set(methods.split(","))


def test_without_torchjd_the_error_says_what_to_install() -> None:
    code = (
        "import sys, torch, equipoise as eq; sys.modules['torchjd'] = None\n"
        "try: eq.make_method('torchjd:UPGrad', torch.nn.Linear(1, 1), ['a'])\n"
        "except ImportError as error: assert 'equipoise[torchjd]' in str(error)\n"
        "else: raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torchjd_is_not_imported_without_need() -> None:
    code = "import equipoise as eq, sys; eq.Balancer(['a']); assert not any('torchjd' == m for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
