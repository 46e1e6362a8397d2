"""What can be computed of a molecule, told from its fragments. Real molecules that ship inside RDKit, no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from equipoise.bench.problems._base import Splits, Tensors, Training
from equipoise.bench.problems._registry import need_packages
from equipoise.bench.problems._splitting import split_by_group
from equipoise.bench.problems._tables import TableProblem
from equipoise.bench.problems._tasks import Regression

FRAGMENTS = 1024
RADIUS = 2
LARGEST = 40
"""Heavy atoms; the hundred molecules with more lie up to seventeen deviations off, and would be all that counts."""

PROPERTIES = {
    "weight": "exactmw",
    "logP": "CrippenClogP",
    "polar surface": "tpsa",
    "surface": "labuteASA",
    "donors": "NumHBD",
    "acceptors": "NumHBA",
    "rotatable bonds": "NumRotatableBonds",
    "rings": "NumRings",
    "aromatic rings": "NumAromaticRings",
    "sp3 share": "FractionCSP3",
    "flexibility": "Phi",
}
"""Task → RDKit's name of the property."""


class Molecules(TableProblem):
    """Molecules of the National Cancer Institute's collection, and eleven properties that RDKit computes for each.

    4,812 different molecules of up to 40 heavy atoms. The input is a Morgan fingerprint: how often each fragment up to
    two bonds around an atom occurs, folded to 1,024 numbers `log(1 + count)`. Weight, logP, polar and whole surface,
    donors and acceptors of hydrogen bonds, rotatable bonds, rings, aromatic rings, the share of sp³ carbons and Kier's
    flexibility are tasks of like difficulty and scale: a squared error each, in deviations of the training molecules.
    As in QM9, whose eleven properties are the field's usual test, the tasks want much the same features.

    Duplicates are one molecule, by canonical SMILES. The split is by scaffold (Bemis and Murcko), 60, 20 and 20 % of
    them: molecules of one ring system stay together, and one without a ring stands alone.

    Data: `NCI/first_5K.smi` in RDKit's data folder (BSD 3-clause, which states no licence for the data themselves; the
    NCI publishes its open database for any use). RDKit 2024.03 or later.

    Args:
        seed: decides the split.
        model: the network, one of `equipoise.bench.problems._tables.NETWORKS`.
    """

    name = "molecules"
    description = "eleven properties of a molecule from its fragments, on molecules with other scaffolds"
    features = FRAGMENTS
    heads = dict.fromkeys(PROPERTIES, 1)
    width = 256
    tasks = tuple(Regression(name) for name in PROPERTIES)

    def data(self, quick: bool = False) -> Splits:
        """Returns the molecules of each split; a quarter of those for training if `quick`. Takes some seconds.

        Raises:
            ProblemError: RDKit is missing.
        """
        need_packages(self.name, "benchmark", "rdkit")
        fragments, properties, scaffolds = _describe()
        parts = split_by_group(scaffolds, self.seed)
        mean, deviation = properties[parts["train"]].mean(0), properties[parts["train"]].std(0)
        if quick:
            parts["train"] = parts["train"][::4]
        inputs = torch.from_numpy(fragments).float().log1p()
        labels = torch.tensor((properties - mean) / deviation, dtype=torch.float32)
        return Splits(
            **{
                split: Tensors(input=inputs[rows], **dict(zip(PROPERTIES, labels[rows].T, strict=True)))
                for split, rows in parts.items()
            }
        )

    def training(self, quick: bool = False) -> Training:
        """Returns 30 epochs at batch size 64 and learning rate 1e-3; 3 epochs if `quick`."""
        return Training(epochs=3 if quick else 30, batch_size=64, evaluation_batch_size=1000, schedule="cosine")


def _describe() -> tuple[NDArray[np.int64], NDArray[np.float64], list[str]]:
    """Returns fragments `[N, 1024]`, properties `[N, 11]` and scaffolds of the molecules."""
    from rdkit import Chem, RDConfig, rdBase
    from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
    from rdkit.Chem.rdMolDescriptors import Properties
    from rdkit.Chem.Scaffolds.MurckoScaffold import GetScaffoldForMol

    lines = (Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi").read_text(encoding="utf-8").splitlines()
    with rdBase.BlockLogs():  # eight cannot be read
        molecules = [Chem.MolFromSmiles(line.partition("\t")[0]) for line in lines]
    different = {
        Chem.MolToSmiles(molecule): molecule
        for molecule in molecules
        if molecule is not None and molecule.GetNumHeavyAtoms() <= LARGEST
    }
    generator, properties = GetMorganGenerator(radius=RADIUS, fpSize=FRAGMENTS), Properties(list(PROPERTIES.values()))
    fragments, values, scaffolds = [], [], []
    for smiles, molecule in different.items():
        fragments.append(generator.GetCountFingerprintAsNumPy(molecule).astype(np.int64))
        values.append(list(properties.ComputeProperties(molecule)))
        scaffolds.append(Chem.MolToSmiles(GetScaffoldForMol(molecule)) or smiles)
    return np.stack(fragments), np.array(values), scaffolds
