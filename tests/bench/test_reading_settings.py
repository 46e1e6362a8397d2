"""What the command line makes of options, without a process each."""

from pathlib import Path

import pytest

from equipoise.bench.experiment.asking import read_settings
from equipoise.bench.experiment.checking import check
from equipoise.bench.experiment.protocol import announced
from equipoise.bench.experiment.settings import Settings, SettingsError, parse_hyperparameters
from equipoise.bench.problems import Problem, Regression, Splits, Tensors, Training


def read(**options):
    given = dict.fromkeys(("lr", "weight_decay", "epochs", "batch_size", "grid"))
    given |= {"problem": "digits", "methods": "ew", "seeds": 3, "quick": True, "device": "cpu", "tune": False}
    given |= {"devices": 1, "precision": "32-true", "strategy": "auto", "monitor_every": 0}
    given["hyperparameters"] = parse_hyperparameters(options.pop("set_", []), None)
    return read_settings(**{**given, **options})


def test_rows_that_others_need_are_there_too():
    assert read(methods="replay:ema, fixed,ema").methods == ("ema", "replay:ema", "fixed")
    assert read(methods="mao,ema", baselines=False).methods == ("ew", "mao", "ema")
    assert read(methods="mao,ew", baselines=False).methods == ("mao", "ew")


def test_a_replay_takes_its_configuration_from_what_it_replays():
    import torch

    split = Tensors(input=torch.zeros(8, 2), a=torch.zeros(8), b=torch.zeros(8))
    settings = read(methods="replay:ema", set_=["ema.beta=0.2"], batch_size=4)
    check(settings, Line(), Splits(split, split, split))
    assert settings.hyperparameters_of("ema") == {"beta": 0.2}
    assert settings.hyperparameters_of("replay:ema") == {}


def test_all_methods_are_those_of_installed_packages_too(monkeypatch):
    monkeypatch.setattr("equipoise.bench.experiment.asking.list_methods", lambda: ["ew", "a-package's"])
    assert read(methods=" all").methods == ("ew", "a-package's")


def test_looks_are_planned_in_advance():
    settings = read(seeds=6, until_decided=True, max_seeds=20)
    assert settings.looks[0] == 6
    assert settings.looks[-1] == settings.seeds == 20
    assert Settings.from_json(settings.to_json()) == settings
    with pytest.raises(SettingsError, match=r"looks is \[6, .* there and \[\] here"):
        read(seeds=20).extend(settings, "there", "another folder")


def test_epochs_may_be_found():
    assert read(epochs="5").epochs == 5
    assert not read(epochs="5").extend_epochs
    assert read(epochs="auto").epochs == read().epochs
    assert read(epochs="auto").extend_epochs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": "0"}, "--epochs takes a number of epochs, at least 1, or `auto`; found '0'"),
        ({"epochs": "many"}, "found 'many'"),
        ({"budget": 4, "tune": True}, "leave --tune, --lr and --weight-decay out"),
        ({"budget": 4, "lr": 1e-3}, "leave --tune, --lr and --weight-decay out"),
        ({"max_seeds": 20}, "--max-seeds is for --until-decided"),
        ({"until_decided": True, "max_seeds": 2}, "--max-seeds 2 is less than --seeds 3"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    with pytest.raises(SettingsError, match=message):
        read(**options)


class Line(Problem):
    name, description, tasks = "line", "for tests", (Regression("a"), Regression("b"))

    def data(self, quick=False):
        raise NotImplementedError

    def model(self):
        from torch import nn

        return nn.Linear(2, 2)

    def predict(self, model, batch):
        a, b = model(batch["input"]).unbind(1)
        return {"a": a, "b": b}

    def training(self, quick=False):
        return Training(epochs=1, batch_size=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "ew@adam"}, "ew@adam: there is no optimizer 'adam'; write METHOD@ and one of adamw, sgd, muon"),
        ({"methods": "replay:fixed"}, "the weights of fixed do not move, there is nothing to replay"),
        ({"methods": "replay:ew@sgd"}, "the weights of ew@sgd do not move"),
        ({"methods": "replay:replay:ema"}, "nothing to replay"),
        ({"methods": "replay:emma"}, "emma"),
        ({"methods": "fixed", "set_": ["fixed.weights=3"]}, "fixed has no hyperparameter weights"),
        ({"methods": "ema", "set_": ["ema@sgd.lr=0.1"]}, "given for ema@sgd, which is not compared"),
        ({"methods": "amtl", "baselines": False}, "amtl needs single-task accuracies, and --no-baselines leaves"),
        ({"methods": "single:a"}, "single:a is always trained"),
        ({"methods": "replay:single:a"}, "single:a is always trained"),
        ({"methods": "single:b1"}, r"single:b1: there is no task 'b1'; the tasks are a, b\. Did you mean b\?"),
        ({"methods": "ema", "set_": ["emma.beta=0.2"]}, r"given for emma, which is not compared.* Did you mean ema\?"),
        ({"methods": "ema", "set_": ["prioritys.a=2"]}, r"given for prioritys, .* Did you mean priorities\?"),
        ({"set_": ["priorities.aa=2"]}, r"--set priorities\.aa: there is no task 'aa'; .* Did you mean a\?"),
    ],
)
def test_rows_that_cannot_be(options, message):
    import torch

    split = Tensors(input=torch.zeros(8, 2))
    with pytest.raises(SettingsError, match=message):
        check(read(**{"batch_size": 4, **options}), Line(), Splits(split, split, split))


def said(settings, asked=None):
    return " ".join(announced(settings, asked or settings, Path("runs/x")))


def test_what_will_be_done_is_said():
    text = said(read(methods="ew,fixed", seeds=6, budget=8, until_decided=True, max_seeds=20, epochs="auto"))
    for part in (
        "Compares ew and fixed over 6 seeds, ",
        "twice as many as long as runs still rise",
        "looks at 6, 9, 13 and 20 seeds",
        "8 configurations",
        "(of fixed: of the weights too)",
        "with a seed of its own (1000000)",
    ):
        assert part in text
    text = said(read(methods="ew,mao", baselines=False, match_time=True, tune=True))
    assert "as many epochs as take the dearest one's time" in text
    assert "No single-task runs" in text
    assert "several learning rates with seed 0" in text


def test_what_is_finished_beside_what_is_asked_for_is_said():
    """A comparison may have more methods and seeds from before."""
    there, also = read(methods="ew,mao,ema", seeds=2), "is finished with all that it has; another folder with --out"
    fewer = read(methods="ew,mao", seeds=1)
    assert f"The comparison in runs/x has ema and 2 seeds already, and {also}" in said(there, fewer)
    assert "has ema already" in said(there, read(methods="mao,ew", seeds=2))
    assert "has 2 seeds already" in said(there, read(methods="ew,mao,ema", seeds=1))
    assert "already" not in said(there)
