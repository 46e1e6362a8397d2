"""What the problems on tables share: files that ship inside packages, and the networks to choose from."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import nn

from equipoise.bench.models import CGC, PLE, CrossStitch, DSelectK, MMoE, SharedBottom
from equipoise.bench.models._mixtures import perceptron
from equipoise.bench.problems._base import Problem
from equipoise.bench.problems._registry import ProblemError, need_packages

Make = Callable[[Mapping[str, int], int, int], nn.Module]


def _on_a_layer(network: Callable[..., nn.Module]) -> Make:
    """The network on a shared dense layer."""
    return lambda heads, features, width: network(heads, perceptron(features, width), width, width=width)


def _shared_bottom(heads: Mapping[str, int], features: int, width: int) -> nn.Module:
    return SharedBottom(heads, perceptron(features, width, width), width)


def _cross_stitch(heads: Mapping[str, int], features: int, width: int) -> nn.Module:
    """Towers of two dense layers."""
    return CrossStitch(heads, lambda: [perceptron(features, width), perceptron(width, width)], (width, width))


NETWORKS: dict[str, Make] = {
    "shared-bottom": _shared_bottom,
    "mmoe": _on_a_layer(MMoE),
    "cgc": _on_a_layer(CGC),
    "ple": _on_a_layer(PLE),
    "dselect-k": _on_a_layer(DSelectK),
    "cross-stitch": _cross_stitch,
}
"""Option `model` → the network, from the heads, the number of features and the width of its layers."""


class TableProblem(Problem):
    """A table of features under "input" `[B, features]`, with a choice of networks.

    Args:
        seed: decides the split.
        model: a name in `NETWORKS`.

    Attributes:
        features: how many.
        heads: task → number of outputs.
        width: of the network's layers.

    Raises:
        ProblemError: there is no such network.
    """

    features: int
    heads: Mapping[str, int]
    width = 64

    def __init__(self, seed: int = 0, model: str = "shared-bottom") -> None:
        if model not in NETWORKS:
            raise ProblemError(f"{self.name} does not take the model {model!r}: take one of {', '.join(NETWORKS)}.")
        self.seed = seed
        self.network = model

    def model(self) -> nn.Module:
        """Returns the chosen network."""
        return NETWORKS[self.network](self.heads, self.features, self.width)


def shipped_file(problem: str, package: str, *parts: str) -> Path:
    """Returns where a file lies that ships inside a package of the extra `benchmark`; the package is not imported.

    Raises:
        ProblemError: the package is missing, or a version without the file is there.
    """
    need_packages(problem, "benchmark", package)
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent.joinpath(*parts)
    if not path.is_file():
        raise ProblemError(
            f"{problem} needs {'/'.join(parts)}, which this version of {package} lacks: "
            "pip install --upgrade 'equipoise[benchmark]'."
        )
    return path
