"""What rows there are, and how their configurations are chosen, without training anything."""

import math
from dataclasses import replace

import pytest
from bench.experiment.planned import (
    BASE,
    GRIDS,
    PLAIN,
    SINGLES,
    carry_out,
    peak_at,
    rates,
    tried,
)

from equipoise.bench.experiment import tuning
from equipoise.bench.experiment.replay import weights_to_replay
from equipoise.bench.experiment.rows import gives_weights, spec_of
from equipoise.bench.experiment.trials import FIXED_BUDGET, SELECTION_SEED
from equipoise.bench.experiment.tuning import UNIFORM, WEIGHT, Configuration, search_space
from equipoise.registry import METHODS
from equipoise.search_space import Choice, Range


def test_a_row_with_another_optimizer_has_its_own_rates():
    settings = replace(
        BASE, methods=("ema", "ema@sgd", "ema@muon"), hyperparameters={"ema": {"beta": 0.2, "weight_decay": 0.3}}
    )
    found, _, _ = carry_out(settings)
    assert tried(found, "ema") == list(GRIDS["adamw"])
    assert tried(found, "ema@sgd") == list(GRIDS["sgd"])
    assert set(tried(found, "ema@muon")) >= set(GRIDS["muon"])
    chosen = {row: found.configurations[row] for row in settings.methods}
    assert {row: one.hyperparameters for row, one in chosen.items()} == {row: {"beta": 0.2} for row in chosen}
    assert [chosen[row].weight_decay for row in ("ema", "ema@sgd")] == [0.3, 0.0]
    untuned, _, _ = carry_out(replace(settings, tune=False))
    assert [rates(untuned)[row] for row in settings.methods] == [1e-3, 1e-2, 1e-3]


@pytest.mark.parametrize("row", ["mao", "mao@sgd", "ema@muon", "uw", "gradnorm"])
def test_what_is_searched_is_what_the_row_takes(row):
    spec = spec_of(row)
    assert spec.search_space.keys() <= spec.hyperparameters.keys()


def test_which_rows_give_weights():
    giving = {row: gives_weights(row) for row in ("ema", "uw@sgd", "gls", "gradnorm", "imtl", "mao", "graddrop")}
    assert giving == {row: row not in ("mao", "graddrop") for row in giving}


def quality_of(trial):
    """Best with 1.6 for task a."""
    weights = trial.hyperparameters.get("weights", {"a": 1.0})
    return -abs(weights["a"] - 1.6)


def test_fixed_weights_are_searched_with_a_seed_that_is_not_compared():
    settings = replace(PLAIN, methods=("ew", "fixed"), seeds=2)
    found, _, stages = carry_out(settings, quality_of)
    attempts = found.tried["fixed"]
    assert {one.trial.seed for one in attempts} == {SELECTION_SEED}
    assert SELECTION_SEED not in range(settings.seeds)
    assert len(attempts) == FIXED_BUDGET
    assert attempts[0].configuration.hyperparameters == {"weights": {"a": 1.0, "b": 1.0}}
    for one in attempts:
        assert sum(one.configuration.hyperparameters["weights"].values()) == pytest.approx(2, rel=1e-3)
    chosen = found.configurations["fixed"].hyperparameters["weights"]
    assert chosen["a"] == pytest.approx(1.6, abs=0.05)
    assert [found.final["fixed"][seed].hyperparameters["weights"] for seed in (0, 1)] == [chosen, chosen]
    assert stages[0] == {(single, seed, 1e-3) for single in SINGLES for seed in (SELECTION_SEED, 0, 1)}
    assert len(stages[1]) == 3  # the first half of the weightings, which differ by their weights, and equal weights
    assert "ew" not in found.tried  # nothing of it is searched
    assert found.tried["fixed"][0].trial.reference == {"a": 2.6, "b": 2.6}


def test_refining_finds_better_points_than_drawing_alone():
    space = {f"{WEIGHT}a": UNIFORM, f"{WEIGHT}b": UNIFORM, "lr": Range(1e-6, 1e-2, log=True)}
    start = Configuration(1e-3, 0.0, 8, {"weights": {"a": 1.0, "b": 1.0}})
    gained = []
    for best in (0.2, 0.6, 1.2, 1.7):
        scores = []

        def score(configuration, best=best, scores=scores):
            away = configuration.hyperparameters["weights"]["a"] - best
            scores.append(-(away**2) - math.log10(configuration.lr / 1e-5) ** 2)
            return scores[-1]

        refined = search_space(space, start, 32, score)
        drawn = max(score(tuning._at(start, point)) for point in tuning._drawn(tuple(space.items()), 31))
        gained.append(score(refined) - drawn)
    assert sum(gained) > 0.1


def test_where_rates_are_tuned_every_weighting_has_its_own():
    found, _, _ = carry_out(replace(BASE, methods=("fixed",)), lambda trial: peak_at(1e-4)(trial) + quality_of(trial))
    weightings = {}
    for one in found.tried["fixed"]:
        weightings.setdefault(tuple(one.configuration.hyperparameters["weights"].values()), set()).add(one.trial.lr)
    assert len(weightings) == FIXED_BUDGET
    assert all(rates >= {1e-5, 1e-4, 1e-3} for rates in weightings.values())
    assert rates(found)["fixed"] == 1e-4


def test_which_run_comes_next_does_not_depend_on_when_is_asked():
    """A comparison that is interrupted at any time goes on as if it had not been."""
    settings = replace(PLAIN, methods=("fixed", "ema"), budget=8)
    whole, records, _ = carry_out(settings, quality_of)
    for kept in (5, 9, 14, 20):
        some = dict(list(records.items())[:kept])
        found, _, _ = carry_out(settings, quality_of, some)
        assert {trial.key for trial in found.runs} == {trial.key for trial in whole.runs}


def test_a_budget_is_the_same_for_every_row():
    settings = replace(PLAIN, methods=("ew", "ema", "fixed", "mao", "ema@sgd"), budget=6)
    found, records, _ = carry_out(settings, lambda trial: -trial.weight_decay)
    assert {row: len(attempts) for row, attempts in found.tried.items()} == dict.fromkeys(
        (*SINGLES, *settings.methods), 6
    )
    assert {one.trial.seed for attempts in found.tried.values() for one in attempts} == {SELECTION_SEED}
    for row, attempts in found.tried.items():
        first = attempts[0].configuration
        assert (first.lr, first.weight_decay) == (1e-2 if row.endswith("@sgd") else 1e-3, 0.0)
        low, high = (1e-4, 1.0) if row.endswith("@sgd") else (1e-6, 1e-2)
        assert all(low <= one.configuration.lr <= high for one in attempts)
        assert all(one.configuration.weight_decay <= 0.1 for one in attempts)
        assert found.configurations[row] == first  # nothing is better than no decay
    assert found.expected == len(records) == len(found.runs)


def test_a_budget_searches_what_a_method_declares_and_not_what_is_given(monkeypatch):
    spec = replace(METHODS["mgda"], search_space={"normalization": Choice(("none", "l2"))})
    monkeypatch.setitem(METHODS, "mgda", spec)
    monkeypatch.setitem(METHODS, "ema", replace(METHODS["ema"], search_space={"beta": Range(0.01, 1.0, log=True)}))
    settings = replace(
        PLAIN, methods=("mgda", "ema"), budget=8, hyperparameters={"ema": {"lr": 1e-3, "weight_decay": 0.0}}
    )
    found, _, _ = carry_out(settings, lambda trial: -abs(math.log(trial.hyperparameters.get("beta", 0.5) / 0.4)))
    assert {one.configuration.hyperparameters["normalization"] for one in found.tried["mgda"]} == {"none", "l2"}
    betas = [one.configuration.hyperparameters["beta"] for one in found.tried["ema"]]
    assert betas[0] == 0.1
    assert len(set(betas)) == 8
    assert all(0.01 <= beta <= 1 for beta in betas)
    assert tried(found, "ema") == [1e-3]
    nothing = replace(settings, hyperparameters={"ema": {"lr": 1e-3, "weight_decay": 0.0, "beta": 0.3}})
    found, _, _ = carry_out(nothing)
    assert "ema" not in found.tried
    assert found.configurations["ema"] == Configuration(1e-3, 0.0, 8, {"beta": 0.3})


def test_configurations_that_diverge_are_the_worst():
    settings = replace(PLAIN, methods=("ema",), budget=8)
    found, _, _ = carry_out(settings, lambda trial: None if trial.lr > 1e-4 and trial.single is None else 0.0)
    assert rates(found)["ema"] <= 1e-4


def test_a_replay_gets_the_mean_weights_of_the_same_seed():
    settings = replace(PLAIN, methods=("ema", "replay:ema", "mao", "replay:mao"), hyperparameters={"ema": {"lr": 3e-3}})
    found, _, stages = carry_out(settings)
    for seed in range(3):
        trial = found.final["replay:ema"][seed]
        assert trial.hyperparameters == {"weights": pytest.approx({"a": 1.55, "b": 0.55})}
        assert (trial.lr, trial.reference) == (3e-3, found.final["ema"][seed].reference)
        assert found.final["replay:mao"][seed].hyperparameters == {"weights": pytest.approx({"a": 1.4, "b": 0.6})}
        assert found.final["mao"][seed].shares
        assert not found.final["ema"][seed].shares
    assert {row for row, _, _ in stages[2]} == {"replay:ema", "replay:mao"}
    assert found.configurations["replay:ema"] == found.configurations["ema"]


def test_a_replay_of_a_run_that_did_not_finish_says_why():
    settings = replace(PLAIN, methods=("ema", "replay:ema"))
    found, records, _ = carry_out(settings, lambda trial: None if (trial.method, trial.seed) == ("ema", 1) else 0.0)
    assert set(found.final["replay:ema"]) == {0, 2}
    (said,) = [r for r in found.records(records) if (r["method"], r["seed"]) == ("replay:ema", 1)]
    assert said["status"] == "failed"
    assert said["message"] == "ema did not finish: there are no weights to replay"


def test_mean_weights_of_tasks_that_some_epochs_lack():
    epochs = [{"weights": {"a": 1.0, "b": 3.0}}, {"weights": {"a": 2.0}}]
    record = {"status": "finished", "epochs": epochs}
    assert weights_to_replay("ema", record, ["a", "b"]) == {"a": 1.5, "b": 3.0}
