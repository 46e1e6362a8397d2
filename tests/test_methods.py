"""The registry: what each name makes, and what is said when it cannot be made."""

import inspect

import pytest
import torch
from networks import TASKS, Network, assert_same, batch, snapshot
from torch import nn

import equipoise as eq
from equipoise.registry import METHODS
from equipoise.registry.aggregators import AGGREGATORS
from equipoise.search_space import Choice

POTENTIALS = {"a": 0.9, "b": 0.6, "c": 0.8}


def describe(module):
    """`Class(argument)` of an objective, a weighted sum as what it weighs with."""
    if module is None:
        return None
    if isinstance(module, eq.WeightedSum):
        return type(module.weighting).__name__
    if isinstance(module, eq.GeometricMean):
        return f"GeometricMean({type(module.weighting).__name__})"
    return type(module).__name__


TABLE = {
    "ew": ("Equal", None),
    "static": ("Static", None),
    "rlw": ("RLW", None),
    "uw": ("UW", None),
    "dwa": ("DWA", None),
    "ema": ("EMA", None),
    "rema": ("REMA", None),
    "dwema": ("DWEMA", None),
    "gls": ("GeometricMean(Equal)", None),
    "dwa-g": ("GeometricMean(DWA)", None),
    "rlw-g": ("GeometricMean(RLW)", None),
    "dtp": ("DTP", None),
    "dtp-g": ("GeometricMean(DTP)", None),
    "amtl": ("GeometricMean(Achievement)", None),
    "amtl-a": ("Achievement", None),
    "imtl-l": ("IMTLL", None),
    "famo": ("FAMO", None),
    "stch": ("STCH", None),
    "uw-so": ("UWSO", None),
    "go4align": ("GO4Align", None),
    "ldc-mtl": ("LDCMTL", None),
    "cov": ("CoV", None),
    "coba": ("CoBa", None),
    "softadapt": ("SoftAdapt", None),
    "relobralo": ("ReLoBRaLo", None),
    "pbi": ("PBI", None),
    "cosmos": ("COSMOS", None),
    "gradnorm": ("Equal", "GradNorm"),
    "imtl-g": ("Equal", "IMTLG"),
    "imtl": ("IMTLL", "IMTLG"),
    "mgda": ("Equal", "MGDA"),
    "pcgrad": ("Equal", "PCGrad"),
    "graddrop": ("Equal", "GradDrop"),
    "cagrad": ("Equal", "CAGrad"),
    "nash-mtl": ("Equal", "NashMTL"),
    "fairgrad": ("Equal", "FairGrad"),
    "aligned-mtl": ("Equal", "AlignedMTL"),
    "config": ("Equal", "ConFIG"),
    "upgrad": ("Equal", "UPGrad"),
    "dualproj": ("Equal", "DualProj"),
    "gradvac": ("Equal", "GradVac"),
    "pcd": ("Equal", "PCD"),
    "krum": ("Equal", "Krum"),
    "trimmed-mean": ("Equal", "TrimmedMean"),
    "moco": ("Equal", "MoCo"),
    "db-mtl": ("LogSum", "DBMTL"),
    "excess-mtl": ("Equal", "ExcessMTL"),
    "lr-annealing": ("Equal", "LRAnnealing"),
}
DEFAULTS = {
    "dwa": {"temperature": 2.0},
    "ema": {"beta": 0.1},
    "rema": {"beta": 0.1},
    "dwema": {"beta": 0.1, "temperature": 2.0},
    "dtp": {"gamma": 1.0},
    "amtl": {"gamma": 2.0, "margin": 0.05, "normalization": "softmax"},
    "amtl-a": {"gamma": 2.0},
    "famo": {"weights_lr": 0.025, "weights_decay": 1e-3},
    "gradnorm": {"alpha": 1.5, "weights_lr": 0.025},
    "mgda": {"normalization": "none"},
    "cagrad": {"c": 0.5},
    "graddrop": {"leak": 0.0},
    "fairgrad": {"alpha": 1.0},
    "aligned-mtl": {"scale": "min"},
    "gradvac": {"beta": 0.5},
    "pcd": {"primary": None, "tau": 0.02, "beta": 0.999, "eps": 1e-8},
    "krum": {"byzantine": 1, "selected": 1},
    "trimmed-mean": {"trim": 1},
    "moco": {"beta": 0.5, "beta_sigma": 0.5, "gamma": 0.1, "gamma_sigma": 0.5, "rho": 0.0, "normalize": True},
    "db-mtl": {"beta": 0.9, "sigma": 0.0},
    "excess-mtl": {"step_size": 0.01},
    "mao": {"betas": (0.9, 0.999), "eps": 1e-8},
    "adatask": {"betas": (0.9, 0.999), "eps": 1e-8},
    "mtadam": {"betas": (0.9, 0.999, 0.9), "eps": 1e-8},
}


def make(name, model=None, **options):
    potentials = POTENTIALS if name.startswith("amtl") else None
    return eq.make_method(name, Network() if model is None else model, TASKS, **{"potentials": potentials, **options})


def test_every_name_is_there():
    assert set(eq.list_methods()) == {*TABLE, "mao", "adatask", "mtadam"}
    assert len(eq.list_methods()) == len(set(eq.list_methods()))


@pytest.mark.parametrize("name", TABLE)
def test_builds_the_class_of_its_name(name):
    model = Network()
    method = make(name, model, lr=0.3, weight_decay=0.2)
    assert (describe(method.balancer.objective), describe(method.balancer.aggregator)) == TABLE[name]
    assert type(method.optimizer) is torch.optim.AdamW
    assert method.balancer.tasks == TASKS
    first, *own = method.optimizer.param_groups
    assert (first["lr"], first["weight_decay"]) == (0.3, 0.2)
    assert [id(p) for p in first["params"]] == [id(p) for p in model.parameters()]
    learned = list(method.balancer.parameters())
    assert bool(learned) == METHODS[name].learns_weights
    assert [p for group in own for p in group["params"]] == learned
    assert all(group["weight_decay"] == 0.0 and group["lr"] == 0.3 for group in own)


@pytest.mark.parametrize("name", ["ew", "mgda", "mao", "single:b"])
def test_parameters_may_be_unfrozen_later(name):
    model = Network()
    method = make(name, model)
    before = {key: value.clone() for key, value in model.frozen.state_dict().items()}
    for frozen in (True, False):
        model.frozen.requires_grad_(not frozen)
        method.zero_grad()
        method.backward(model.losses(batch(0)))
        method.step()
        assert torch.equal(model.frozen.weight, before["weight"]) == frozen


def test_mao_and_single():
    method = make("mao", lr=0.3, weight_decay=0.2, betas=(0.5, 0.6), max_norm=1.0)
    assert type(method.optimizer) is eq.MAO
    assert method.balancer is None
    assert method.optimizer.tasks == TASKS
    assert method.optimizer.max_norm == 1.0
    group = method.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.3, 0.2, (0.5, 0.6))
    single = make("single:b", lr=0.3, weight_decay=0.2)
    assert single.name == "single:b"
    assert single.tasks == TASKS
    assert type(single.optimizer) is torch.optim.AdamW


@pytest.mark.parametrize("task", TASKS)
def test_single_is_plain_training_on_one_task(task):
    model, twin = Network(), Network()
    method = make(f"single:{task}", model, lr=0.02, weight_decay=0.1)
    optimizer = torch.optim.AdamW([p for p in twin.parameters() if p.requires_grad], 0.02, weight_decay=0.1, fused=True)
    for index in range(5):
        method.zero_grad()
        weights = method.backward(model.losses(batch(index)))
        method.step()
        assert {t: w.item() for t, w in weights.items()} == {task: 1.0}
        optimizer.zero_grad()
        twin.losses(batch(index))[task].backward()
        optimizer.step()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    method.zero_grad()
    assert method.backward(model.losses(batch(5), [t for t in TASKS if t != task])) == {}
    method.step()
    assert_same(dict(model.state_dict()), before)
    assert_same(model.state_dict(), twin.state_dict())


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_the_papers(name):
    found = METHODS[name].hyperparameters
    assert {key: found[key] for key in DEFAULTS[name]} == DEFAULTS[name]


@pytest.mark.parametrize("name", eq.list_methods())
def test_says_what_it_takes(name):
    """Every hyperparameter named by the registry can be given with its default; none is the registry's own."""
    taken = METHODS[name].hyperparameters
    assert not {"params", "tasks", "potentials"} & set(taken)
    given = {key: value for key, value in taken.items() if value is not inspect.Parameter.empty and key != "lr"}
    if name in ("famo", "gradnorm"):  # their own `lr` is not the optimizer's
        given.pop("weight_decay", None)
    make(name, **given)


def test_hyperparameters_arrive():
    assert make("ema", beta=0.2).balancer.objective.weighting.average.beta == 0.2
    assert make("cagrad", c=0.3).balancer.aggregator.c == 0.3
    assert make("mgda", normalization="l2").balancer.aggregator.normalization == "l2"
    model = Network().double()
    weights = make("static", model, weights={"a": 2.0, "b": 0.0, "c": 1.0}).backward(model.losses(batch(0)))
    assert {t: w.item() for t, w in weights.items()} == {"a": 2.0, "b": 0.0, "c": 1.0}
    weights = make("static", model).backward(model.losses(batch(0)))
    assert {t: w.item() for t, w in weights.items()} == dict.fromkeys(TASKS, 1.0)


def test_probe_arrives():
    model, twin = Network().double(), Network().double()
    found = make("imtl-g", model, probe=model.trunk).backward(model.losses(batch(0)))
    expected = eq.Balancer(TASKS, aggregator=eq.IMTLG(), probe=twin.trunk).backward(twin.losses(batch(0)))
    assert_same(found, expected)


def test_tells_what_a_loop_has_to_call():
    asked = {name: make(name) for name in [*eq.list_methods(), "single:a"]}
    assert {name for name, method in asked.items() if method.needs_after_step} == {"famo"}
    assert {name for name, m in asked.items() if m.needs_accuracies} == {"dtp", "dtp-g", "amtl", "amtl-a"}
    assert {name for name, method in asked.items() if method.needs_validation_losses} == {"coba"}


def test_a_scheduler_moves_the_learning_rate():
    for name in ("uw", "mao", "single:a"):
        method = make(name, lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(method.optimizer, 1, 0.5)
        method.step()
        scheduler.step()
        assert {group["lr"] for group in method.optimizer.param_groups} == {0.05}


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        (3, {}, TypeError, "name must be one of list_methods\\(\\), or a class .* found 3"),
        ("ema", {"model": [nn.Linear(1, 1)]}, TypeError, "model must be a torch.nn.Module, found \\[Linear"),
        ("ema", {"lr": None}, ValueError, "lr must be a finite number ≥ 0, found None"),
        ("rlw", {"seed": 1.5}, ValueError, "seed must be an integer of at most 64 bits, found 1.5"),
        ("gradnorm", {"weights_lr": 0.0}, ValueError, "weights_lr must be a finite number > 0, found 0"),
        ("famo", {"weights_decay": -1.0}, ValueError, "weights_decay must be .*≥ 0, found -1"),
        ("static", {"weights": 1.0}, TypeError, "weights must be a mapping .* or a sequence of numbers, found 1.0"),
        ("static", {"weights": {1.0, 2.0, 3.0}}, TypeError, "weights must be a mapping"),
        ("uw", {"classification": 3}, TypeError, "classification must be an iterable of names, found 3"),
        ("mao", {"betas": 0.9}, ValueError, "betas must be two numbers in .*, found 0.9"),
        ("mao", {"groups": "x"}, TypeError, "groups must be a number of groups, or a mapping .*, found 'x'"),
        ("emma", {}, ValueError, r"^Unknown method 'emma'\. Did you mean 'ema'[^,]*\? list_methods\(\) names all\.$"),
        ("", {}, ValueError, "Unknown method ''. The methods are ew, .*mao, .*single:<task>"),
        ("single:d", {}, ValueError, "Method 'single:d': unknown task 'd'; the tasks are 'a', 'b', 'c'"),
        ("single:", {}, ValueError, "unknown task ''"),
        ("ew", {"beta": 0.1}, ValueError, "Method 'ew' has no hyperparameter beta; it takes: none"),
        ("ema", {"betta": 0.1}, ValueError, "Method 'ema' has no hyperparameter betta; it takes: beta"),
        ("single:a", {"beta": 0.1}, ValueError, "has no hyperparameter beta"),
        ("mao", {"beta": 0.1}, ValueError, "Method 'mao' has no hyperparameter beta; it takes: betas"),
        ("amtl", {"potentials": None}, ValueError, "'amtl' needs potentials: a mapping from each task"),
        ("amtl-a", {"potentials": None}, ValueError, "needs potentials"),
        ("amtl", {"potentials": {"a": 0.5, "b": 0.5}}, ValueError, "potentials: nothing given for task 'c'"),
        ("amtl", {"potentials": {**POTENTIALS, "d": 0.5}}, ValueError, "potentials: unknown task 'd'"),
        ("amtl", {"potentials": {**POTENTIALS, "a": 0.0}}, ValueError, r"potentials\['a'\] must be .*> 0.*found 0"),
        ("amtl", {"potentials": {**POTENTIALS, "b": 1.01}}, ValueError, r"potentials\['b'\] must be .*≤ 1, found 1.01"),
        ("amtl-a", {"potentials": {**POTENTIALS, "b": float("nan")}}, ValueError, r"potentials\['b'\]"),
        ("amtl", {"potentials": [0.5, 0.5, 0.5]}, TypeError, "potentials must be a mapping"),
        ("amtl", {"gamma": 0.0}, ValueError, "gamma must be .*> 0, found 0"),
        ("amtl", {"margin": -0.1}, ValueError, "margin must be"),
        ("amtl", {"momentum": 0.0}, ValueError, "momentum must be"),
        ("amtl", {"normalization": "max"}, ValueError, "normalization must be one of 'softmax', 'sum', found 'max'"),
        ("ema", {"beta": 0.0}, ValueError, "beta must be .*> 0 and ≤ 1, found 0"),
        ("rema", {"beta": 1.1}, ValueError, "beta must be"),
        ("dwema", {"temperature": 0.0}, ValueError, "temperature must be"),
        ("rema", {"interval": 0}, ValueError, "interval must be 'epoch' or a number of steps ≥ 1, found 0"),
        ("dwa", {"interval": "epochs"}, ValueError, "interval must be"),
        ("dwa", {"temperature": float("inf")}, ValueError, "temperature must be"),
        ("dtp", {"gamma": -1.0}, ValueError, "gamma must be"),
        ("dtp-g", {"momentum": 1.5}, ValueError, "momentum must be"),
        ("static", {"weights": {"a": 1.0}}, ValueError, "nothing given for task 'b', 'c'"),
        ("static", {"weights": [1.0, 2.0]}, ValueError, "found 2 for 3 tasks"),
        ("static", {"weights": dict.fromkeys(TASKS, 0.0)}, ValueError, "at least one weight > 0"),
        ("static", {"weights": {"a": -1.0, "b": 1.0, "c": 1.0}}, ValueError, r"weights\['a'\] must be"),
        ("uw", {"classification": ["d"]}, ValueError, "classification: unknown task 'd'"),
        ("famo", {"lower_bounds": {"d": 1.0}}, ValueError, "unknown task 'd'"),
        ("gradnorm", {"alpha": -1.0}, ValueError, "alpha must be"),
        ("mgda", {"normalization": "l3"}, ValueError, "normalization must be one of .*found 'l3'"),
        ("cagrad", {"c": -0.5}, ValueError, "c must be"),
        ("cagrad", {"rescale": "2"}, ValueError, "rescale must be one of"),
        ("graddrop", {"leak": 1.5}, ValueError, "leak must be"),
        ("mao", {"betas": (0.9, 1.0)}, ValueError, "beta2 must be"),
        ("mao", {"max_norm": -1.0}, ValueError, "max_norm must be"),
        ("mao", {"lr": -1.0}, ValueError, "lr must be"),
        ("ew", {"lr": -1.0}, ValueError, "lr must be a finite number ≥ 0, found -1.0"),
        ("ew", {"weight_decay": -1.0}, ValueError, "weight_decay"),
        ("ew", {"probe": nn.Linear(1, 1)}, ValueError, "probe needs an aggregator"),
        ("mao", {"probe": nn.Linear(1, 1)}, ValueError, "takes no gradient statistics: leave probe out"),
        ("single:a", {"probe": nn.Linear(1, 1)}, ValueError, "leave probe out"),
        ("graddrop", {"probe": nn.Linear(1, 1)}, ValueError, "found GradDrop"),
    ],
)
def test_errors(name, options, error, words):
    with pytest.raises(error, match=words):
        eq.make_method(
            name,
            **{
                "model": Network(),
                "tasks": TASKS,
                "potentials": POTENTIALS if "amtl" in str(name) else None,
                **options,
            },
        )


@pytest.mark.parametrize(
    ("state", "words"),
    [(None, "lacks 'method', 'tasks'"), ({}, "lacks 'method'"), ({"balancer": 0}, "lacks 'balancer'")],
)
def test_what_is_no_state_of_a_method_changes_nothing(state, words):
    model = Network()
    method = make("ema", model)
    method.backward(model.losses(batch(0)))
    before = snapshot(method)
    if state:
        state = {key: value for key, value in method.state_dict().items() if key not in state}
    with pytest.raises(ValueError, match=f"no state_dict of a method: it {words}"):
        method.load_state_dict(state)
    assert_same(snapshot(method), before)


class Named(Network):
    """A model that names its last shared layer."""

    def last_shared_layer(self):
        return self.branch


@pytest.mark.parametrize("wrap", ["plain", "compiled", "frozen", "given", "another method"])
def test_gradnorm_takes_its_statistics_on_the_last_shared_layer(wrap):
    model = Named()
    trained = torch.compile(model, backend="eager") if wrap == "compiled" else model
    model.branch.requires_grad_(wrap != "frozen")
    probe = [model.trunk.weight] if wrap == "given" else None
    method = eq.make_method("imtl-g" if wrap == "another method" else "gradnorm", trained, TASKS, probe=probe)
    expected = {"given": [model.trunk.weight], "frozen": [], "another method": []}
    assert_same(list(method.balancer._probe), expected.get(wrap, list(model.branch.parameters())))


def test_gradnorm_by_name_is_its_rule_at_the_last_shared_layer():
    """That is the branch, of a and b; where c is there, which does not reach it, it is all that is shared."""
    for tasks in (["a", "b"], TASKS):
        models = [Named().double() for _ in range(2)]
        by_name = eq.make_method("gradnorm", models[0], tasks)
        by_hand = eq.Balancer(tasks, aggregator=eq.GradNorm(1.5, 0.025), probe=models[1].branch)
        everywhere = eq.Balancer(tasks, aggregator=eq.GradNorm(1.5, 0.025))
        for index in range(3):
            weights = by_name.backward(models[0].losses(batch(index), tasks))
            assert weights == by_hand.backward(models[1].losses(batch(index), tasks))
            others = everywhere.backward(Network().double().losses(batch(index), tasks))
        assert (weights != others) == (tasks != TASKS)


def test_a_task_may_have_a_colon():
    model = nn.Linear(2, 2)
    method = eq.make_method("single:a:b", model, ["a:b", "c"])
    one, other = model(torch.ones(1, 2)).square().mean(0)
    assert list(method.backward({"a:b": one, "c": other})) == ["a:b"]


def test_learning_rates_of_the_weights_have_names_of_their_own():
    model = Network()
    famo = eq.make_method("famo", model, TASKS, lr=0.5, weights_lr=0.1, weights_decay=0.2)
    assert (famo.balancer.objective.lr, famo.balancer.objective.weight_decay) == (0.1, 0.2)
    assert famo.optimizer.param_groups[0]["lr"] == 0.5
    gradnorm = eq.make_method("gradnorm", model, TASKS, lr=0.5, weights_lr=0.1)
    assert gradnorm.balancer.aggregator.lr == 0.1


@pytest.mark.parametrize("name", ["ema", "mao", "single:b"])
def test_check_finite_reaches_the_method(name):
    method = eq.make_method(name, Network(), TASKS, check_finite=False)
    assert (method.optimizer if name == "mao" else method.balancer).check_finite is False


@pytest.mark.parametrize("name", METHODS)
def test_search_spaces_are_of_hyperparameters_and_of_values_that_these_take(name):
    spec = METHODS[name]
    for key, space in spec.search_space.items():
        assert key in spec.hyperparameters
        for value in space.values if isinstance(space, Choice) else (space.low, space.high):
            make(name, **{key: value})


def test_every_aggregator_that_can_be_tuned_says_so():
    """Those without have nothing but a seed, or a choice that is not tuned."""
    without = [name for name in AGGREGATORS if not METHODS[name].search_space]
    assert without == ["imtl-g", "pcgrad", "nash-mtl", "config", "upgrad", "dualproj"]


@pytest.mark.parametrize(("name", "near"), [("Ema", "'EMA'"), ("Balancr", "'Balancer'"), ("mgda", "'MGDA'")])
def test_a_misspelled_name_of_the_package_says_what_is_near(name, near):
    with pytest.raises(AttributeError, match=f"module 'equipoise' has no attribute {name!r}. Did you mean {near}[?]"):
        getattr(eq, name)
    with pytest.raises(AttributeError, match=r"has no attribute 'quarterly'\.$"):
        eq.quarterly  # noqa: B018
