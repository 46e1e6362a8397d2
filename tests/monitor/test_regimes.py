"""What a diagnosis makes of its measurements: statistics, thresholds, rules of methods, the page that has them."""

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from quadratics import ALIKE, STILL, Quadratics, diagnose
from scipy import stats

import equipoise as eq
from equipoise.monitor.diagnosis.measuring import Measured
from equipoise.monitor.diagnosis.regimes import (
    NAMES,
    OPPOSED,
    SIZE,
    SPEED,
    Regime,
    jackknifed_means,
    judge,
    student_tail,
)
from equipoise.monitor.diagnosis.rules import BY_SCALE, RULES, explained_by_scale, fitting
from equipoise.monitor.recording import Recording


def made(contributions, losses=None, within=None, across=None, tasks="abc"):
    """Measurements that nobody made."""
    count = len(contributions)
    ones = torch.ones(count, len(tasks), len(tasks), dtype=torch.float64)
    losses = torch.ones(200, len(tasks), dtype=torch.float64) if losses is None else losses
    within, across = ones if within is None else within, ones if across is None else across
    return Measured(tuple(tasks), "AdamW", losses, contributions, within, across, Recording(list(tasks), [], 1))


def test_the_jackknife_knows_how_much_a_mean_varies():
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(203, 300, generator=draw, dtype=torch.float64)
    for smooth in (1, 4):  # neighbours that are alike leave fewer independent ones; a mean varies as much
        values = noise.unfold(0, smooth, 1).mean(-1)[:200]
        means = jackknifed_means(values)
        torch.testing.assert_close(means[0], values.mean(0))
        torch.testing.assert_close(means[1], values[20:].mean(0))
        errors = (0.9 * (means[1:] - means[1:].mean(0)).square().sum(0)).mean().sqrt()
        assert errors.item() == pytest.approx(200**-0.5, rel=0.1)
    gaps = noise[:, :1].clone()
    gaps[::3] = math.nan
    means = jackknifed_means(gaps)
    known = gaps[~gaps.isnan()]
    assert means[0].item() == pytest.approx(known.mean().item())
    assert means[1].item() == pytest.approx(known[14:].mean().item())  # of 135
    assert jackknifed_means(gaps[:13]).isnan().all()


def test_students_distribution():
    t = np.linspace(-30, 30, 61)
    np.testing.assert_allclose([student_tail(value) for value in t], stats.t.sf(t, 9), atol=1e-15)
    assert (student_tail(math.inf), student_tail(-math.inf)) == (0, 1)


@pytest.mark.parametrize(("ratio", "found", "sure"), [(2.0, False, True), (3.3, True, False), (5.0, True, True)])
def test_an_answer_is_as_sure_as_its_distance_from_the_threshold(ratio, found, sure):
    draw = torch.Generator().manual_seed(0)
    spread = (0.3 * torch.randn(50, 2, generator=draw, dtype=torch.float64)).exp()
    spread /= spread.mean(0)
    size = judge(made(spread * torch.tensor([ratio, 1.0], dtype=torch.float64), tasks="ab"))[1]
    assert size.strength == pytest.approx(ratio)
    assert (size.found, size.sure) == (found, sure)
    error = (spread[:, 0] - spread[:, 1]).view(10, 5).mean(1).std().item() / 10**0.5  # the delta method
    expected = 1 - 2 * stats.t.sf(abs(math.log(ratio / 3)) / error, 9)
    assert size.confidence == pytest.approx(expected, abs=0.03)


def test_the_most_extreme_of_many_pairs_is_no_find():
    """Of 45 pairs of unrelated tasks the lowest mean cosine is well below 0, by chance."""
    draw = torch.Generator().manual_seed(0)
    ones = torch.ones(50, 10, dtype=torch.float64)
    alarms = 0
    for _ in range(40):
        cosines = 0.3 * torch.randn(50, 10, 10, generator=draw, dtype=torch.float64)
        opposed = judge(made(ones, None, cosines, cosines, "abcdefghij"))[2]
        assert opposed.evidence["cosine"] < 0
        alarms += opposed.found and opposed.sure
    assert alarms <= 2


def test_losses_that_may_be_negative_have_no_speed():
    losses = torch.ones(200, 2, dtype=torch.float64)
    losses[150:, 1] = -1.0
    speed = judge(made(torch.ones(50, 2, dtype=torch.float64), losses, tasks="ab"))[3]
    assert not speed.found
    assert math.isnan(speed.confidence)


def test_learnt_losses_are_not_set_apart_by_speed():
    fall = torch.linspace(0, -20, 200, dtype=torch.float64)
    losses = torch.stack([fall.exp(), (fall / 4).exp()], 1)
    speed = judge(made(torch.ones(50, 2, dtype=torch.float64), losses, tasks="ab"))[3]
    assert not speed.found
    assert speed.sure


def test_every_case_has_a_rule_of_methods_that_there_are():
    for count in range(5):
        for names in itertools.combinations(NAMES, count):
            for by_scale in (False, True):
                regimes = tuple(Regime(name, True, 1.0, 4.0, 3.0, ("a", "b")) for name in names)
                rule = fitting(regimes, by_scale)
                assert 1 <= len(rule.methods) <= 3
                assert set(rule.methods) <= set(eq.list_methods())
                assert (list(rule.methods) == ["ew"]) == (not {SIZE, OPPOSED, SPEED} & set(names))
    unsure = Regime(SIZE, True, 0.8, 4.0, 3.0, ("a", "b"))
    assert list(fitting((unsure,), False).methods) == ["ew"]
    assert explained_by_scale({"a": 0.9, "b": 0.1}, {"a": 18.0, "b": 1.0})
    assert not explained_by_scale({"a": 0.9, "b": 0.1}, {"a": 1.0, "b": 1.0})
    assert [rule.when for rule in RULES if BY_SCALE in rule.when] == [{BY_SCALE}]


def test_the_picture_shows_the_numbers():
    pytest.importorskip("matplotlib")
    found = diagnose(Quadratics({"$a": 1.0, "b": -1.0}), STILL)
    figure = found.picture()
    scales, shares, cosines, speeds, _ = figure.axes
    assert figure.get_suptitle().replace("\n", " ") == found.answer.replace("$", r"\$")
    assert [line.get_xdata()[0] for line in scales.lines] == list(found.regimes[0].evidence.values())
    assert [bar.get_width() for bar in shares.patches] == pytest.approx(list(found.regimes[1].evidence.values()))
    matrix = cosines.images[0].get_array()
    assert matrix[0, 1] == pytest.approx(found.regimes[2].evidence["cosine"])
    assert matrix[0, 0] == pytest.approx(found.regimes[2].evidence["first with itself"])
    assert cosines.get_title().endswith(": opposed")
    assert speeds.get_title().endswith(": not unlike")
    assert [line.get_ydata()[0] for line in speeds.lines] == [1.0, 1.0]


PAGE = (Path(__file__).parents[2] / "docs" / "diagnose.md").read_text(encoding="utf-8")


def test_the_page_has_the_rules_and_the_thresholds():
    rows = dict(re.findall(r"^\| ([^|]+) \| (`[^|]+`) \|$", PAGE, re.MULTILINE))
    assert [re.findall(r"`([^`]+)`", methods) for methods in rows.values()] == [list(rule.methods) for rule in RULES]
    for condition, rule in zip(rows, RULES, strict=True):
        assert {name for name in NAMES if NAMES[name] in condition} == (
            {SIZE} if rule.when == {BY_SCALE} else rule.when
        )
    numbers = dict(re.findall(r"^\| ([^|,]+)[^|]* \| [^|]+ \| (−?[\d.]+) \|", PAGE, re.MULTILINE))
    thresholds = {NAMES[regime.name]: regime.threshold for regime in diagnose(Quadratics(ALIKE), steps=20).regimes}
    assert {name: float(number.replace("−", "-")) for name, number in numbers.items()} == thresholds


def test_the_pages_example_says_what_it_says(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    code, text = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL).groups()
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    exec(code, {})
    torch.set_rng_state(state)
    said = capsys.readouterr().out
    form = re.compile(r"[-+]?[\d,.]*\d")  # the numbers may differ from one PyTorch to another
    assert form.sub("#", " ".join(said.split())) == form.sub("#", " ".join(text.split()))
    assert (tmp_path / "diagnosis.png").stat().st_size > 10_000
