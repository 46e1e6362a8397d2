import math

import pytest

from equipoise.bench.metrics import overall_mean, overall_sum


def test_sums_are_those_of_the_papers_tables() -> None:
    assert overall_sum({"AU": 0.590, "expression": 0.080, "VA": 0.133}) == pytest.approx(0.803)
    assert overall_sum({"expression": 0.427, "VA": 0.471}) == pytest.approx(0.898)


def test_mean() -> None:
    assert overall_mean({"segmentation": 0.4453, "depth": 0.8087, "normals": 0.4572}) == pytest.approx(0.5704, abs=1e-5)


@pytest.mark.parametrize("score", [overall_sum, overall_mean])
def test_a_task_without_a_number_shows(score) -> None:
    assert math.isnan(score({"a": 1.0, "b": math.nan}))
    with pytest.raises(ValueError, match="values is empty"):
        score({})
