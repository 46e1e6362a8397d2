import math

import pytest
from scipy import stats

from equipoise.bench.experiment.sequential import level, looks
from equipoise.bench.experiment.statistics import LEVEL


def test_looks_grow_by_half_and_end_where_they_are_planned_to():
    assert looks(5, 20) == (5, 7, 10, 14, 20)
    assert looks(3, 3) == (3,)
    assert looks(2, 3) == (2, 3)
    for first in range(1, 9):
        for last in range(first, 40):
            planned = looks(first, last)
            assert planned[0] == first
            assert planned[-1] == last
            assert list(planned) == sorted(set(planned))
    with pytest.raises(ValueError, match="found 5 and 4"):
        looks(5, 4)


def test_levels_are_what_is_newly_spent():
    """Lan and DeMets' function after O'Brien and Fleming, written out; the levels add up to 5 %."""
    planned = looks(5, 20)
    levels = [level(seeds, planned) for seeds in planned]
    assert sum(levels) == pytest.approx(LEVEL)
    assert levels == sorted(levels)  # little at first
    z = stats.norm.ppf(1 - LEVEL / 2)
    for index, seeds in enumerate(planned):
        spent = 2 * stats.norm.sf(z / math.sqrt(seeds / 20))
        assert sum(levels[: index + 1]) == pytest.approx(spent)
    assert level(7, (7,)) == pytest.approx(LEVEL)
    with pytest.raises(ValueError, match="A look at 6 seeds was not planned; planned are 5, 7, 10, 14, 20"):
        level(6, planned)
