"""EMOTIC as the MAO paper has it: categories and dimensions of emotion, or each category a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from equipoise.bench.models import EmoticNetwork
from equipoise.bench.problems._base import Batch, Predictions, Task, Training
from equipoise.bench.problems._registry import ProblemError
from equipoise.bench.problems.data import Emotic, Reader
from equipoise.bench.problems.data._files import Transform
from equipoise.bench.problems.data._samples import write_emotic
from equipoise.bench.problems.data.emotic import CATEGORIES, DIMENSIONS
from equipoise.bench.problems.papers._base import PaperProblem
from equipoise.bench.problems.papers._tasks import AP, MEAN_AP, MEAN_F1, Dimensions, MultiLabel

PLACES = "resnet18_places365.pth.tar"
"""The weights that the authors of Places offer, if they lie in the data folder."""


class EmoticEmotions(PaperProblem):
    """Twenty-six categories (one task) and three dimensions of a person's emotion, by two ResNet-18 encoders.

    As the paper says: binary cross-entropy and L1 loss, 224×224, mirrored at random, batches of 52, 15 epochs, the
    learning rate a tenth after half of them, weight decay 5e-4; the learning rate that is best for all but MAO, which
    has its own. The encoder of the whole image starts from Places if the folder has `resnet18_places365.pth.tar` (from
    http://places2.csail.mit.edu), else, as that of the person, from ImageNet.

    Args:
        data, pretrained, smoke, on_damaged, loading: see `PaperProblem`.

    Source: Hervella et al., "Multi-Adaptive Optimization for multi-task learning with deep neural networks", Neural
    Networks 2024.
    """

    name = "emotic"
    description = "EMOTIC: categories and dimensions of people's emotions (MAO paper)"
    source = Emotic.source
    size = (224, 224)
    separate: ClassVar[bool] = False
    heads: ClassVar[dict[str, int]] = {"categories": len(CATEGORIES), "dimensions": len(DIMENSIONS)}
    tasks: Sequence[Task] = (MultiLabel("categories", len(CATEGORIES), [MEAN_AP, MEAN_F1]), Dimensions())

    @classmethod
    def write_samples(cls, folder: Path) -> None:
        """Writes twelve pictures of one or two people."""
        write_emotic(folder)

    def read(self, root: Path, split: str, transform: Transform | None) -> Reader:
        """Returns an official split."""
        return Emotic(root, split, self.separate, transform, self.on_damaged)

    def network(self) -> nn.Module:
        """Returns the two encoders with a head per task.

        Raises:
            ProblemError: the weights in the data folder cannot be read or do not fit.
        """
        places = self.root / PLACES if self.root is not None and self.pretrained else None
        found = places if places is not None and places.is_file() else None
        try:
            return EmoticNetwork(self.heads, "resnet18.tv_in1k", self.pretrained, context_weights=found)
        except ValueError as error:
            raise ProblemError(f"{self.name}: {error}") from error

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        """Runs the network on the whole images and the people cut out of them."""
        return model(torch.stack([batch["input"]["image"], batch["input"]["person"]], 1))

    def protocol(self) -> Training:
        """Returns 15 epochs of batches of 52."""
        return Training(
            epochs=15,
            batch_size=52,
            evaluation_batch_size=104,
            lr=1e-4,
            weight_decay=5e-4,
            schedule="tenth-after-half",
        )


class Emotic26(EmoticEmotions):
    """The twenty-six categories, a task each, otherwise as `EmoticEmotions`.

    Args:
        data, pretrained, smoke, on_damaged, loading: see `PaperProblem`.
    """

    name = "emotic-26"
    description = "EMOTIC: 26 categories of people's emotions, a task each (MAO paper)"
    separate = True
    tasks = tuple(MultiLabel(name.replace("/", " or "), 1, [AP], key=name) for name in CATEGORIES)
    heads: ClassVar[dict[str, int]] = {task.name: 1 for task in tasks}
