"""Methods against the best fixed weights that were searched, and against their own mean weights held fixed."""

from dataclasses import replace

import numpy as np
from outcomes import judged, make, noisy
from planned import PLAIN
from scipy import stats

from equipoise.bench.experiment.front import FrontPoint
from equipoise.bench.experiment.trials import selection_seed

LEVEL = 0.05
FRONT = [FrontPoint({"a": 1.0}, {}, {}, 0.0)] * 24


def said(values, about, **options):
    _, verdict = make(values, front=FRONT, **options)
    return [sentence for sentence in verdict.sentences if about in sentence]


def test_a_method_that_beats_the_best_fixed_weights():
    values = noisy({"ew": 1.0, "fixed": 0.8, "ema": 0.8, "mao": 0.5})
    [sentence] = said(values, "found among")
    assert sentence == "mao beats the best fixed weights found among 24 (p < 0.01)."
    _, verdict = make(values)
    assert verdict.use.startswith("Use: mao. ")


def test_fixed_weights_that_nothing_beats():
    values = noisy({"ew": 1.0, "fixed": 0.5, "ema": 0.5, "mao": 0.8}, spread=0.02, seed=3)
    [sentence] = said(values, "found among")
    assert sentence.startswith("No method is shown to beat the best fixed weights found among 24")
    assert sentence.endswith("; they beat mao (p < 0.01).")
    _, verdict = make(values, costs={"ew": 1.0, "fixed": 1.0, "ema": 1.3, "mao": 1.9})
    assert verdict.use.startswith("Use: the best fixed weights, the cheapest of 2 that are not told apart (beside ema)")


def test_without_that_row_nothing_is_said_of_it():
    assert said(noisy({"ew": 1.0, "mao": 0.5}), "fixed weights") == []


def chosen(generator, methods, weightings, seeds, apart=True):
    """Equal methods and the best of equal weightings, chosen with a seed apart or with the first of those compared."""
    drawn = generator.standard_normal((methods + 1, seeds, 3))
    candidates = generator.standard_normal((weightings, seeds + 1, 3))
    best = candidates[candidates[:, 0, 2].argmax()]
    drawn[-1] = best[1:] if apart else best[:-1]
    return drawn


def test_that_it_is_the_best_of_many_makes_no_false_claims():
    """All are equal; a seed apart chose, as a comparison's does. 600 comparisons, each with 3 methods and the best."""
    generator = np.random.default_rng(11)
    names = ["ew", "a", "b", "fixed"]
    rounds = 600
    false = sum(bool(judged(names, chosen(generator, 3, 24, 5)).claims) for _ in range(rounds))
    assert false <= stats.binom.ppf(0.999, rounds, LEVEL)


def test_a_seed_apart_takes_away_the_luck_of_the_chosen():
    """Chosen with a seed that is compared, the best of many equals leads by its luck in the mean; else by nothing."""
    generator = np.random.default_rng(12)
    leads = {False: [], True: []}
    for _ in range(200):
        for apart, found in leads.items():
            verdict = judged(["ew", "fixed"], chosen(generator, 1, 24, 4, apart))
            found.append(verdict.tests.of("fixed", "ew").lead_of("fixed"))
    assert np.mean(leads[False]) > 0.3
    assert abs(np.mean(leads[True])) < 3 * np.std(leads[True]) / np.sqrt(200)
    assert selection_seed(replace(PLAIN, methods=("ew", "fixed"))) not in range(10_000)


def test_replays_say_whether_a_method_helps_by_its_weights_or_by_moving_them():
    values = noisy({"ew": 1.0, "ema": 0.7, "replay:ema": 0.7, "mao": 0.5, "replay:mao": 0.8, "uw": 0.9})
    [equal] = said(values, "ema helps")
    assert equal.startswith("ema helps by its weights: held fixed at their means, no difference is shown (Δm of moving")
    assert "points, 95 % interval on its own, which is not equality)" in equal
    [moving] = said(values, "mao helps")
    assert moving.startswith("mao helps by moving its weights: held fixed at their means, Δm is 30.")
    assert moving.endswith(" points lower (p < 0.01).")
    [worse] = said(values | noisy({"replay:ema": 0.6}, seed=1), "its own mean weights")
    assert worse.startswith("ema does worse than its own mean weights held fixed, by ")


def test_a_replay_is_tested_against_its_origin_alone_and_never_named():
    values = noisy({"ew": 1.0, "ema": 0.9, "replay:ema": 0.5})
    _, verdict = make(values)
    tested = [{test.better, test.worse} for test in verdict.tests if "replay:ema" in (test.better, test.worse)]
    assert tested == [{"ema", "replay:ema"}]
    assert verdict.use.startswith("Use: ema. ")


def test_the_interval_of_a_replay_is_students():
    values = noisy({"ew": 1.0, "ema": 0.7, "replay:ema": 0.7}, spread=0.05)
    summary, verdict = make(values)
    delta = summary.columns[-1]
    differences = np.subtract(summary.cells["ema"][delta].values, summary.cells["replay:ema"][delta].values)
    expected = stats.t.interval(0.95, 4, differences.mean(), stats.sem(differences))
    [sentence] = [text for text in verdict.sentences if "no difference is shown" in text]
    assert f"(Δm of moving them {expected[0]:+.1f} to {expected[1]:+.1f} points" in sentence
