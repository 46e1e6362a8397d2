import math
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from equipoise.bench.experiment.chart import DARK, LIGHT, save
from equipoise.bench.experiment.ranking import draw_ranking, rank

# Demšar 2006, table 5: critical values of the two-tailed Nemenyi test at 0.05 and 0.10, for 2 to 10 methods.
NEMENYI = {
    0.05: (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164),
    0.10: (1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920),
}
# Demšar 2006, table 6: AUC of C4.5, with tuned m, with tuned cf, with both, on 14 data sets. The last but one ranks cf
# before both though both are printed as 0.975.
NAMES = ("C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf")
AUC = """
0.763 0.768 0.771 0.798
0.599 0.591 0.590 0.569
0.954 0.971 0.968 0.967
0.628 0.661 0.654 0.657
0.882 0.888 0.886 0.898
0.936 0.931 0.916 0.931
0.661 0.668 0.609 0.685
0.583 0.583 0.563 0.625
0.775 0.838 0.866 0.875
1.000 1.000 1.000 1.000
0.940 0.962 0.965 0.962
0.619 0.666 0.614 0.669
0.972 0.981 0.9751 0.975
0.957 0.978 0.946 0.970
"""


def scores(table, names=NAMES):
    return {f"set {row}": dict(zip(names, map(float, line), strict=True)) for row, line in enumerate(table)}


def test_the_example_of_the_paper():
    """Demšar's mean ranks, critical difference at 0.10, and which pairs differ: C4.5 from those with tuned m."""
    found = rank(scores([line.split() for line in AUC.strip().splitlines()]), level=0.10)
    assert found.ranks == pytest.approx({"C4.5+m+cf": 1.964, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5": 3.143}, abs=1e-3)
    assert found.problems == 14
    table = np.array([line.split() for line in AUC.strip().splitlines()], dtype=float)
    assert found.p_value == pytest.approx(stats.friedmanchisquare(*(-table).T).pvalue)
    assert found.critical_difference == pytest.approx(1.12, abs=0.005)
    assert found.cliques == (("C4.5+m+cf", "C4.5+m", "C4.5+cf"), ("C4.5+cf", "C4.5"))


@pytest.mark.parametrize("level", NEMENYI)
def test_critical_differences_are_those_of_the_table(level):
    for count, quantile in enumerate(NEMENYI[level], start=2):
        names = [str(number) for number in range(count)]
        found = rank(scores(np.random.default_rng(0).random((9, count)), names), level)
        assert found.critical_difference == pytest.approx(quantile * math.sqrt(count * (count + 1) / 54), abs=2e-3)


def test_a_method_that_failed_is_ranked_last():
    table = {"a": {"ew": 1.0, "mao": math.nan, "uw": -5.0, "rlw": math.nan}}
    assert rank(table).ranks == {"ew": 1.0, "uw": 2.0, "mao": 3.5, "rlw": 3.5}


def test_methods_that_do_not_differ_are_one_group():
    generator = np.random.default_rng(1)
    found = rank(scores(generator.random((8, 4))))
    assert found.p_value > 0.05
    assert found.cliques == (tuple(found.ranks),)
    assert rank(scores(np.ones((3, 4)))).p_value == 1.0
    alone = rank(scores([[1, 2, 3, 4]]))
    assert math.isnan(alone.p_value)
    assert math.isnan(alone.critical_difference)
    assert alone.cliques == (tuple(alone.ranks),)


def test_of_equal_methods_few_are_told_apart():
    """Nemenyi's test after Friedman's: 400 rankings of five equal methods over ten problems."""
    generator = np.random.default_rng(2)
    names = tuple("abcde")
    false = sum(len(rank(scores(generator.random((10, 5)), names)).cliques) != 1 for _ in range(400))
    assert false <= stats.binom.ppf(0.999, 400, 0.05)


def test_what_cannot_be_ranked_is_said():
    with pytest.raises(ValueError, match="two has ew, the first one ew, mao"):
        rank({"one": {"ew": 1.0, "mao": 2.0}, "two": {"ew": 1.0}})
    with pytest.raises(ValueError, match="nothing to rank"):
        rank({})


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_the_picture_has_every_method_and_every_group(theme):
    found = rank(scores([line.split() for line in AUC.strip().splitlines()]), level=0.10)
    with theme.applied():
        figure = draw_ranking(found, theme)
        content = save(figure, "png")
    assert min(Image.open(BytesIO(content)).size) > 150
    [axes] = figure.axes
    texts = " ".join(text.get_text() for text in axes.texts)
    for name, place in found.ranks.items():
        assert f"{name}  {place:.1f}" in texts
    assert "critical difference 1.12" in texts
    assert sum(line.get_linewidth() == 3 for line in axes.lines) == 2
