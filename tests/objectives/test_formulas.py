"""Objectives beside their papers' formulas, recomputed in plain Python, and beside TorchJD where it has them."""

import itertools
import math
import random

import pytest
import torch

from equipoise.objectives import COSMOS, LDCMTL, PBI, STCH, UWSO, CoV, GO4Align, ReLoBRaLo, SoftAdapt
from equipoise.objectives.go4align import group_means

scalarization = pytest.importorskip("torchjd.scalarization")


def softmax(numbers):
    top = max(numbers.values())
    exponentials = {task: math.exp(value - top) for task, value in numbers.items()}
    return {task: value / sum(exponentials.values()) for task, value in exponentials.items()}


def shares(numbers):
    return {task: value / sum(numbers.values()) for task, value in numbers.items()}


def values_of(losses):
    return torch.tensor(list(losses.values()), dtype=torch.float64, requires_grad=True)


# --- UW-SO ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_uw_so(drive, batches, temperature):
    driver = drive(UWSO(temperature))
    for losses in batches:
        expected = softmax({task: 1 / (temperature * loss) for task, loss in losses.items()})
        assert driver.weights(losses) == pytest.approx(expected, rel=1e-12)


# --- STCH -----------------------------------------------------------------------------------------------------------


def smooth(losses, nadir, mu, preferences):
    scaled = {t: preferences.get(t, 1.0) * math.log(losses[t] / nadir[t]) / mu for t in losses}
    value = len(losses) * mu * math.log(sum(map(math.exp, scaled.values())))
    share = softmax(scaled)
    return value, {t: len(losses) * share[t] * preferences.get(t, 1.0) / losses[t] for t in losses}


@pytest.mark.parametrize("preferences", [{}, {"a": 0.5, "c": 2.0}])
def test_stch(drive, events, preferences):
    """Epochs of uneven length, one of which has no step, and one not all tasks."""
    mu, warmup = 0.7, 1
    driver = drive(STCH(mu, warmup, preferences))
    epochs, current, nadir = dict.fromkeys("abc", 0), {}, {}
    for event in [*events, None, *events]:
        if event is None:
            driver.end_epoch()
            for task, seen in current.items():
                if epochs[task] == warmup:
                    nadir[task] = sum(seen) / len(seen)
                epochs[task] += 1
            current = {}
            continue
        for task, loss in event.items():
            current.setdefault(task, []).append(loss)
        value, coefficients, _ = driver.step(event)
        if nadir.keys() >= event.keys():
            expected, slopes = smooth(event, nadir, mu, preferences)
            share = torch.tensor([preferences.get(t, 1.0) for t in event], dtype=torch.float64)
            logs = values_of({t: math.log(loss / nadir[t]) for t, loss in event.items()}).detach()
            theirs = len(event) * scalarization.STCH(mu, share)(logs)
            assert value == pytest.approx(theirs.item(), rel=1e-12)
        else:
            expected = sum(preferences.get(t, 1.0) * math.log(loss) for t, loss in event.items())
            slopes = {t: preferences.get(t, 1.0) / loss for t, loss in event.items()}
        assert value == pytest.approx(expected, rel=1e-12)
        assert coefficients == pytest.approx(slopes, rel=1e-12)
    assert nadir.keys() == set("abc")


# --- PBI and COSMOS -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [0.0, 5.0])
def test_pbi(drive, batches, theta):
    preferences, reference = {"a": 2.0, "b": 0.0}, {"c": -3.0}
    driver = drive(PBI(theta, preferences, reference))
    for losses in batches:
        weights = {t: preferences.get(t, 1.0) for t in losses}
        above = {t: losses[t] - reference.get(t, 0.0) for t in losses}
        length = math.hypot(*weights.values())
        if not length:
            continue  # only "b" is there, which is not preferred
        along = sum(above[t] * weights[t] / length for t in losses)
        across = math.hypot(*(above[t] - along * weights[t] / length for t in losses))
        value, coefficients, _ = driver.step(losses)
        assert value == pytest.approx(along + theta * across, rel=1e-11)
        values = values_of(losses)
        vectors = [torch.tensor(list(v.values()), dtype=torch.float64) for v in (weights, losses)]
        low = torch.tensor([reference.get(t, 0.0) for t in losses], dtype=torch.float64)
        theirs = torch.autograd.grad(scalarization.PBI(theta, vectors[0], low)(values), values)[0]
        if across > 1e-3:  # TorchJD rounds the corner
            assert list(coefficients.values()) == pytest.approx(theirs.tolist(), rel=1e-6)


def test_pbi_in_the_preferred_direction(drive):
    value, coefficients, _ = drive(PBI(preferences={"a": 1.0, "b": 2.0, "c": 2.0})).step({"a": 1.0, "b": 2.0, "c": 2.0})
    assert value == pytest.approx(3.0)
    assert list(coefficients.values()) == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_cosmos(drive, batches):
    preferences = {"a": 0.6, "b": 0.3, "c": 0.1}
    driver = drive(COSMOS(2.0, preferences))
    for losses in batches:
        weights = shares({t: preferences[t] for t in losses})
        value, coefficients, _ = driver.step(losses)
        product = sum(weights[t] * losses[t] for t in losses)
        cosine = product / math.hypot(*weights.values()) / math.hypot(*losses.values())
        assert value == pytest.approx(product - 2.0 * cosine, rel=1e-12)
        values = values_of(losses)
        theirs = scalarization.COSMOS(2.0, torch.tensor(list(weights.values()), dtype=torch.float64))(values)
        assert value == pytest.approx(theirs.item(), rel=1e-12)
        slopes = torch.autograd.grad(theirs, values)[0].tolist()
        assert list(coefficients.values()) == pytest.approx(slopes, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("make", [COSMOS, PBI, lambda **given: STCH(warmup=0, **given)])
def test_preferences_can_change_between_steps(drive, make):
    driver, other = drive(make()), drive(make(preferences={"a": 0.7, "b": 0.3}))
    losses = {"a": 1.0, "b": 3.0, "c": 0.5}
    for each in (driver, other):
        each.step(losses)
        each.end_epoch()
    assert driver.step(losses) != other.step(losses)
    driver.objective.prefer({"a": 0.7, "b": 0.3})
    assert driver.step(losses) == other.step(losses)
    with pytest.raises(ValueError, match="preferences: unknown task 'd'"):
        driver.objective.prefer({"d": 1.0})
    with pytest.raises(ValueError, match="at least one preference > 0"):
        driver.objective.prefer(dict.fromkeys("abc", 0.0))
    with pytest.raises(ValueError, match=r"preferences\['a'\] must be a finite number ≥ 0, found -1"):
        driver.objective.prefer({"a": -1})
    assert driver.step(losses) == other.step(losses)


# --- LDC-MTL --------------------------------------------------------------------------------------------------------


def test_ldc_mtl(drive, batches):
    driver = drive(LDCMTL(0.05))
    numbers = random.Random(1)
    for losses in batches:
        with torch.no_grad():
            for parameter in driver.parameters:
                parameter.fill_(numbers.uniform(-1, 2))
        logits = {t: p.item() for t, p in zip("abc", driver.parameters, strict=True) if t in losses}
        weights = torch.tensor(list(logits.values()), dtype=torch.float64, requires_grad=True)
        values = values_of(losses)
        w = weights.sigmoid()
        weighted = w * values
        authors = w @ values / w.sum().detach() + 0.05 * (weighted[:-1] - weighted[1:]).abs().sum()
        slopes, learned = torch.autograd.grad(authors, [values, weights])
        value, coefficients, gradients = driver.step(losses)
        assert value == pytest.approx(authors.item(), rel=1e-10)
        assert list(coefficients.values()) == pytest.approx(slopes.tolist(), rel=1e-10)
        (found,) = gradients.values()
        present = [g for t, g in zip("abc", found, strict=True) if t in losses]
        assert present == pytest.approx(learned.tolist(), rel=1e-5)


# --- GO4Align -------------------------------------------------------------------------------------------------------


def best_groups(values, groups):
    """The partition with the least squares, among all."""
    best, result = math.inf, None
    for labels in itertools.product(range(groups), repeat=len(values)):
        if len(set(labels)) != groups:
            continue
        members = {g: [v for v, k in zip(values, labels, strict=True) if k == g] for g in set(labels)}
        means = {g: sum(found) / len(found) for g, found in members.items()}
        squares = sum((v - means[k]) ** 2 for v, k in zip(values, labels, strict=True))
        if squares < best - 1e-12:
            best, result = squares, [means[k] for k in labels]
    return result


@pytest.mark.parametrize("groups", [1, 2, 3, 5])
def test_groups_are_the_best_ones(groups):
    numbers = random.Random(groups)
    for _ in range(20):
        values = [numbers.choice([1.0, 4.0, 9.0]) + numbers.random() for _ in range(5)]
        padded = torch.tensor([values[0], 99.0, *values[1:], -5.0], dtype=torch.float64)
        counts = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
        found = group_means(padded, counts, groups)[counts > 0]
        assert found.tolist() == pytest.approx(best_groups(values, groups), rel=1e-9)


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_go4align(drive, batches, groups):
    driver, step = drive(GO4Align(groups, 0.01)), 0.01
    logits = dict.fromkeys("abc", 0.0)
    for losses in batches:
        for task, loss in losses.items():
            logits[task] -= step * loss
        risk = softmax({task: logits[task] for task in losses})
        values = [risk[task] * sum(losses.values()) / loss for task, loss in losses.items()]
        expected = best_groups(values, min(groups, len(values)))
        assert list(driver.weights(losses).values()) == pytest.approx(expected, rel=1e-9)


# --- CoV ------------------------------------------------------------------------------------------------------------


def test_cov(drive, batches):
    driver = drive(CoV())
    losses_of, ratios = ({task: [] for task in "abc"} for _ in range(2))
    for losses in batches * 2:
        if all(len(ratios[task]) > 1 for task in losses):
            found = {}
            for task in losses:
                mean = sum(ratios[task]) / len(ratios[task])
                variance = sum((r - mean) ** 2 for r in ratios[task]) / len(ratios[task])
                found[task] = math.sqrt(variance + 1e-8) / mean
            expected = shares(found)
        else:
            expected = dict.fromkeys(losses, 1 / len(losses))
        assert driver.weights(losses) == pytest.approx(expected, rel=1e-10)
        for task, loss in losses.items():
            before = losses_of[task]
            ratios[task].append(loss / (sum(before) / len(before)) if before else 1.0)
            before.append(loss)


# --- SoftAdapt ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [1, 3, "epoch"])
@pytest.mark.parametrize("variant", ["original", "normalized", "loss-weighted"])
def test_softadapt(drive, events, variant, interval):
    driver = drive(SoftAdapt(0.3, variant, interval))
    means, current = ({task: [] for task in "abc"} for _ in range(2))
    for event in events * 2:
        if event is None:
            driver.end_epoch()
        else:
            change = {t: means[t][-1] - means[t][-2] if len(means[t]) > 1 else 0.0 for t in event}
            if variant == "normalized" and any(change.values()):
                total = sum(map(abs, change.values()))
                change = {t: c / total for t, c in change.items()}
            weights = softmax({t: 0.3 * c for t, c in change.items()})
            if variant == "loss-weighted" and all(means[t] for t in event):
                weights = shares({t: w * means[t][-1] for t, w in weights.items()})
            assert driver.weights(event) == pytest.approx(weights, rel=1e-11)
            for task, loss in event.items():
                current[task].append(loss)
        for task, seen in current.items():
            if seen and (event is None if interval == "epoch" else len(seen) == interval):
                means[task].append(sum(seen) / len(seen))
                seen.clear()


def test_softadapt_takes_losses_of_any_sign(drive):
    driver = drive(SoftAdapt(1.0))
    for losses in ({"a": -1.0, "b": 0.0, "c": 1.0}, {"a": -2.0, "b": 0.5, "c": 1.0}):
        driver.weights(losses)
    expected = softmax({"a": -1.0, "b": 0.5, "c": 0.0})
    assert driver.weights({"a": 0.0, "b": 0.0, "c": 0.0}) == pytest.approx(expected)


# --- ReLoBRaLo ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lookback", [0.0, 0.5, 1.0])
def test_relobralo(drive, batches, lookback):
    alpha, temperature = 0.8, 3.0
    driver = drive(ReLoBRaLo(alpha, lookback, temperature, seed=4))
    generator = torch.Generator().manual_seed(4)
    first, last, weights, steps = {}, {}, dict.fromkeys("abc", 1.0), dict.fromkeys("abc", 0)
    for losses in batches:
        stays = torch.rand((), generator=generator).item() < lookback

        def since(earlier, losses=losses):
            found = softmax({t: loss / (temperature * earlier.get(t, 1.0)) for t, loss in losses.items()})
            return {t: len(losses) * value for t, value in found.items()}

        lately, ever = since(last), since(first)
        for task in losses:
            past = weights[task] if stays else ever[task]
            a = alpha if steps[task] > 1 else 0.0
            if steps[task]:
                weights[task] = a * past + (1 - a) * lately[task]
        assert driver.weights(losses) == pytest.approx({t: weights[t] for t in losses}, rel=1e-11)
        for task, loss in losses.items():
            first.setdefault(task, loss)
            last[task] = loss
            steps[task] += 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UWSO(0.0), "temperature must be a finite number > 0, found 0"),
        (lambda: STCH(mu=-1), "mu must be a finite number > 0, found -1"),
        (lambda: STCH(warmup=1.5), "warmup must be a number of epochs ≥ 0, found 1.5"),
        (lambda: STCH(warmup=True), "warmup must be a number of epochs ≥ 0, found True"),
        (lambda: GO4Align(0), "groups must be a number of groups ≥ 1, found 0"),
        (lambda: GO4Align(step_size=0), "step_size must be a finite number > 0, found 0"),
        (lambda: LDCMTL(-0.1), "penalty must be a finite number ≥ 0, found -0.1"),
        (lambda: SoftAdapt(variant="both"), "variant must be one of 'original', .*found 'both'"),
        (lambda: SoftAdapt(beta=math.nan), "beta must be a finite number, found nan"),
        (lambda: ReLoBRaLo(alpha=1.5), "alpha must be a finite number ≥ 0 and ≤ 1, found 1.5"),
        (lambda: ReLoBRaLo(lookback=-1), "lookback must be a finite number ≥ 0 and ≤ 1, found -1"),
        (lambda: PBI(-1), "theta must be a finite number ≥ 0, found -1"),
        (lambda: COSMOS(-1), "strength must be a finite number ≥ 0, found -1"),
        (lambda: COSMOS(preferences={"a": -1.0}), r"preferences\['a'\] must be a finite number ≥ 0, found -1"),
    ],
)
def test_bad_hyperparameters_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
