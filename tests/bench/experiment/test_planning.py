"""Which runs a comparison needs, followed to its end without training anything."""

import json
import math
from dataclasses import replace

import pytest
from bench.experiment.planned import (
    BASE,
    GRID,
    NAMES,
    PLAIN,
    SINGLES,
    TASKS,
    carry_out,
    peak_at,
    plan,
    rates,
    record_of,
    tried,
)

from equipoise.bench.experiment.definition import Definition


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


def test_a_baseline_that_diverges_gives_no_reference_and_the_rest_goes_on():
    found, records, _ = carry_out(PLAIN, lambda trial: None if trial.single == "b" else 0.0)
    assert all(trial.reference == {"a": 2.0} for trial in found.final["ew"].values())
    assert all(records[trial.key]["status"] == "finished" for trial in found.final["mao"].values())
    with_fixed, _, _ = carry_out(
        replace(PLAIN, methods=("ew", "fixed")), lambda trial: None if trial.single == "b" else 0.0
    )
    assert set(with_fixed.reference) == {"a"}


def test_where_no_baseline_works_equal_weights_take_their_place():
    found, _, stages = carry_out(replace(PLAIN, methods=("mao",)), lambda trial: None if trial.single else 0.5)
    assert stages[1] == {("ew", 0, 1e-3)}
    assert all(trial.reference == {"a": 1.5, "b": 1.5} for row in ("ew", "mao") for trial in found.final[row].values())
    everything, _, _ = carry_out(PLAIN, lambda trial: 0.5 if trial.method == "mao" else None)
    assert all(trial.reference == {} for trial in everything.final["mao"].values())


def test_without_baselines_all_runs_are_scored_against_one_run_with_equal_weights():
    """Those with equal weights too: scores, curves and choices are on one scale, that of the best each task reached."""
    settings = replace(PLAIN, baselines=False, methods=("mao",))
    found, records, stages = carry_out(settings, lambda trial: 0.5)
    assert stages == [{("ew", 0, 1e-3)}, {(row, seed, 1e-3) for row in ("ew", "mao") for seed in range(3)}]
    assert found.settings.methods == ("ew", "mao")
    assert all(trial.reference == {"a": 1.5, "b": 1.5} for row in ("ew", "mao") for trial in found.final[row].values())
    assert len(records) == found.expected == 7


@pytest.mark.parametrize("searched", [{"tune": True}, {"budget": 4}, {}])
@pytest.mark.parametrize("fixed", [(), ("fixed",)])
def test_without_baselines_every_row_is_searched_on_that_scale(searched, fixed):
    settings = replace(PLAIN, baselines=False, methods=("mao", "ew", *fixed), **searched)
    found, records, stages = carry_out(settings, peak_at(1e-4))
    assert len(stages[0]) == 1
    (scale,) = [trial for trial in found.runs if trial.reference is None]
    expected = 2.0 - peak_at(1e-4)(scale)
    for trial in found.runs:
        assert trial is scale or trial.reference == pytest.approx({"a": expected, "b": expected})
    shown = {trial.key for runs in found.final.values() for trial in runs.values()}
    tried = {one.trial.key for row in found.tried.values() for one in row}
    beside = {trial.key for trial in found.reference.values()}
    assert {trial.key for trial in found.runs} == shown | tried | beside | {scale.key}
    assert {(trial.method, trial.seed) for trial in found.reference.values()} == (
        {("ew", 1_000_000)} if fixed else set()
    )
    assert len(records) == found.expected
    if "tune" in searched:
        assert rates(found)["ew"] == rates(found)["mao"] == 1e-4
    for row in ("mao", "ew"):
        choices = {one.configuration.lr for one in found.tried.get(row, ())}
        assert rates(found)[row] == max(choices, key=lambda lr: -abs(math.log10(lr / 1e-4)), default=1e-3)


def test_where_equal_weights_diverge_the_scale_is_that_of_a_smaller_rate():
    def score(trial):
        return None if trial.method == "ew" and trial.lr >= 1e-3 else peak_at(1e-4)(trial)

    found, _, stages = carry_out(replace(PLAIN, baselines=False, methods=("ew", "mao"), tune=True), score)
    assert stages[:2] == [{("ew", 0, 1e-3)}, {("ew", 0, 1e-4)}]
    assert rates(found) == {"ew": 1e-4, "mao": 1e-4}


def test_a_measure_without_a_number_in_some_epochs_does_not_decide():
    """A correlation of constant predictions, where training is slow."""

    def record(trial, value):
        found = record_of(trial, value)
        if trial.reference is None:
            found["epochs"][0]["validation"] = {task: {"MSE": math.nan} for task in NAMES}
        return found

    settings = replace(PLAIN, baselines=False, methods=("ew", "mao"), tune=True)
    found, _, _ = carry_out(settings, peak_at(1e-4), record_of=record)
    assert rates(found) == {"ew": 1e-4, "mao": 1e-4}


def test_a_search_without_potentials_is_none():
    """The single-task run of the seed that chooses did not go through: nothing was tried, and nothing is compared."""

    def score(trial):
        return None if (trial.single, trial.seed) == ("b", 1_000_000) else 0.0

    settings = replace(PLAIN, methods=("ew", "amtl-a", "fixed"), tune=True, hyperparameters={"single": {"lr": 1e-3}})
    found, records, _ = carry_out(settings, score)
    assert "amtl-a" not in found.tried
    said = [record["message"] for record in found.records(records) if record["method"] == "amtl-a"]
    assert said == ["single:b did not finish, whose accuracy it needs"] * 3


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
