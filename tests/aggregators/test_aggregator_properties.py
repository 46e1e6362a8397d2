"""What holds for every aggregator, or for all that promise it, on every sampled Jacobian."""

import copy
import math

import pytest
import torch
from default_device import default_device

from equipoise.aggregators import (
    IMTLG,
    MGDA,
    PCD,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    GradDrop,
    GradNorm,
    GradVac,
    Krum,
    NashMTL,
    PCGrad,
    UPGrad,
    _simplex,
    nash_mtl,
)
from equipoise.testing._jacobians import CASES, COUNTS, FULL_RANK, sample

STATELESS = {
    "imtl-g": IMTLG,
    "mgda": MGDA,
    "mgda l2": lambda: MGDA("l2"),
    "cagrad": CAGrad,
    "cagrad large c": lambda: CAGrad(c=3.0),
    "cagrad small c": lambda: CAGrad(c=1e-3),
    "nash-mtl": NashMTL,
    "fairgrad": FairGrad,
    "fairgrad alpha 2": lambda: FairGrad(alpha=2.0),
    "fairgrad alpha 0.5": lambda: FairGrad(alpha=0.5),
    "aligned-mtl": AlignedMTL,
    "aligned-mtl median": lambda: AlignedMTL("median"),
    "aligned-mtl mean": lambda: AlignedMTL("mean"),
    "config": ConFIG,
    "upgrad": UPGrad,
    "dualproj": DualProj,
    "krum": Krum,
    "krum of three": lambda: Krum(byzantine=2, selected=3),
    "pcgrad": lambda: PCGrad(seed=1),
    "graddrop": lambda: GradDrop(seed=1),
    "graddrop leak": lambda: GradDrop(leak=0.3, seed=1),
}


def promising(promise):
    """The methods that declare it."""
    return [method for method, create in STATELESS.items() if getattr(create(), promise)]


def test_what_the_methods_promise():
    """Each list goes into a test; a promise that is withdrawn is seen here."""
    every = list(STATELESS)
    fair = ["fairgrad", "fairgrad alpha 2", "fairgrad alpha 0.5"]
    assert promising("non_conflicting") == ["mgda", "nash-mtl", *fair, "upgrad", "dualproj"]
    ordered = ["pcgrad", "krum", "krum of three"]
    assert promising("permutation_invariant") == [method for method in every if method not in ordered]
    assert promising("homogeneous") == [method for method in every if method not in ("nash-mtl", *fair)]
    assert promising("scale_invariant") == ["nash-mtl", "fairgrad"]


@pytest.mark.parametrize(("name", "count"), CASES)
@pytest.mark.parametrize("method", STATELESS)
def test_finite_and_no_longer_than_the_rows_allow(method, name, count):
    jacobian = sample(name, count)
    combined = STATELESS[method]()(jacobian)
    assert combined.shape == (100,)
    assert torch.isfinite(combined).all()
    if method.startswith("mgda"):
        assert combined.norm() <= jacobian.norm(dim=1).sum() * (1 + 1e-12)
    if method == "nash-mtl":
        assert combined.norm() <= math.sqrt(count) * (1 + 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", STATELESS)
def test_all_rows_zero(method, dtype):
    combined = STATELESS[method]()(torch.zeros(3, 7, dtype=dtype))
    assert combined.dtype == dtype
    assert torch.equal(combined, torch.zeros(7, dtype=dtype))


def precision(method, name):
    """Eigenvalues of a Gramian are exact to rounding relative to the largest: here they lie over eleven decades."""
    return 1e-4 if method.startswith("aligned-mtl") and name == "shared direction" else 1e-8


@pytest.mark.parametrize(("name", "count"), FULL_RANK)
@pytest.mark.parametrize("method", promising("permutation_invariant"))
def test_order_of_tasks_does_not_matter(method, name, count):
    jacobian = sample(name, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    one, other = STATELESS[method]()(jacobian), STATELESS[method]()(jacobian[order])
    scale = 0.1 * float(jacobian.norm(dim=1).max())
    torch.testing.assert_close(other, one, rtol=1e-8, atol=scale * precision(method, name))


@pytest.mark.parametrize("factor", [1e-12, 1e-3, 1e12])
@pytest.mark.parametrize(("name", "count"), FULL_RANK)
@pytest.mark.parametrize("method", promising("homogeneous"))
def test_scaling_all_gradients_scales_the_result(method, name, count, factor):
    jacobian = sample(name, count)
    one, other = STATELESS[method]()(jacobian), STATELESS[method]()(factor * jacobian)
    scale = 0.1 * factor * float(one.norm())
    torch.testing.assert_close(other, factor * one, rtol=1e-8, atol=scale * precision(method, name))


@pytest.mark.parametrize(("name", "count"), FULL_RANK)
@pytest.mark.parametrize("method", promising("scale_invariant"))
def test_no_tasks_scale_matters(method, name, count):
    jacobian = sample(name, count)
    expected = STATELESS[method]()(jacobian)
    for scales in (torch.logspace(-6, 6, count), torch.full((count,), 1e-12), torch.full((count,), 1e12)):
        scaled = jacobian * scales.double()[:, None]
        torch.testing.assert_close(STATELESS[method]()(scaled), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("name", "count"), CASES)
@pytest.mark.parametrize("method", promising("non_conflicting"))
def test_never_against_a_task(method, name, count):
    jacobian = sample(name, count)
    combined = STATELESS[method]()(jacobian)
    norms = jacobian.norm(dim=1)
    # Where the rows cancel, the direction of the remainder is rounding: relative to what was added up.
    floor = 1e-8 * (10.0 if method == "nash-mtl" else norms.max())
    if method.startswith("fairgrad"):
        floor = 1e-8 * STATELESS[method]().aggregate([[row] for row in jacobian], torch.ones(count))[1] @ norms
    if method == "nash-mtl" and name in ("opposite rows", "low rank"):
        floor = 1e-5
    assert ((jacobian @ combined) >= -floor * norms).all()


@pytest.mark.parametrize("method", STATELESS)
def test_one_task(method):
    row = sample("random", 1)
    expected = {
        "nash-mtl": row[0] / row.norm(),
        "fairgrad": row[0] / row.norm(),
        "fairgrad alpha 2": row[0] / row.norm() ** (4 / 3),
        "fairgrad alpha 0.5": row[0] / row.norm() ** (2 / 3),
        "cagrad": 1.5 * row[0],
        "cagrad large c": 4 * row[0],
        "cagrad small c": 1.001 * row[0],
    }.get(method, row[0])
    torch.testing.assert_close(STATELESS[method]()(row), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("method", STATELESS)
def test_float32_gradients_give_nearly_the_float64_result(method, count):
    jacobian = sample("random", count).float()
    combined = STATELESS[method]()(jacobian)
    assert combined.dtype == torch.float32
    if not method.startswith("graddrop"):  # whose draws depend on the dtype
        expected = STATELESS[method]()(jacobian.double())
        torch.testing.assert_close(combined.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", STATELESS)
def test_a_gradient_that_is_not_finite_shows_and_does_not_raise(method, value):
    jacobian = sample("random", 3)
    jacobian[1] = value
    assert not torch.isfinite(STATELESS[method]()(jacobian)).all()


class BoundGradVac(GradVac):
    """In a step of its own at each call."""

    def forward(self, jacobian):
        if self.tasks is None:
            self.bind([f"task {k}" for k in range(len(jacobian))])
        with self.step() as step:
            combined = super().forward(jacobian)
            step.commit()
        return combined


@pytest.mark.parametrize("method", [PCGrad, GradDrop, BoundGradVac])
def test_random_methods_follow_their_seed_and_their_saved_state(method):
    jacobian = sample("conflicting", 5)
    one, same = method(seed=3), method(seed=3)
    first = one(jacobian)
    assert torch.equal(same(jacobian), first)
    state = copy.deepcopy(one.state_dict())
    second = one(jacobian)
    assert not torch.equal(second, first)
    resumed = method(seed=4)
    resumed(jacobian)
    resumed.load_state_dict(state)
    assert torch.equal(resumed(jacobian), second)
    torch.manual_seed(11)
    unseeded = method(seed=None)(jacobian)
    torch.manual_seed(11)
    assert torch.equal(method(seed=None)(jacobian), unseeded)


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: GradNorm(alpha=-1.0), r"alpha must be a finite number ≥ 0, found -1\.0"),
        (lambda: GradNorm(lr=0.0), r"lr must be a finite number > 0, found 0\.0"),
        (lambda: MGDA("L2"), r"normalization must be one of 'none', 'l2', 'loss', 'loss\+', found 'L2'"),
        (lambda: CAGrad(c=-0.1), r"c must be a finite number ≥ 0, found -0\.1"),
        (lambda: CAGrad(c=math.inf), r"c must be a finite number ≥ 0, found inf"),
        (lambda: CAGrad(rescale="c"), r"rescale must be one of 'none', '1\+c2', '1\+c', found 'c'"),
        (lambda: AlignedMTL("max"), r"scale must be one of 'min', 'median', 'mean', found 'max'"),
        (lambda: FairGrad(alpha=0.0), r"alpha must be a finite number > 0, found 0\.0"),
        (lambda: GradVac(beta=1.5), r"beta must be a finite number ≥ 0 and ≤ 1, found 1\.5"),
        (lambda: PCD(tau=-0.1), r"tau must be a finite number ≥ 0 and ≤ 1, found -0\.1"),
        (lambda: PCD(beta=1.0), r"beta must be a finite number ≥ 0 and < 1, found 1\.0"),
        (lambda: PCD(eps=-1.0), r"eps must be a finite number ≥ 0, found -1\.0"),
        (lambda: PCD("c").bind(["a", "b"]), r"primary: unknown task 'c'; the tasks are 'a', 'b'"),
        (lambda: Krum(byzantine=-1), "byzantine must be an integer ≥ 0, found -1"),
        (lambda: Krum(selected=True), "selected must be an integer ≥ 1, found True"),
        (lambda: GradDrop(leak=1.5), r"leak must be a finite number ≥ 0 and ≤ 1, found 1\.5"),
        (lambda: GradDrop(leak={"a": -1}), r"leak\['a'\] must be a finite number ≥ 0 and ≤ 1, found -1"),
        (lambda: GradDrop(leak={"c": 0.5}).bind(["a", "b"]), r"leak: unknown task 'c'; the tasks are 'a', 'b'"),
    ],
)
def test_bad_hyperparameters(create, message):
    with pytest.raises(ValueError, match=message):
        create()


@pytest.mark.parametrize("count", [2, 3, 5, 26])
@pytest.mark.parametrize("name", ["opposite rows", "low rank", "wildly scaled", "shared direction"])
@pytest.mark.parametrize("method", ["mgda", "nash-mtl"])
def test_the_iterations_are_enough(method, name, count, monkeypatch):
    """Ten times as many find nothing better."""
    for seed in range(4):
        jacobian = sample(name, count, seed)
        found = []
        for factor in (1, 10):
            with monkeypatch.context() as patch:
                for module in (_simplex, nash_mtl):
                    patch.setattr(module, "ITERATIONS", factor * module.ITERATIONS)
                found.append(STATELESS[method]()(jacobian))
        scale = jacobian.norm(dim=1).min() if method == "mgda" else count**0.5
        assert (found[0] - found[1]).norm() <= 1e-7 * scale


@pytest.mark.parametrize("method", STATELESS)
def test_the_default_device_does_not_matter(method):
    """On meta no value is ever there: what takes one from a tensor made without a device fails."""
    jacobian = sample("conflicting", 5)
    expected = STATELESS[method]()(jacobian)
    with default_device("meta"):
        combined = STATELESS[method]()(jacobian)
    assert torch.equal(combined, expected)


@pytest.mark.parametrize(
    "create",
    [PCGrad, lambda: GradDrop({"a": 0.5}), GradNorm, GradVac, PCD],
    ids=["pcgrad", "graddrop by task", "gradnorm", "gradvac", "pcd"],
)
def test_the_default_device_does_not_matter_for_seeds_and_state(create):
    jacobian, losses = sample("conflicting", 3), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def steps():
        torch.manual_seed(5)
        aggregator = create()
        aggregator.bind(["a", "b", "c"])
        results = []
        for present in ([0, 1, 2], [0, 2], [0, 1, 2]):
            with aggregator.step(present) as step:
                results.append(aggregator(jacobian[present], losses[present]))
                step.commit(valid=losses.isfinite().all())
        return results, aggregator.state_dict()

    expected, state = steps()
    with default_device("meta"):
        results, same = steps()
    for one, other in zip(results, expected, strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(same, state, rtol=0, atol=0)
