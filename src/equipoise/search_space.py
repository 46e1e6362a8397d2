"""What a hyperparameter may be when it is tuned: a `Range` of numbers or a `Choice`."""

from __future__ import annotations

from dataclasses import dataclass

from equipoise._checks import check_number


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Args:
        low: the least one.
        high: the greatest one.
        log: drawn evenly by their logarithm, as suits what is tried in decades.

    Raises:
        ValueError: `low` is not below `high`, one is not finite, or `log` is asked for with a `low` of 0 or less.

    Example:
        >>> from equipoise.search_space import Range
        >>> Range(0.01, 1.0, log=True)
        Range(low=0.01, high=1.0, log=True)
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        check_number("low", self.low, above=0 if self.log else None)
        check_number("high", self.high, above=self.low)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', by its logarithm' if self.log else ''}"


@dataclass(frozen=True)
class Choice:
    """One of some values.

    Args:
        values: at least two, of text, numbers or bools.

    Raises:
        ValueError: there are fewer than two.

    Example:
        >>> from equipoise.search_space import Choice
        >>> Choice(("none", "l2"))
        Choice(values=('none', 'l2'))
    """

    values: tuple[str | float | bool, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ValueError(f"A Choice is between at least two values, found {self.values!r}.")

    def __str__(self) -> str:
        return ", ".join(repr(value) for value in self.values)


SearchSpace = dict[str, Range | Choice]
"""Hyperparameter → what it may be."""
