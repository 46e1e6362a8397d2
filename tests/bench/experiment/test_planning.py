"""Which runs a comparison needs, followed to its end without training anything."""

import math
from dataclasses import replace

import pytest

from equipoise.bench.experiment import tuning
from equipoise.bench.experiment.plan import FIXED_BUDGET, SELECTION_SEED, mean_weights
from equipoise.bench.experiment.planning import Planner
from equipoise.bench.experiment.settings import Settings
from equipoise.bench.experiment.tuning import UNIFORM, WEIGHT, Configuration, search_space
from equipoise.bench.problems import Regression
from equipoise.registry import BASE_OPTIMIZERS
from equipoise.search_space import Range

TASKS = (Regression("a"), Regression("b"))
NAMES = ("a", "b")
SINGLES = ("single:a", "single:b")
GRIDS = {name: optimizer.grid for name, optimizer in BASE_OPTIMIZERS.items()}
GRID = GRIDS["adamw"]
BASE = Settings("digits", ("ew", "mao"), 3, False, 8, 64, 1000, 1e-3, 0.0, "constant", {}, "cpu", True)
PLAIN = replace(BASE, tune=False)


def plan(settings, tasks, records, times=None):
    return Planner(settings, tasks, times or {}).plan(records)


def record_of(trial, value, weights=(1.5, 0.5)):
    """What a run leaves that scores `value`; None: it diverged."""
    head = {**trial.head, "epochs": []}
    if value is None:
        return head | {"status": "diverged", "message": "a loss became nan"}
    shown = NAMES if trial.single is None else (trial.single,)
    error = 2.0 - (value if math.isfinite(value) else 0)
    errors = {name: {measure.name: error for measure in TASKS[0].measures} for name in shown}
    epoch = {"score": value, "validation": errors, "accuracy": dict.fromkeys(shown, 0.5)}
    epochs = [{**epoch, "score": 99.0}, {**epoch, "weights": dict(zip(NAMES, weights, strict=True))}]
    epochs[0]["weights"] = dict(zip(NAMES, (w + 0.1 for w in weights), strict=True))
    shares = {"shares": {"a": 0.7, "b": 0.3}} if trial.shares else {}
    return head | {"status": "finished", "selected": 2, "epochs": epochs, "test": errors} | shares


def carry_out(settings, score=lambda trial: 0.0, records=None, times=None, record_of=record_of):
    """Follows the plan to its end with runs that score what `score` says (None: diverged); returns how it went."""
    records, stages = dict(records or {}), []
    while True:
        found = plan(settings, TASKS, records, times)
        if not found.missing:
            return found, records, stages
        keys = [trial.key for trial in found.missing]
        assert not set(keys) & set(records)
        assert len(set(keys)) == len(keys)
        stages.append({(trial.method, trial.seed, trial.lr) for trial in found.missing})
        records |= {trial.key: record_of(trial, score(trial)) for trial in found.missing}


def peak_at(best):
    """Scores that fall off on both sides of a rate, by decades."""
    return lambda trial: -abs(math.log10(trial.lr / best))


def tried(found, row):
    return sorted({one.configuration.lr for one in found.tried.get(row, ())})


def rates(found):
    return {row: chosen.lr for row, chosen in found.configurations.items()}


def test_the_stages_follow_each_other():
    found, records, stages = carry_out(BASE, peak_at(1e-4))
    rest = {(single, seed, 1e-4) for single in SINGLES for seed in (1, 2)}
    assert stages[0] == {(single, 0, lr) for single in SINGLES for lr in GRID}
    assert stages[1] == rest | {(method, 0, lr) for method in ("ew", "mao") for lr in GRID}
    assert stages[2] == {(method, seed, 1e-4) for method in ("ew", "mao") for seed in (1, 2)}
    assert len(stages) == 3
    assert rates(found) == dict.fromkeys((*SINGLES, "ew", "mao"), 1e-4)
    assert found.expected == len(records) == len(found.runs) == 4 * 5
    assert {(row, seed) for row, runs in found.final.items() for seed in runs} == {
        (row, seed) for row in (*SINGLES, "ew", "mao") for seed in range(3)
    }


def test_how_many_runs_there_will_be_is_known_from_the_start():
    for settings in (BASE, PLAIN, replace(PLAIN, budget=6), replace(PLAIN, methods=("ew", "fixed"))):
        found, records, _ = carry_out(settings)
        assert plan(settings, TASKS, {}).expected == found.expected == len(records)


def test_a_method_waits_for_the_baselines_of_its_seed():
    found, records, _ = carry_out(BASE, peak_at(1e-4))
    gone = {found.final["single:b"][2].key, *(found.final["ew"][seed].key for seed in (1, 2))}
    without = {key: record for key, record in records.items() if key not in gone}
    missing = plan(BASE, TASKS, without).missing
    assert [(trial.method, trial.seed) for trial in missing] == [("single:b", 2), ("ew", 1)]


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (1e-4, [1e-5, 1e-4, 1e-3]),
        (1e-3, [1e-5, 1e-4, 1e-3, 1e-2]),
        (1e-1, [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
        (1e-6, [1e-7, 1e-6, 1e-5, 1e-4, 1e-3]),
        (1e-9, [1e-7, 1e-6, 1e-5, 1e-4, 1e-3]),  # not beyond 1e-7
        (1e9, [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]),  # nor beyond 1
    ],
)
def test_the_grid_grows_by_decades_while_the_best_is_at_an_end(best, expected):
    found, _, _ = carry_out(BASE, peak_at(best))
    assert tried(found, "mao") == tried(found, "single:a") == expected
    assert rates(found)["mao"] == min(max(best, 1e-7), 1.0)
    assert {trial.lr for trial in found.final["mao"].values()} == {rates(found)["mao"]}


def test_every_method_has_its_own_rate():
    best = {"single:a": 1e-2, "single:b": 1e-5, "ew": 1e-4, "mao": 1e-3}
    found, _, _ = carry_out(BASE, lambda trial: peak_at(best[trial.method])(trial))
    assert rates(found) == best


def test_a_grid_of_ones_own():
    found, _, _ = carry_out(replace(BASE, grid=(3e-3,)), peak_at(3e-2))
    assert tried(found, "ew") == [3e-4, 3e-3, 3e-2, 3e-1]
    assert rates(found)["ew"] == 3e-2


def test_a_rate_that_diverges_counts_as_worst():
    found, _, _ = carry_out(BASE, lambda trial: None if trial.lr >= 1e-3 else trial.lr)
    assert tried(found, "ew") == list(GRID)
    assert rates(found)["ew"] == 1e-4
    assert {one.configuration.lr: one.score for one in found.tried["ew"]} == {1e-5: 1e-5, 1e-4: 1e-4, 1e-3: -math.inf}


def test_scores_that_are_no_numbers_count_as_worst():
    found, _, _ = carry_out(BASE, lambda trial: math.nan if trial.lr >= 1e-3 else trial.lr)
    assert rates(found)["ew"] == 1e-4


def test_where_all_rates_diverge_smaller_ones_are_tried():
    found, _, _ = carry_out(BASE, lambda trial: None if trial.lr > 1e-7 and trial.method == "mao" else 0.0)
    assert tried(found, "mao") == [1e-7, 1e-6, 1e-5, 1e-4, 1e-3]
    assert rates(found)["mao"] == 1e-7


def test_a_method_that_never_works_ends():
    found, _, _ = carry_out(BASE, lambda trial: None if trial.method == "mao" else 0.0)
    assert tried(found, "mao") == [1e-7, 1e-6, 1e-5, 1e-4, 1e-3]
    assert not found.missing


def test_equal_scores_take_a_rate_inside():
    found, _, _ = carry_out(BASE)
    assert rates(found)["ew"] == 1e-4
    assert tried(found, "ew") == list(GRID)


def test_rates_that_are_given_are_not_tuned():
    settings = replace(BASE, hyperparameters={"single": {"lr": 1e-2}, "mao": {"lr": 3e-4, "eps": 1e-8}})
    found, _, _ = carry_out(settings, peak_at(1e-4))
    assert rates(found) == {"single:a": 1e-2, "single:b": 1e-2, "ew": 1e-4, "mao": 3e-4}
    assert set(found.tried) == {"ew"}
    assert found.final["mao"][1].hyperparameters == {"eps": 1e-8}


def test_without_tuning_every_seed_is_run_once_at_the_common_rate():
    found, records, stages = carry_out(PLAIN, peak_at(1e-4))
    assert stages == [
        {(single, seed, 1e-3) for single in SINGLES for seed in range(3)},
        {(method, seed, 1e-3) for method in ("ew", "mao") for seed in range(3)},
    ]
    assert found.expected == len(records) == 12
    assert found.tried == {}


def test_more_seeds_and_methods_go_on_from_what_is_there():
    _, records, _ = carry_out(BASE, peak_at(1e-4))
    more = replace(BASE, methods=("ew", "mao", "ema"), seeds=4)
    missing = {(trial.method, trial.seed, trial.lr) for trial in plan(more, TASKS, records).missing}
    assert missing == {(single, 3, 1e-4) for single in SINGLES} | {("ema", 0, lr) for lr in GRID}


def test_an_extended_rate_is_the_same_number_every_time():
    found, _, _ = carry_out(replace(BASE, grid=(3e-4,)), peak_at(3e-7))
    assert tried(found, "ew") == [3e-7, 3e-6, 3e-5, 3e-4]


# A run is all that decides its outcome.


def test_what_was_given_by_a_baseline_that_is_another_one_now_is_run_again():
    """It failed at the best rate, which was tried again later and now is chosen."""
    settings = replace(BASE, methods=("ew", "amtl"))
    found, records, _ = carry_out(
        settings, lambda trial: None if trial.single == "a" and trial.lr == 1e-4 else -trial.lr
    )
    before = found.final
    for record in list(records.values()):
        if record["method"] == "single:a" and record["lr"] == 1e-4:
            del records[record["run"]]
    found, after, stages = carry_out(settings, lambda trial: 1.0 if trial.single == "a" else -trial.lr, records)
    assert stages[0] == {("single:a", 0, 1e-4)}
    assert after.keys() > records.keys()  # what nobody needs any more stays there
    for row in ("ew", "amtl"):
        for seed in range(3):
            assert found.final[row][seed].reference["a"] == 1.0
            assert found.final[row][seed].key != before[row][seed].key
            assert after[found.final[row][seed].key]["status"] == "finished"
    assert found.final["single:b"] == before["single:b"]
    assert len(found.runs) < len(after)


def test_potentials_are_part_of_the_runs_that_take_them_alone():
    found, records, _ = carry_out(replace(PLAIN, methods=("ew", "amtl")))
    assert found.final["amtl"][1].potentials == {"a": 0.5, "b": 0.5}
    assert found.final["ew"][1].potentials is None
    single = records[found.final["single:a"][1].key]
    single["epochs"][single["selected"] - 1]["accuracy"]["a"] = 0.75
    missing = plan(replace(PLAIN, methods=("ew", "amtl")), TASKS, records).missing
    assert [(trial.method, trial.seed, trial.potentials["a"]) for trial in missing] == [("amtl", 1, 0.75)]


def test_a_key_is_of_all_that_decides_and_survives_json():
    import json

    from equipoise.bench.experiment.definition import Definition

    found, _, _ = carry_out(PLAIN)
    trial = found.final["mao"][1]
    others = [
        replace(trial, lr=1e-2),
        replace(trial, weight_decay=0.1),
        replace(trial, epochs=9),
        replace(trial, hyperparameters={"eps": 1e-7}),
        replace(trial, reference={"a": 2.0, "b": math.nan}),
        replace(trial, shares=True),
        replace(trial, precision="bf16-mixed"),
    ]
    assert len({trial.key, *(other.key for other in others)}) == 1 + len(others)
    for one in (trial, *others):
        text = json.dumps(Definition("digits", False, one).to_json())
        assert Definition.from_json(json.loads(text)).trial.key == one.key
    assert replace(trial, hyperparameters={"eps": 1}).key == replace(trial, hyperparameters={"eps": 1.0}).key
    assert replace(trial, hyperparameters={"eps": True}).key != replace(trial, hyperparameters={"eps": 1.0}).key


# Rows.


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
    from equipoise.registry import METHODS
    from equipoise.search_space import Choice, Range

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
    assert mean_weights({"epochs": epochs}, ["a", "b"]) == {"a": 1.5, "b": 3.0}


# Baselines that do not work.


def test_a_baseline_that_diverges_gives_no_reference_and_the_rest_goes_on():
    found, records, _ = carry_out(PLAIN, lambda trial: None if trial.single == "b" else 0.0)
    assert all(trial.reference == {"a": 2.0} for trial in found.final["ew"].values())
    assert all(records[trial.key]["status"] == "finished" for trial in found.final["mao"].values())
    assert set(found.references[1]) == {"a"}


def test_where_no_baseline_works_equal_weights_take_their_place():
    found, _, stages = carry_out(replace(PLAIN, methods=("mao",)), lambda trial: None if trial.single else 0.5)
    assert stages[1] == {("ew", seed, 1e-3) for seed in range(3)}
    assert all(trial.reference == {"a": 1.5, "b": 1.5} for trial in found.final["mao"].values())
    assert {trial.method for trial in found.references[2].values()} == {"ew"}
    everything, _, _ = carry_out(PLAIN, lambda trial: 0.5 if trial.method == "mao" else None)
    assert all(trial.reference == {} for trial in everything.final["mao"].values())


def test_without_baselines_gains_are_over_equal_weights():
    """Whose own runs are scored against their beginning, or, where they are searched, against one that is not."""
    settings = replace(PLAIN, baselines=False, methods=("mao",))
    found, records, stages = carry_out(settings, lambda trial: 0.5)
    assert stages == [{("ew", seed, 1e-3) for seed in range(3)}, {("mao", seed, 1e-3) for seed in range(3)}]
    assert found.settings.methods == ("ew", "mao")
    assert [trial.reference for trial in found.final["ew"].values()] == [None] * 3
    assert all(trial.reference == {"a": 1.5, "b": 1.5} for trial in found.final["mao"].values())
    assert len(records) == found.expected == 6
    tuned = replace(settings, methods=("ew", "mao"), tune=True)
    found, records, stages = carry_out(tuned, peak_at(1e-4))
    assert stages[0] == {("ew", 0, 1e-3)}
    assert all(trial.reference == {"a": 3.0, "b": 3.0} for trial in found.final["ew"].values())
    assert rates(found) == {"ew": 1e-4, "mao": 1e-4}


def rising_until(epochs):
    """Runs that rise as long as they have fewer epochs."""

    def record(trial, value):
        found = record_of(trial, value)
        steps = range(trial.epochs)
        scores = [step / trial.epochs if trial.epochs < epochs else 0.5 for step in steps]
        whole = [{**found["epochs"][1], "score": score} for score in scores]
        return found | {"epochs": whole, "selected": len(whole)}

    return record


@pytest.mark.parametrize(("enough", "came_to"), [(8, 8), (32, 32), (10_000, 128)])
def test_epochs_are_doubled_until_nothing_rises(enough, came_to):
    settings = replace(PLAIN, extend_epochs=True)
    found, records, _ = carry_out(settings, record_of=rising_until(enough))
    assert found.settings.epochs == came_to
    assert {trial.epochs for runs in found.final.values() for trial in runs.values()} == {came_to}
    tried = sorted({(trial.epochs, trial.seed) for trial in found.runs if trial.epochs < came_to})
    assert tried == [(epochs, 0) for epochs in (8, 16, 32, 64) if epochs < came_to]
    assert found.expected == len(records) == len(found.runs)


@pytest.mark.parametrize(("lead", "expected"), [(0.5, (4, 6)), (0.05, (12,))])
def test_seeds_are_added_at_planned_looks_until_the_verdict_decides(lead, expected):
    def score(trial):
        return (lead + 0.1 * math.sin(7 * trial.seed)) * (trial.method == "mao")

    settings = replace(PLAIN, seeds=12, looks=(4, 6, 12))
    found, records, stages = carry_out(settings, score, record_of=rising_until(0))
    assert found.settings.seeds in expected
    assert len(records) == 4 * found.settings.seeds
    assert len(stages) == 2 * (1 + settings.looks.index(found.settings.seeds))
    some = dict(list(records.items())[:-1])  # interrupted: it goes on at the same look
    assert {trial.key for trial in plan(settings, TASKS, some).missing} == records.keys() - some.keys()


def test_where_time_is_matched_cheap_rows_train_longer():
    times = {"ew": 1.0, "mao": 2.5, "ema": 1.25}
    settings = replace(PLAIN, methods=("ew", "ema", "mao", "replay:mao"), match_time=True)
    found, _, _ = carry_out(settings, times=times)
    epochs = {row: {trial.epochs for trial in runs.values()} for row, runs in found.final.items()}
    assert epochs == {
        **{single: {8} for single in SINGLES},
        "ew": {20},
        "ema": {16},
        "mao": {8},
        "replay:mao": {8},
    }
