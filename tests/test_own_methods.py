"""A person's own method: a class or an instance given to `make_method`, named in a file, or brought by a package."""

import pickle
import textwrap
from typing import ClassVar

import pytest
import torch
from networks import TASKS, Network, assert_same, batch

import equipoise as eq
from equipoise.search_space import Range

FILE = textwrap.dedent(
    '''
    import torch
    import equipoise as eq

    class Inverse(eq.Weighting):
        """Each loss by its inverse, to a power."""

        def __init__(self, power: float = 1.0) -> None:
            super().__init__()
            self.power = power

        def forward(self, losses):
            return losses ** -self.power

    class Shortest(eq.GramianAggregator):
        """The shortest row."""

        def weights(self, gramian, losses):
            return torch.eye(len(losses), dtype=torch.float64)[gramian.diagonal().argmin()]

    class Nothing:
        pass

    ready = Inverse(power=2.0)
    '''
)


class Inverse(eq.Weighting):
    """Each loss by its inverse, to a power."""

    search_space: ClassVar = {"power": Range(0.5, 2.0)}

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power = power

    def forward(self, losses):
        return losses**-self.power


class Sum(eq.MAO):
    """MAO by another name."""


def weights_of(method, model):
    return {task: float(weight) for task, weight in method.backward(model.losses(batch(0))).items()}


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_class_takes_hyperparameters_and_an_instance_has_its_own(power):
    model = Network().double()
    losses = {task: loss.item() for task, loss in model.losses(batch(0)).items()}
    for method in (
        eq.make_method(Inverse, model, TASKS, power=power),
        eq.make_method(Inverse(power), model, TASKS),
        eq.make_method(eq.WeightedSum(Inverse(power)), model, TASKS),
    ):
        assert weights_of(method, model) == pytest.approx({task: loss**-power for task, loss in losses.items()})
    assert eq.make_method(Inverse, model, TASKS).name == "Inverse"
    with pytest.raises(ValueError, match="Method 'Inverse' has no hyperparameter powr; it takes: power"):
        eq.make_method(Inverse, model, TASKS, powr=power)


def test_every_method_has_a_copy_of_the_instance():
    average = eq.EMA(beta=0.5)
    model = Network()
    first, second = (eq.make_method(average, model, TASKS) for _ in range(2))
    for index in range(3):
        first.backward(model.losses(batch(index)))
    alone = eq.make_method("ema", model, TASKS, beta=0.5)
    assert_same(second.backward(model.losses(batch(5))), alone.backward(model.losses(batch(5))))


def test_an_optimizer_that_balances_is_given_as_its_class():
    results = []
    for given in (Sum, "mao"):
        model = Network()
        method = eq.make_method(given, model, TASKS, lr=0.01, weight_decay=0.1, betas=(0.8, 0.9))
        for index in range(3):
            method.zero_grad()
            method.backward(model.losses(batch(index)))
            method.step()
        results.append(dict(model.state_dict()))
    assert_same(*results)


def test_a_file_holds_methods(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_method.py").write_text(FILE)
    model = Network().double()
    losses = {task: loss.item() for task, loss in model.losses(batch(0)).items()}
    method = eq.make_method("my_method.py:Inverse", model, TASKS, power=3.0)
    assert method.name == "my_method.py:Inverse"
    assert weights_of(method, model) == pytest.approx({task: loss**-3 for task, loss in losses.items()})
    ready = eq.make_method("my_method.py:ready@sgd", model, TASKS)
    assert weights_of(ready, model) == pytest.approx({task: loss**-2 for task, loss in losses.items()})
    assert isinstance(ready.optimizer, torch.optim.SGD)
    shortest = weights_of(eq.make_method("my_method.py:Shortest", model, TASKS), model)
    assert sorted(shortest.values()) == [0, 0, 1]
    for name, error, words in (
        ("my_method.py:Inverted", ValueError, "nothing named 'Inverted'; it has .*:Inverse, my_method.py:Shortest"),
        ("my_method.py:Nothing", TypeError, "or a class or an instance of an Objective, .* found <class .*Nothing"),
        ("no_method.py:Inverse", ImportError, "There is no file no_method.py"),
        ("no_package:Inverse", ImportError, "no_package"),
    ):
        with pytest.raises(error, match=words):
            eq.make_method(name, model, TASKS)


def test_a_package_brings_methods(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_methods.py").write_text(FILE)
    information = tmp_path / "their_methods-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: their-methods\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[equipoise.methods]\ntheir-inverse = their_methods:Inverse\n")
    model = Network().double()
    losses = {task: loss.item() for task, loss in model.losses(batch(0)).items()}
    method = eq.make_method("their-inverse", model, TASKS)
    assert weights_of(method, model) == pytest.approx({task: 1 / loss for task, loss in losses.items()})
    assert "their-inverse" in eq.list_methods()


@pytest.mark.parametrize("given", [3, torch.nn.Linear(2, 2), torch.optim.SGD, dict, None])
def test_what_is_no_method_is_refused(given):
    with pytest.raises(
        TypeError, match=r"name must be one of list_methods\(\), or a class or an instance of an Objective"
    ):
        eq.make_method(given, Network(), TASKS)


def test_a_class_derived_from_one_of_the_librarys_is_known_as_that():
    class Mine(eq.Achievement):
        pass

    class MyUncertainty(eq.UW):
        pass

    model = Network()
    potentials = dict.fromkeys(TASKS, 0.5)
    assert eq.make_method(Mine, model, TASKS, potentials=potentials).needs_accuracies
    with pytest.raises(ValueError, match="needs potentials"):
        eq.make_method(Mine, model, TASKS)
    assert eq.make_method(MyUncertainty, model, TASKS, weights_lr=0.5).optimizer.param_groups[1]["lr"] == 0.5


def test_an_argument_that_is_make_methods_own_is_refused():
    class Rated(eq.Weighting):
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()

        def forward(self, losses):
            return torch.ones_like(losses)

    with pytest.raises(TypeError, match="Rated takes lr, which make_method takes for itself"):
        eq.make_method(Rated, Network(), TASKS)


def test_files_of_one_name_are_two_and_objects_of_theirs_are_pickled(tmp_path):
    for folder, power in (("one", 1.0), ("other", 2.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(FILE.replace("power: float = 1.0", f"power: float = {power}"))
    model = Network().double()
    losses = {task: loss.item() for task, loss in model.losses(batch(0)).items()}
    for folder, power in (("one", 1.0), ("other", 2.0), ("one", 1.0)):
        method = eq.make_method(f"{tmp_path / folder / 'mine.py'}:Inverse", model, TASKS)
        assert weights_of(method, model) == pytest.approx({task: loss**-power for task, loss in losses.items()})
        pickle.loads(pickle.dumps(method))
    with pytest.raises(ImportError, match="There is no file"):
        eq.make_method("me@host/mine.py:Inverse", model, TASKS)
