import numpy as np
import pytest
import torch

pytest.importorskip("river")

from river import datasets
from shipped import SPLITS, assert_standardised, assert_trains, joined

from equipoise.bench.problems.yeast import LABELS, Yeast, split_genes


@pytest.fixture(scope="module")
def data():
    return Yeast().data()


@pytest.fixture(scope="module")
def genes():
    """Features and labels as river itself reads them."""
    features, labels = zip(*datasets.Yeast(), strict=True)
    return (
        np.array([list(gene.values()) for gene in features]),
        np.array([list(gene.values()) for gene in labels], dtype=int),
    )


def test_every_gene_stands_in_one_split(genes):
    parts = split_genes(genes[1], 0)
    assert [len(parts[split]) for split in SPLITS] == [1450, 483, 484]
    assert sorted(np.concatenate(list(parts.values()))) == list(range(2417))


def test_no_two_genes_are_the_same_so_that_none_stands_in_two_splits(data):
    assert len(torch.unique(joined(data, "input"), dim=0)) == 2417


def test_labels_and_features_are_those_that_river_reads(data, genes):
    features, labels = genes
    parts = split_genes(labels, 0)
    training = features[parts["train"]]
    for split in SPLITS:
        tensors, rows = getattr(data, split).tensors, parts[split]
        expected = (features[rows] - training.mean(0)) / training.std(0)
        np.testing.assert_allclose(tensors["input"], expected, rtol=1e-4, atol=1e-5)
        for place, label in enumerate(LABELS):
            assert tensors[label].tolist() == labels[rows, place].tolist()


def test_every_split_has_some_of_the_rarest_label(data):
    shares = torch.tensor([getattr(data, split).tensors["Class14"].float().mean() for split in SPLITS])
    torch.testing.assert_close(shares, torch.full((3,), 34 / 2417), rtol=0.1, atol=0)
    quick = Yeast().data(quick=True)
    assert [len(split) for split in (quick.train, quick.validation, quick.test)] == [363, 483, 484]
    assert all(quick.train.tensors[label].any() for label in LABELS)


def test_features_are_standardised_by_the_training_split(data):
    assert_standardised(data, atol=0.3)


def test_trains(data):
    assert_trains(Yeast(), data)
