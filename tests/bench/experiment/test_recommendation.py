"""What is recommended: each branch of the rule, and how often it is wrong where the truth is known."""

import re

import numpy as np
import pytest
from outcomes import judged, make, noisy
from scipy import stats

from equipoise.bench.experiment.paired import PairedTest, PairedTests
from equipoise.bench.experiment.recommendation import cheapest, recommend
from equipoise.bench.experiment.sequential import level, looks
from equipoise.bench.experiment.training_length import TRAINED, TrainingLength
from equipoise.bench.experiment.wording import in_python
from equipoise.monitor.costs import Cost

LEVEL = 0.05


def use(*arguments, **options):
    _, verdict = make(*arguments, **options)
    return verdict.use, verdict.decided


def test_a_clear_winner_with_its_gain_and_costs():
    times = {"ew": 1.0, "ema": 1.0, "mao": 1.9}
    said, decided = use(noisy({"ew": 1.0, "ema": 0.8, "mao": 0.5}), costs=times, memory={"mao": 2.04})
    gain = re.fullmatch(r"Use: mao. Δm (.*) points above equal weights at 1.90 × the time and 2.04 × the memory.", said)
    assert float(gain[1]) == pytest.approx(50, abs=1)
    assert decided


def test_of_equals_the_cheapest_is_named():
    values = noisy({"ew": 1.5, "ema": 0.5, "mao": 0.5, "uw": 0.9}, spread=0.02, seed=3)
    said, decided = use(values, costs={"ew": 1.0, "ema": 1.02, "mao": 1.9, "uw": 1.0})
    assert said.startswith("Use: ema, the cheapest of 2 that are not told apart (beside mao). Δm ")
    assert decided


def test_without_costs_the_best_of_equals_is_named():
    values = noisy({"ew": 1.5, "ema": 0.5, "mao": 0.5}, spread=0.02, seed=3)
    values["mao"] -= 0.001
    assert use(values)[0].startswith("Use: mao, the highest Δm of 2 that are not told apart (beside ema). ")


def test_time_and_memory_both_count():
    costs = {
        "quick": Cost(1.0, 1.0, 1.0, 3.0),
        "alike": Cost(1.0, 1.08, 1.0, 2.0),
        "small": Cost(1.0, 2.0, 1.0, 1.0),
        "worst": Cost(1.0, 3.0, 1.0, 4.0),
    }
    assert cheapest(["quick", "alike", "small", "worst"], costs) == "alike"  # takes as long, and less memory
    assert cheapest(["quick", "small"], costs) == "quick"  # they disagree: time
    assert cheapest(["small", "worst"], costs) == "small"
    assert cheapest(["small", "unknown"], costs) is None


def test_what_a_gain_costs_on_other_tasks_is_said():
    values = noisy({"ew": 0.8, "mao": 0.8})
    values["mao"] += [-0.6, 0.2, 0.0]
    said, _ = use(values)
    assert said.endswith("above equal weights; worse on task1.")


def test_equal_weights_are_kept():
    assert use(noisy({"ew": 0.5, "ema": 0.9, "mao": 0.8})) == (
        "Use: keep equal weights. Every other method is worse in Δm.",
        True,
    )
    errors = noisy({"ew": 1.0}, spread=0.1)["ew"]
    said = use({"ew": errors, "mao": errors + 0.3 * np.array([1, -1, 1, -1, 0.01])[:, None]})
    assert said == ("Use: keep equal weights. No method is shown to beat them.", True)


def test_more_seeds_are_advised_where_they_would_decide():
    said, decided = use(noisy({"ew": 1.0, "mao": 0.955}, seeds=3, tasks=2, spread=0.02, seed=1))
    assert re.fullmatch(
        r"Use: keep equal weights so far, and add seeds\. A new comparison with --seeds \d+ and another --out would "
        r"decide between them and mao\.",
        said,
    )
    assert not decided
    for seeds in (1, 2):
        said, decided = use(noisy({"ew": 1.0, "mao": 0.1}, seeds=seeds))
        assert said == "Use: nothing yet. Add seeds, in a new comparison with --seeds 5 and another --out."
        assert not decided


def test_longer_training_comes_first():
    rising = TrainingLength(("ema", "mao"), longer=16)
    said, decided = use(noisy({"ew": 1.0, "ema": 0.8, "mao": 0.5}), length=rising)
    assert said == (
        "Use: nothing yet. Train longer, with --epochs auto or --epochs 16 and another --out; ema and mao were still "
        "rising at the end."
    )
    assert 'Train longer, with `epochs="auto"` or `epochs=16` and another `out`;' in in_python(said)
    assert decided


def test_single_task_training_that_is_better_is_said():
    assert use(noisy({"ew": 2.0, "mao": 1.5}))[0].endswith("; training each task alone does better still.")


def test_without_equal_weights_the_unbeaten_are_named():
    assert use(noisy({"ema": 0.8, "mao": 0.5})) == ("Use: mao.", True)
    said, _ = use(noisy({"ema": 0.5, "mao": 0.5}), costs={"ema": 1.0, "mao": 1.9})
    assert said == "Use: ema, the cheapest of 2 that are not told apart (beside mao)."


def claim(better, worse, certain):
    corrected = 0.01 if certain else 0.5
    return PairedTest(better, worse, None, 5.0, 1.0, 5, raw=0.001, corrected=corrected, factor=3.0)


def test_a_chain_of_certain_claims_is_certain():
    """mao beats ema and ema equal weights, so mao does, though its own test against them is open: not ema is named."""
    pairs = [("ema", "ew", True), ("mao", "ew", False), ("mao", "ema", True), ("uw", "ew", True), ("ema", "uw", False)]
    pairs += [("mao", "uw", True), ("ew", "single-task", False)]
    tests = PairedTests([claim(*pair) for pair in pairs])
    judged = {"ew": 0.0, "uw": 4.0, "ema": 5.0, "mao": 10.0}
    found = recommend(judged, tests, {}, ["one"], 5, None, TRAINED)
    assert found.method == "mao"


def draw(generator, means, seeds):
    """Δm and two errors of methods [methods, seeds, 3]: a seed is hard for all, and methods spread differently."""
    level = np.asarray(means)[:, None, None] * [-1.0, -1.0, 1.0]
    spread = np.linspace(1, 2, len(means))[:, None, None]
    shape = (len(means), seeds, 3)
    return level + spread * generator.standard_normal(shape) + generator.standard_normal((1, seeds, 3))


@pytest.mark.parametrize("means", [[0, 0, 0, 0, 0], [0, -1, -3, 0, -8]])
def test_a_method_is_falsely_named_at_most_once_in_twenty(means):
    """None is better than equal weights: whatever is named as better is false."""
    generator = np.random.default_rng(7)
    names = ["ew", "a", "b", "c", "d"]
    rounds, false, said = 600, 0, set()
    for _ in range(rounds):
        verdict = judged(names, draw(generator, means, 5))
        named = re.match(r"Use: ([a-d])\b", verdict.use)
        false += named is not None
        said.add(verdict.use.split(".")[0].split(":")[1] if named is None else "named")
    assert false <= stats.binom.ppf(0.999, rounds, LEVEL)
    assert all("equal weights" in text for text in said - {"named"})


def test_a_clear_winner_is_found():
    """b is better than equal weights by four of its standard deviations: of ten seeds 19 comparisons in 20 name it."""
    generator = np.random.default_rng(8)
    named = [judged(["ew", "a", "b"], draw(generator, [0, 0, 8], 10)).use.startswith("Use: b") for _ in range(200)]
    assert np.mean(named) > 0.95


def test_a_sequence_of_looks_names_a_method_falsely_at_most_once_in_twenty():
    """Seeds are added to equal methods until it is decided: false claims over the whole sequence."""
    generator = np.random.default_rng(9)
    names, plan = ["ew", "a", "b", "c"], looks(4, 12)
    rounds, named, claimed, ended = 300, 0, 0, []
    for _ in range(rounds):
        drawn = draw(generator, [0, 0, 0, 0], plan[-1])
        false = False
        for seeds in plan:
            verdict = judged(names, drawn[:, :seeds], level=level(seeds, plan), planned=plan[-1])
            false = false or bool(verdict.claims)  # of any look, also of those that did not end it
            if verdict.decided:
                break
        ended.append(seeds)
        named += not verdict.use.startswith("Use: keep equal weights")
        claimed += false
    assert named <= claimed <= stats.binom.ppf(0.999, rounds, LEVEL)
    assert verdict.decided  # the last look always decides


def test_a_sequence_of_looks_stops_early_where_the_difference_is_large():
    generator = np.random.default_rng(10)
    plan, ended = looks(5, 20), []
    for _ in range(60):
        drawn = draw(generator, [0, 5], plan[-1])
        for seeds in plan:
            verdict = judged(["ew", "a"], drawn[:, :seeds], level=level(seeds, plan), planned=plan[-1])
            if verdict.decided:
                break
        assert verdict.use.startswith("Use: a")
        ended.append(seeds)
    assert np.mean(ended) < 14
