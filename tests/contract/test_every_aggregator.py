"""Every registered aggregator by itself: `equipoise.testing`'s checks on sampled Jacobians, and of what it promises."""

import pytest

from equipoise.registry import METHODS
from equipoise.testing import aggregator_checks

CHECKS = [
    pytest.param(check, id=f"{name}-{check}")
    for name, spec in METHODS.items()
    if spec.aggregator is not None
    for check in aggregator_checks(spec.aggregator)
]


@pytest.mark.parametrize("check", CHECKS)
def test_aggregator(check):
    check()
