"""Aff-Wild2 as the EMA paper has it: action units, expression, and valence and arousal."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from equipoise.bench.models import HardSharing
from equipoise.bench.problems._base import Training
from equipoise.bench.problems.data import AffWild2, Reader
from equipoise.bench.problems.data._files import Transform
from equipoise.bench.problems.data._samples import write_affwild2
from equipoise.bench.problems.data.affwild2 import ACTION_UNITS, EXPRESSIONS
from equipoise.bench.problems.papers._base import PaperProblem
from equipoise.bench.problems.papers._tasks import F1, Expression, MultiLabel, ValenceArousal


class AffWild2Affect(PaperProblem):
    """Twelve action units (one task), eight expressions, valence and arousal, by ResNet-50 with hard sharing.

    The paper gives network, β, tasks and measures. Chosen here: results on the official validation set, as the test
    set's annotations are not handed out, and a tenth of the training videos for selection; pretrained on ImageNet,
    112×112 (the size of the aligned faces), mirrored at random; cross-entropies, and one minus the concordance within
    the batch for valence and arousal; Adam with a learning rate of 1e-4, batches of 128, 3 epochs (frames of a video
    are much alike).

    Args:
        data, pretrained, smoke, on_damaged, loading: see `PaperProblem`.

    Source: Lakkapragada et al., "Mitigating Negative Transfer in Multi-Task Learning with Exponential Moving Average
    Loss Weighting Strategies", AAAI 2023.
    """

    name = "affwild2"
    description = "Aff-Wild2: action units, expression, valence and arousal of faces (EMA paper)"
    source = AffWild2.source
    size = (112, 112)
    held_out = 0.1
    test_split = "validation"
    tasks = (MultiLabel("action_units", len(ACTION_UNITS), [F1]), Expression(len(EXPRESSIONS)), ValenceArousal())

    @classmethod
    def write_samples(cls, folder: Path) -> None:
        """Writes the frames of four videos."""
        write_affwild2(folder)

    def read(self, root: Path, split: str, transform: Transform | None) -> Reader:
        """Returns an official split."""
        return AffWild2(root, split, transform, self.on_damaged)

    def network(self) -> nn.Module:
        """Returns ResNet-50 with a head per task."""
        heads = {"action_units": len(ACTION_UNITS), "expression": len(EXPRESSIONS), "valence_arousal": 2}
        return HardSharing(heads, "resnet50.tv_in1k", self.pretrained)

    def protocol(self) -> Training:
        """Returns 3 epochs of batches of 128."""
        return Training(epochs=3, batch_size=128, evaluation_batch_size=256, lr=1e-4)
