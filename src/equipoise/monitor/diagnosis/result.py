"""What a diagnosis says, in words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from equipoise.monitor.costs import Cost
from equipoise.monitor.diagnosis.measuring import Measured
from equipoise.monitor.diagnosis.regimes import BLOCKS, NAMES, OPPOSED, SCALE, SIZE, SPEED, Regime

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEEDS = (SIZE, OPPOSED, SPEED)
"""Regimes that balancing is for. Losses of unlike scale alone are none: what they do to the update is in its size."""

WIDTH = 110
INDENT = 14 * " "
"""Of the text's lines."""

SHOWN = 4
"""Of more tasks the text names the first and the last ones."""


@dataclass(frozen=True)
class Recommendation:
    """A method that fits.

    Attributes:
        method: its name, one of `list_methods()`.
        reason: why it fits.
        cost: measured here, relative to equal weights; None if it was not measured.
        failure: why a method could not be measured, if it failed.
    """

    method: str
    reason: str
    cost: Cost | None = None
    failure: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Whether tasks need balancing, and by what.

    `str()` gives it in words, the answer in its first line.

    Attributes:
        regimes: the answers to four questions: losses of unlike scale, gradients of unlike size, opposed directions,
            losses of unlike speed.
        recommended: the methods that fit, `ew` where nothing needs balancing.
        measured: the numbers that the answers rest on.
    """

    regimes: tuple[Regime, ...]
    recommended: tuple[Recommendation, ...]
    measured: Measured = field(repr=False)

    @property
    def shared(self) -> bool:
        """Whether any parameter is shared by two tasks; without, there is nothing to balance."""
        return self.measured.shared

    @property
    def found(self) -> tuple[str, ...]:
        """The names of the regimes that are surely there."""
        return tuple(regime.name for regime in self.regimes if regime.found and regime.sure)

    @property
    def needs_balancing(self) -> bool:
        """Whether a regime is surely there that balancing is for."""
        return self.shared and any(name in NEEDS for name in self.found)

    @property
    def unjudged(self) -> tuple[str, ...]:
        """The tasks with too few labels in the measured steps to be judged by their gradients."""
        again = self.measured.across.diagonal(dim1=1, dim2=2)
        counts = [(~seen.isnan()).sum(0).tolist() for seen in (self.measured.contributions, again)]
        return tuple(
            task
            for task, *found in zip(self.measured.tasks, *counts, strict=True)
            if self.shared and min(found) < BLOCKS
        )

    @property
    def answer(self) -> str:
        """The answer in one line."""
        if not self.shared:
            return "No parameter is shared by two tasks, so nothing here needs balancing: keep equal weights (ew)."
        if self.needs_balancing:
            methods = _listed([one.method for one in self.recommended], "or")
            regimes = [f"{NAMES[r.name]} ({_strength(r)})" for r in self.regimes if r.name in self.found]
            return f"Balancing may help here: {_listed(regimes, 'and')}. Try {methods}."
        perhaps = [NAMES[r.name] for r in self.regimes if r.name in NEEDS and r.found]
        if perhaps:
            return (
                f"Nothing here surely needs balancing: keep equal weights (ew). Perhaps {_listed(perhaps, 'and')}; "
                "more steps tell more."
            )
        doubtful = self.unjudged or any(r.name in NEEDS and not r.sure for r in self.regimes)
        far = f", as far as {len(self.measured.losses)} steps tell" if doubtful else ""
        nothing = f"Nothing here needs balancing{far}: keep equal weights (ew)"
        if SCALE in self.found:
            return f"{nothing}. The losses are of unlike scale, but what they do to the shared parameters is not."
        return f"{nothing}."

    def __str__(self) -> str:
        """The answer, the four questions, and the methods with their costs."""
        lines = [self.answer, ""]
        for regime in self.regimes:
            lines.append(f"  {_verdict(regime):<11} {NAMES[regime.name]}{self._after(regime)}")
            lines += textwrap.wrap(explanation(regime), WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)
        lines.append("")
        for one in self.recommended:
            lines += textwrap.wrap(
                f"{one.method}: {one.reason}{_cost(one)}.", WIDTH, initial_indent="  ", subsequent_indent="    "
            )
        steps, measured = len(self.measured.losses), len(self.measured.contributions)
        if self.unjudged:
            lines += ["", f"  Too few labels in so many steps to judge: {', '.join(self.unjudged)}."]
        lines += ["", f"{steps} steps with equal weights and {self.measured.optimizer}, {measured} of them measured."]
        return "\n".join(lines)

    def picture(self) -> Figure:
        """Draws the four answers: losses, shares of the update, cosines and speeds. Needs matplotlib.

        Returns:
            A matplotlib Figure: `figure.savefig("diagnosis.png")`.
        """
        from equipoise.monitor.diagnosis.picture import draw_diagnosis

        return draw_diagnosis(self)

    def _after(self, regime: Regime) -> str:
        return f" after {self.measured.optimizer}" if regime.name == SIZE else ""


def explanation(regime: Regime) -> str:
    """What was measured, in a sentence."""
    if math.isnan(regime.confidence):
        return "not measured: too few losses, or none that it can be told from"
    by = f"; {'over 99' if regime.confidence > 0.99 else int(100 * regime.confidence)} % sure" if regime.sure else ""
    if regime.name == OPPOSED:
        one, other = regime.pair
        seen = regime.evidence
        together = f"mean cosine {seen['cosine']:+.2f}, below 0 in {seen['share below 0']:.0%} of steps"
        return (
            f"{one} and {other}: {'seldom in one batch' if math.isnan(seen['cosine']) else together}; "
            f"with itself on another batch {one} has {seen['first with itself']:+.2f}, below 0 in "
            f"{seen['first with itself, share below 0']:.0%}, and {other} {seen['second with itself']:+.2f}, in "
            f"{seen['second with itself, share below 0']:.0%}; freed from that noise the two have "
            f"{_number(regime.strength, '+.2f')} (opposed from {regime.threshold:g}){by}"
        )
    write = {SCALE: "{:.3g}", SIZE: "{:.1%}", SPEED: "at {:.0%}"}[regime.name]
    return (
        f"{regime.pair[0]} to {regime.pair[1]} {_number(regime.strength, '.3g')} to 1 (from {regime.threshold:g}): "
        f"{_values(regime.evidence, write)}{by}"
    )


def _verdict(regime: Regime) -> str:
    if math.isnan(regime.confidence):
        return "unknown"
    return ("yes" if regime.found else "no") if regime.sure else ("perhaps" if regime.found else "probably no")


def _strength(regime: Regime) -> str:
    return f"{regime.strength:+.2f}" if regime.name == OPPOSED else f"{regime.strength:.3g} to 1"


def _number(value: float, form: str) -> str:
    return "unknown" if math.isnan(value) else format(value, form)


def _values(evidence: Mapping[str, float], write: str) -> str:
    known = sorted(((value, task) for task, value in evidence.items() if not math.isnan(value)), reverse=True)
    texts = [f"{task} {write.format(value)}" for value, task in known]
    if len(texts) > 2 * SHOWN:
        texts = [*texts[:SHOWN], "…", *texts[-SHOWN:]]
    return ", ".join(texts)


def _cost(one: Recommendation) -> str:
    if one.failure:
        return f"; its cost could not be measured ({one.failure})"
    if one.cost is None or one.cost.relative_time == 1:
        return ""
    return f"; {one.cost.relative_time:.2f} × the time and {one.cost.relative_memory:.2f} × the memory of equal weights"


def _listed(names: Sequence[str], last: str) -> str:
    """`a, b or c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"
