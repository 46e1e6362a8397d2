"""Which regimes a problem is in: the thresholds, with their reasons, and how sure each answer is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from equipoise.monitor.diagnosis.measuring import Measured

SCALE, SIZE, OPPOSED, SPEED = "scale", "size", "opposed", "speed"

NAMES = {
    SCALE: "losses of unlike scale",
    SIZE: "gradients of unlike size",
    OPPOSED: "opposed directions",
    SPEED: "losses of unlike speed",
}
"""The regimes, and how they are written."""

SCALE_FROM = 10.0
"""The largest loss by the smallest. Cross-entropies over 2 and over 1,000 classes start a factor of 10 apart and are
trained together without thought; regression losses in unlike units soon are apart by more."""

SIZE_FROM = 3.0
"""The largest contribution to the update by the smallest. It is what a task's own learning rate on the shared
parameters would be: learning rates are searched in steps of about 3 (1, 3, 10), so less is seldom noticed."""

OPPOSED_FROM = -0.2
"""The cosine between two tasks' gradients, freed from noise. On the sum of two gradients of one length, each task gets
`1 + cosine` of the progress that its own gradient would make: at −0.2 a fifth is lost."""

SPEED_FROM = 3.0
"""What is left of the slowest loss by what is left of the fastest, each as a share of its start. At 3, GradNorm
with its α = 1.5 would have the slower task's gradients 5 times as long as the other's."""

LEARNT = 0.05
"""What is left of a loss counts as no less than this share: below it, how fast a loss falls matters to no other."""

WINDOW = 10
"""The start and the end of a loss are the first and the last one in so many of its steps."""

SURE = 0.95
"""The confidence from which an answer is sure."""

BLOCKS = 10
"""Blocks of neighbouring steps, whose spread says how sure an answer is; of fewer measurements nothing is said."""


@dataclass(frozen=True)
class Regime:
    """One question to the measurements, and its answer.

    Attributes:
        name: "scale", "size", "opposed" or "speed".
        found: whether it is there, more probably than not.
        confidence: the probability, from 0 to 1, of that answer at least, given how much the numbers vary from step to
            step and how many pairs of tasks there are; NaN where there is too little to judge by.
        strength: a ratio between two tasks, or for "opposed" a cosine; of the two tasks that stand out most.
        threshold: where the regime begins.
        pair: those two tasks: the larger first, or the slower.
        evidence: what was measured, by task: the loss at the start, the share of the contributions, what is left of the
            loss. Of "opposed" the pair's mean cosine within batches and the share of steps in which it is below 0, and
            both of each task with itself on another batch.
    """

    name: str
    found: bool
    confidence: float
    strength: float
    threshold: float
    pair: tuple[str, str]
    evidence: Mapping[str, float] = field(default_factory=dict)

    @property
    def sure(self) -> bool:
        """Whether the answer, yes or no, has a confidence of 95 % or more."""
        return self.confidence >= SURE


def judge(measured: Measured) -> tuple[Regime, ...]:
    """Returns the four regimes, found or not."""
    return _scale(measured), _size(measured), _opposed(measured), _speed(measured)


def jackknifed_means(values: Tensor) -> Tensor:
    """Means of each column over all that is there, and over all but one of `BLOCKS` blocks, which says how they vary.

    Blocks are of neighbours, since what follows each other in training is alike.

    Args:
        values: `[n, C]`; NaN where there is none.

    Returns:
        `[1 + BLOCKS, C]`; NaN for a column of fewer than `BLOCKS` values.
    """
    known = ~values.isnan()
    count = known.sum(0)
    block = (known.cumsum(0) - 1) * BLOCKS // count.clamp_min(1)
    left_out = block == torch.arange(BLOCKS, device="cpu")[:, None, None]
    kept = torch.cat([known[None], known & ~left_out])
    means = (values.nan_to_num(0.0) * kept).sum(1) / kept.sum(1)
    return means.masked_fill(count < BLOCKS, math.nan)


def _scale(measured: Measured) -> Regime:
    starts = _ends(measured.losses.abs())[0]
    return _ratio(SCALE, measured.tasks, starts.clamp_min(torch.finfo(torch.float64).tiny), SCALE_FROM)


def _size(measured: Measured) -> Regime:
    means = jackknifed_means(measured.contributions)
    shares = means / means.nansum(1, keepdim=True)
    return _ratio(SIZE, measured.tasks, shares.clamp_min(torch.finfo(torch.float64).tiny), SIZE_FROM)


def _speed(measured: Measured) -> Regime:
    """Of losses that are ever 0 or less, a likelihood's say, there is no share of the start."""
    positive = torch.where((measured.losses <= 0).any(0), math.nan, measured.losses)
    starts, ends = _ends(positive)
    return _ratio(SPEED, measured.tasks, (ends / starts).clamp_min(LEARNT), SPEED_FROM)


def _ends(losses: Tensor) -> tuple[Tensor, Tensor]:
    """Returns means of each task's first and of its last losses, `[1 + BLOCKS, K]` each."""
    found: tuple[list[Tensor], list[Tensor]] = [], []
    for column in losses.T:
        own = column[~column.isnan()]
        size = max(BLOCKS, len(own) // WINDOW)
        for place, part in zip(found, (own[:size], own[-size:]), strict=True):
            place.append(jackknifed_means(part[:, None])[:, 0])
    return torch.stack(found[0], 1), torch.stack(found[1], 1)


def _ratio(name: str, tasks: tuple[str, ...], values: Tensor, threshold: float) -> Regime:
    """Judges the largest of positive values `[1 + BLOCKS, K]` by the smallest."""
    known = [index for index in range(len(tasks)) if not bool(values[0, index].isnan())]
    evidence = {task: float(value) for task, value in zip(tasks, values[0], strict=True)}
    if len(known) < 2:
        return Regime(name, False, math.nan, math.nan, threshold, (tasks[0], tasks[1]), evidence)
    largest = max(known, key=lambda index: float(values[0, index]))
    smallest = min(known, key=lambda index: float(values[0, index]))
    ratios = (values[:, largest] / values[:, smallest]).log()
    found, confidence = _answer(_certainty(ratios - math.log(threshold)), len(known) * (len(known) - 1))
    strength = math.exp(float(ratios[0]))
    return Regime(name, found, confidence, strength, threshold, (tasks[largest], tasks[smallest]), evidence)


def _opposed(measured: Measured) -> Regime:
    """Asks of every two tasks whether they are opposed beyond what noise does, within batches as well as across them.

    With `x_ij` the cosine between task i on one batch and task j on another, `x_ij / √(x_ii x_jj)` is the cosine
    between the gradients freed from noise (Spearman's correction for attenuation). It is below τ where
    `x_ij − τ √(x_ii x_jj) < 0`, which is tested, since it does not divide by what may be 0.
    """
    tasks = measured.tasks
    first, second = torch.triu_indices(len(tasks), len(tasks), 1, device="cpu")
    across = jackknifed_means(measured.across[:, first, second])
    own = jackknifed_means(measured.across.diagonal(dim1=1, dim2=2)).clamp_min(0)
    within = jackknifed_means(measured.within[:, first, second])
    noise = (own[:, first] * own[:, second]).sqrt()
    excess = OPPOSED_FROM * noise - across
    certainties = []
    for pair in range(len(first)):
        certainty = _certainty(excess[:, pair])
        together = _certainty(-within[:, pair])  # NaN: the two are never in one batch
        certainties.append(certainty if math.isnan(together) else min(certainty, together))
    known = [index for index, value in enumerate(certainties) if not math.isnan(value)]
    if not known:
        return Regime(OPPOSED, False, math.nan, math.nan, OPPOSED_FROM, (tasks[0], tasks[1]))
    worst = max(known, key=certainties.__getitem__)
    i, j = int(first[worst]), int(second[worst])
    free = float((across[0, worst] / noise[0, worst]).clamp(-1, 1)) if noise[0, worst] > 0 else math.nan
    evidence = {
        "cosine": float(within[0, worst]),
        "share below 0": _share_below(measured.within[:, i, j]),
        "first with itself": float(own[0, i]),
        "second with itself": float(own[0, j]),
        "first with itself, share below 0": _share_below(measured.across[:, i, i]),
        "second with itself, share below 0": _share_below(measured.across[:, j, j]),
    }
    found, confidence = _answer(certainties[worst], len(known))
    return Regime(OPPOSED, found, confidence, free, OPPOSED_FROM, (tasks[i], tasks[j]), evidence)


def _share_below(cosines: Tensor) -> float:
    """The share of measurements below 0."""
    return float((cosines < 0).double().sum() / (~cosines.isnan()).sum())


def _certainty(excess: Tensor) -> float:
    """Returns by how many standard errors a number is above 0; NaN where it is NaN.

    Source: the block jackknife, Künsch, "The jackknife and the bootstrap for general stationary observations", Annals
    of Statistics 1989.

    Args:
        excess: `[1 + BLOCKS]`, the number, and what it is without each block.
    """
    whole, parts = float(excess[0]), excess[1:]
    error = float(((BLOCKS - 1) / BLOCKS * (parts - parts.mean()).square().sum()).sqrt())
    if error == 0 or not math.isfinite(whole):
        return whole if math.isnan(whole) else math.copysign(math.inf, whole)
    return whole / error


def _answer(certainty: float, comparisons: int) -> tuple[bool, float]:
    """Returns whether a regime is found, and how sure that is.

    The pair that stands out most of many is beyond a threshold by chance with a probability of up to `comparisons`
    times that of one pair (Bonferroni); a regime is found where that is below one half.
    """
    yes, no = (max(0.0, 1 - comparisons * student_tail(t)) for t in (certainty, -certainty))
    return (True, yes) if yes >= 0.5 else (False, no)


def student_tail(t: float) -> float:
    """Returns the probability that Student's t with `BLOCKS − 1` = 9 degrees of freedom is above `t`.

    Source: the closed form for odd degrees of freedom, Abramowitz & Stegun 26.7.3.
    """
    angle = math.atan(t / 3)
    cosine = math.cos(angle)
    terms = cosine + 2 / 3 * cosine**3 + 8 / 15 * cosine**5 + 16 / 35 * cosine**7
    return max(0.0, 0.5 - (angle + math.sin(angle) * terms) / math.pi)
