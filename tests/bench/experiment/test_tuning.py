import math
from dataclasses import replace

import pytest

from equipoise.bench.experiment.settings import Settings
from equipoise.bench.experiment.tuning import GRID, Run, curves, plan

TASKS = ("a", "b")
SINGLES = tuple(f"single:{task}" for task in TASKS)
BASE = Settings("digits", ("ew", "mao"), 3, False, 8, 64, 1000, 1e-3, 0.0, "constant", {}, "cpu", True, GRID)


def carry_out(settings, score):
    """Follows the plan to its end with runs that score what `score` says (None: diverged); returns how it went."""
    records, stages = {}, []
    while True:
        found = plan(settings, TASKS, records)
        if not found.missing:
            return found, records, stages
        assert not set(found.missing) & set(records)
        assert len(set(found.missing)) == len(found.missing)
        stages.append(set(found.missing))
        for run in found.missing:
            value = score(run)
            records[run] = (
                {"status": "diverged", "message": "a loss became nan"}
                if value is None
                else {"status": "finished", "selected": 2, "epochs": [{"score": 99.0}, {"score": value}]}
            )


def peak_at(best):
    """Scores that fall off on both sides of a rate, by decades."""
    return lambda run: -abs(math.log10(run.lr / best))


def tried(records, method):
    return sorted(run.lr for run in records if run.method == method and run.seed == 0)


def test_the_stages_follow_each_other():
    found, records, stages = carry_out(BASE, peak_at(1e-4))
    grid = {Run(single, 0, lr) for single in SINGLES for lr in GRID}
    rest = {Run(single, seed, 1e-4) for single in SINGLES for seed in (1, 2)}
    assert stages[0] == grid
    assert stages[1] == rest | {Run(method, 0, lr) for method in ("ew", "mao") for lr in GRID}
    assert stages[2] == {Run(method, seed, 1e-4) for method in ("ew", "mao") for seed in (1, 2)}
    assert len(stages) == 3
    assert found.rates == dict.fromkeys((*SINGLES, "ew", "mao"), 1e-4)
    assert found.expected == len(records) == 4 * 5
    assert found.failed is None


def test_a_method_waits_for_the_baselines_of_its_seed():
    _, records, _ = carry_out(BASE, peak_at(1e-4))
    unfinished = {run: record for run, record in records.items() if run != Run("single:b", 2, 1e-4)}
    without = {run: record for run, record in unfinished.items() if not (run.method == "ew" and run.seed)}
    assert plan(BASE, TASKS, without).missing == (Run("single:b", 2, 1e-4), Run("ew", 1, 1e-4))


@pytest.mark.parametrize(
    ("best", "rates"),
    [
        (1e-4, [1e-5, 1e-4, 1e-3]),
        (1e-3, [1e-5, 1e-4, 1e-3, 1e-2]),
        (1e-1, [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
        (1e-6, [1e-7, 1e-6, 1e-5, 1e-4, 1e-3]),
        (1e-9, [1e-7, 1e-6, 1e-5, 1e-4, 1e-3]),  # not beyond 1e-7
        (1e9, [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]),  # nor beyond 1
    ],
)
def test_the_grid_grows_by_decades_while_the_best_is_at_an_end(best, rates):
    found, records, _ = carry_out(BASE, peak_at(best))
    assert tried(records, "mao") == tried(records, "single:a") == rates
    assert found.rates["mao"] == min(max(best, 1e-7), 1.0)
    assert {run.lr for run in records if run.method == "mao" and run.seed} == {found.rates["mao"]}


def test_every_method_has_its_own_rate():
    best = {"single:a": 1e-2, "single:b": 1e-5, "ew": 1e-4, "mao": 1e-3}
    found, _, _ = carry_out(BASE, lambda run: peak_at(best[run.method])(run))
    assert found.rates == best


def test_a_grid_of_ones_own():
    found, records, _ = carry_out(replace(BASE, grid=(3e-3,)), peak_at(3e-2))
    assert tried(records, "ew") == [3e-4, 3e-3, 3e-2, 3e-1]
    assert found.rates["ew"] == 3e-2


def test_a_rate_that_diverges_counts_as_worst():
    found, records, _ = carry_out(BASE, lambda run: None if run.lr >= 1e-3 else run.lr)
    assert tried(records, "ew") == list(GRID)
    assert found.rates["ew"] == 1e-4
    assert curves(BASE, ["ew"], records) == {"ew": [(1e-5, 1e-5), (1e-4, 1e-4), (1e-3, -math.inf)]}


def test_scores_that_are_no_numbers_count_as_worst():
    found, _, _ = carry_out(BASE, lambda run: math.nan if run.lr >= 1e-3 else run.lr)
    assert found.rates["ew"] == 1e-4


def test_where_all_rates_diverge_smaller_ones_are_tried():
    found, records, _ = carry_out(BASE, lambda run: None if run.lr > 1e-7 and run.method == "mao" else 0.0)
    assert tried(records, "mao") == [1e-7, 1e-6, 1e-5, 1e-4, 1e-3]
    assert found.rates["mao"] == 1e-7


def test_a_method_that_never_works_ends():
    found, records, _ = carry_out(BASE, lambda run: None if run.method == "mao" else 0.0)
    assert found.failed is None
    assert tried(records, "mao") == [1e-7, 1e-6, 1e-5, 1e-4, 1e-3]
    assert not found.missing


def test_a_baseline_that_never_works_is_named():
    found, records, _ = carry_out(BASE, lambda run: None if run.method == "single:b" else 0.0)
    assert found.failed == Run("single:b", 0, 1e-7)
    assert not any(run.method in ("ew", "mao") for run in records)


def test_equal_scores_take_a_rate_inside():
    found, records, _ = carry_out(BASE, lambda run: 0.0)
    assert found.rates["ew"] == 1e-4
    assert tried(records, "ew") == list(GRID)


def test_rates_that_are_given_are_not_tuned():
    settings = replace(BASE, hyperparameters={"single": {"lr": 1e-2}, "mao": {"lr": 3e-4, "eps": 1e-8}})
    found, records, _ = carry_out(settings, peak_at(1e-4))
    assert found.rates == {"single:a": 1e-2, "single:b": 1e-2, "ew": 1e-4, "mao": 3e-4}
    assert tried(records, "mao") == [3e-4]
    assert set(curves(settings, list(found.rates), records)) == {"ew"}


def test_without_tuning_every_seed_is_run_once_at_the_common_rate():
    settings = replace(BASE, tune=False, grid=())
    found, records, stages = carry_out(settings, peak_at(1e-4))
    assert stages == [
        {Run(single, seed, 1e-3) for single in SINGLES for seed in range(3)},
        {Run(method, seed, 1e-3) for method in ("ew", "mao") for seed in range(3)},
    ]
    assert found.expected == len(records) == 12
    assert curves(settings, list(found.rates), records) == {}


def test_more_seeds_and_methods_go_on_from_what_is_there():
    _, records, _ = carry_out(BASE, peak_at(1e-4))
    more = replace(BASE, methods=("ew", "mao", "ema"), seeds=4)
    missing = set(plan(more, TASKS, records).missing)
    assert missing == {Run(single, 3, 1e-4) for single in SINGLES} | {Run("ema", 0, lr) for lr in GRID}


def test_an_extended_rate_is_the_same_number_every_time():
    _, records, _ = carry_out(replace(BASE, grid=(3e-4,)), peak_at(3e-7))
    assert tried(records, "ew") == [3e-7, 3e-6, 3e-5, 3e-4]
