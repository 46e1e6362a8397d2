"""The examples in the public docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import equipoise

MODULES = [
    module.name for module in pkgutil.walk_packages(equipoise.__path__, "equipoise.") if "__main__" not in module.name
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


def test_every_public_method_has_an_example():
    public = [getattr(equipoise, name) for name in equipoise.__all__]
    lacking = [one.__name__ for one in public if callable(one) and ">>>" not in (one.__doc__ or "")]
    assert lacking == ["Aggregator", "GramianAggregator", "Objective", "Weighting"]  # bases
