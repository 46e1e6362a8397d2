"""AffectNet as the EMA paper has it: expression, and valence and arousal."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from equipoise.bench.models import HardSharing
from equipoise.bench.problems._base import Training
from equipoise.bench.problems.data import AffectNet, Reader
from equipoise.bench.problems.data._files import Transform
from equipoise.bench.problems.data._samples import write_affectnet
from equipoise.bench.problems.data.affectnet import EXPRESSIONS
from equipoise.bench.problems.papers._base import PaperProblem
from equipoise.bench.problems.papers._tasks import Expression, ValenceArousal


class AffectNetAffect(PaperProblem):
    """Eight expressions, valence and arousal, by ResNet-50 with hard sharing.

    The paper gives network, β, tasks and measures. Chosen here: results on the official validation set, as there is no
    test set, and a twentieth of the training images for selection; pretrained on ImageNet, 224×224, mirrored at random;
    cross-entropy, and one minus the concordance within the batch for valence and arousal; Adam with a learning rate of
    1e-4, batches of 128, 5 epochs.

    Args:
        data, pretrained, smoke, on_damaged, loading: see `PaperProblem`.

    Source: Lakkapragada et al., "Mitigating Negative Transfer in Multi-Task Learning with Exponential Moving Average
    Loss Weighting Strategies", AAAI 2023.
    """

    name = "affectnet"
    description = "AffectNet: expression, valence and arousal of faces (EMA paper)"
    source = AffectNet.source
    size = (224, 224)
    held_out = 0.05
    test_split = "validation"
    tasks = (Expression(len(EXPRESSIONS)), ValenceArousal())

    @classmethod
    def write_samples(cls, folder: Path) -> None:
        """Writes twelve pictures, in the form of tables."""
        write_affectnet(folder)

    def read(self, root: Path, split: str, transform: Transform | None) -> Reader:
        """Returns an official split."""
        return AffectNet(root, split, transform, self.on_damaged)

    def network(self) -> nn.Module:
        """Returns ResNet-50 with a head per task."""
        return HardSharing({"expression": len(EXPRESSIONS), "valence_arousal": 2}, "resnet50.tv_in1k", self.pretrained)

    def protocol(self) -> Training:
        """Returns 5 epochs of batches of 128."""
        return Training(epochs=5, batch_size=128, evaluation_batch_size=256, lr=1e-4)
