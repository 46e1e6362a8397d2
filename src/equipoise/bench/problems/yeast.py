"""Which of fourteen functions a yeast gene has. Real measurements that ship inside river, no download."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from equipoise.bench.problems._base import Splits, Tensors, Training
from equipoise.bench.problems._splitting import split_by_class
from equipoise.bench.problems._tables import TableProblem, shipped_file
from equipoise.bench.problems._tasks import BinaryClassification

FEATURES = 103
LABELS = tuple(f"Class{number}" for number in range(1, 15))


class Yeast(TableProblem):
    """Genes of baker's yeast: 103 numbers from micro-arrays and phylogeny, and which of 14 functions each has.

    2,417 genes with one function or more; three in four have the commonest, 34 genes the rarest. Every function is a
    task of its own. The genes are split 60, 20 and 20 %, with equal shares of each gene's rarest function, so that
    every split has some of all. Features are standardised by the training genes.

    Data: `river/datasets/yeast.csv.gz` (river 0.26 or later, BSD 3-clause), which is the file of the MULAN library;
    neither states a licence for the data themselves. Source: Elisseeff and Weston, "A Kernel Method for Multi-Labelled
    Classification", NIPS 2001.

    Args:
        seed: decides the split.
        model: the network, one of `equipoise.bench.problems._tables.NETWORKS`.
    """

    name = "yeast"
    description = "which of fourteen functions a yeast gene has, from its expression and phylogeny"
    features = FEATURES
    heads = dict.fromkeys(LABELS, 1)
    tasks = tuple(BinaryClassification(label) for label in LABELS)

    def data(self, quick: bool = False) -> Splits:
        """Returns 1,450, 483 and 484 genes; a quarter of those for training if `quick`.

        Raises:
            ProblemError: river is missing.
        """
        table = pd.read_csv(shipped_file(self.name, "river", "datasets", "yeast.csv.gz"))
        labels = table[list(LABELS)].to_numpy()
        numbers = table.drop(columns=list(LABELS)).to_numpy()
        parts = split_genes(labels, self.seed)
        mean, deviation = numbers[parts["train"]].mean(0), numbers[parts["train"]].std(0)
        inputs = torch.tensor((numbers - mean) / deviation, dtype=torch.float32)
        answers = dict(zip(LABELS, torch.tensor(labels).T, strict=True))
        if quick:
            parts["train"] = parts["train"][::4]
        return Splits(
            **{
                split: Tensors(input=inputs[rows], **{label: answer[rows] for label, answer in answers.items()})
                for split, rows in parts.items()
            }
        )

    def training(self, quick: bool = False) -> Training:
        """Returns 30 epochs at batch size 64 and learning rate 1e-3; 3 epochs if `quick`."""
        return Training(epochs=3 if quick else 30, batch_size=64, evaluation_batch_size=500, schedule="cosine")


def split_genes(labels: NDArray[np.int64], seed: int) -> dict[str, NDArray[np.int64]]:
    """Returns the genes of each split, with equal shares of each gene's rarest function."""
    rarest = np.where(labels == 1, labels.sum(0), len(labels)).argmin(1)
    return split_by_class(rarest, seed)
