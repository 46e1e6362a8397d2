"""CelebA as the EMA paper has it: forty attributes, a task each."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from equipoise.bench.models import HardSharing
from equipoise.bench.problems._base import Training
from equipoise.bench.problems.data import CelebA, Reader
from equipoise.bench.problems.data._files import Transform
from equipoise.bench.problems.data._samples import write_celeba
from equipoise.bench.problems.data.celeba import ATTRIBUTES
from equipoise.bench.problems.papers._base import PaperProblem
from equipoise.bench.problems.papers._tasks import F1, MultiLabel


class CelebAAttributes(PaperProblem):
    """Forty yes/no attributes of faces, a task each, by ResNet-18 and a dense layer; the official splits.

    The paper gives network, β and measure. Chosen here: pretrained on ImageNet, 128×128 ("due to computational
    constraints", the paper says of its network), mirrored at random, Adam with a learning rate of 1e-4, batches of 128,
    10 epochs.

    Args:
        data, pretrained, smoke, on_damaged, loading: see `PaperProblem`.

    Source: Lakkapragada et al., "Mitigating Negative Transfer in Multi-Task Learning with Exponential Moving Average
    Loss Weighting Strategies", AAAI 2023.
    """

    name = "celeba"
    description = "CelebA: forty attributes of faces, a task each (EMA paper)"
    source = CelebA.source
    size = (128, 128)
    tasks = tuple(MultiLabel(name, 1, [F1]) for name in ATTRIBUTES)

    @classmethod
    def write_samples(cls, folder: Path) -> None:
        """Writes eight pictures."""
        write_celeba(folder, images=(4, 2, 2))

    def read(self, root: Path, split: str, transform: Transform | None) -> Reader:
        """Returns an official split."""
        return CelebA(root, split, transform, self.on_damaged)

    def network(self) -> nn.Module:
        """Returns ResNet-18 with a dense layer of 40."""
        return HardSharing({task.name: 1 for task in self.tasks}, "resnet18.tv_in1k", self.pretrained)

    def protocol(self) -> Training:
        """Returns 10 epochs of batches of 128."""
        return Training(epochs=10, batch_size=128, evaluation_batch_size=256, lr=1e-4)
