from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

from rdkit import Chem, RDConfig, rdBase
from rdkit.Chem import Crippen, Descriptors, Lipinski, rdMolDescriptors
from shipped import SPLITS, assert_trains, joined

from equipoise.bench.problems import molecules
from equipoise.bench.problems.molecules import PROPERTIES, Molecules

RECOMPUTED = {
    "weight": Descriptors.ExactMolWt,
    "logP": Crippen.MolLogP,
    "donors": Lipinski.NumHDonors,
    "acceptors": Lipinski.NumHAcceptors,
    "rotatable bonds": Lipinski.NumRotatableBonds,
    "rings": lambda molecule: len(Chem.GetSymmSSSR(molecule)),
    "aromatic rings": Lipinski.NumAromaticRings,
    "sp3 share": Lipinski.FractionCSP3,
    "flexibility": rdMolDescriptors.CalcPhi,
    "surface": rdMolDescriptors.CalcLabuteASA,
}
"""Most by another door of RDKit's; the polar surface is checked against Daylight's."""


@pytest.fixture(scope="module")
def described():
    return molecules._describe()


@pytest.fixture
def data(described, monkeypatch):
    monkeypatch.setattr(molecules, "_describe", lambda: described)
    return Molecules().data()


@pytest.fixture(scope="module")
def daylight():
    """Molecules with up to forty heavy atoms and the polar surface that Daylight's tools gave, one for each SMILES."""
    lines = (Path(RDConfig.RDDataDir) / "NCI" / "first_5k.tpsa.csv").read_text().splitlines()[1:]
    found = {}
    with rdBase.BlockLogs():
        for line in lines:
            smiles, _, surface = line.rpartition(",")
            molecule = Chem.MolFromSmiles(smiles)
            if molecule is not None and molecule.GetNumHeavyAtoms() <= 40:
                found[Chem.MolToSmiles(molecule)] = (molecule, float(surface))
    return list(found.values())


def test_properties_are_those_that_others_compute(described, daylight):
    _, properties, _ = described
    assert properties.shape == (len(daylight), 11) == (4812, 11)
    assert list(PROPERTIES)[2] == "polar surface"
    surfaces = np.array([surface for _, surface in daylight])
    agree = np.abs(properties[:, 2] - surfaces) < 0.02
    assert agree.mean() > 0.97  # the two read some groups differently
    for place, name in enumerate(PROPERTIES):
        if name in RECOMPUTED:
            some = [RECOMPUTED[name](molecule) for molecule, _ in daylight[::97]]
            np.testing.assert_allclose(properties[::97, place], some, rtol=1e-9, atol=1e-9)


def test_fragments_are_those_of_the_molecule(described, daylight):
    fragments = described[0][::97]
    for counts, (molecule, _) in zip(fragments, daylight[::97], strict=True):
        unfolded = rdMolDescriptors.GetMorganFingerprint(molecule, 2).GetNonzeroElements()
        folded = np.zeros(1024, int)
        for key, count in unfolded.items():
            folded[key % 1024] += count
        assert (counts == folded).all()


def test_no_scaffold_stands_in_two_splits(data, described):
    """Seen in the data: each molecule is recognised by its fragments and labels."""
    fragments, _, scaffolds = described
    training = data.train.tensors
    keys = {}
    for row, scaffold in zip(np.log1p(fragments.astype(np.float32)), scaffolds, strict=True):
        keys.setdefault(row.round(4).tobytes(), set()).add(scaffold)
    seen = [set(), set(), set()]
    for place, split in enumerate(SPLITS):
        for row in getattr(data, split).tensors["input"].numpy():
            own = keys[row.round(4).tobytes()]
            if len(own) == 1:  # some fragments fit several molecules
                seen[place] |= own
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]
    assert len(joined(data, "input")) == len(fragments)
    mean = np.mean([training[name].mean() for name in PROPERTIES])
    assert abs(mean) < 1e-5
    assert [round(float(training[name].std()), 2) for name in PROPERTIES] == [1.0] * 11


def test_labels_are_the_properties_in_deviations_of_the_training_split(data, described):
    _, properties, scaffolds = described
    parts = molecules.split_by_group(scaffolds, 0)
    training = properties[parts["train"]]
    for split in SPLITS:
        labels = torch.stack([getattr(data, split).tensors[name] for name in PROPERTIES], 1).numpy()
        np.testing.assert_allclose(
            labels * training.std(0) + training.mean(0), properties[parts[split]], rtol=1e-4, atol=1e-3
        )


def test_trains(data):
    assert_trains(Molecules(), data)
