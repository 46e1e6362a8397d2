"""The papers' experiments: what is trained by which methods, and which table the results stand beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from equipoise.bench.experiment.reproduce import paper_tables
from equipoise.bench.experiment.reproduce.paper_tables import PaperTable


@dataclass(frozen=True)
class Experiment:
    """An experiment of a paper. Network, losses, optimizer, schedule, batches and epochs are the problem's own.

    Attributes:
        name: what it is called on the command line.
        description: one line.
        problem: a name in `equipoise.bench.problems.PROBLEMS`.
        methods: those of the paper's table; the last is the paper's own.
        seeds: how many the paper has, or 3 if it does not say.
        table: the paper's results.
        options: of the problem.
        hyperparameters: method → name → value, where the paper names others than the methods' defaults.
        deviations: what is not as in the paper, or not in the paper, a sentence each.
    """

    name: str
    description: str
    problem: str
    methods: tuple[str, ...]
    seeds: int
    table: PaperTable
    options: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    deviations: tuple[str, ...] = ()


_EMA_METHODS = ("ew", "gradnorm", "uw", "dwa", "rema", "dwema", "ema")
_MAO_METHODS = ("ew", "uw", "dwa", "gradnorm", "mao")
_AMTL_METHODS = ("ew", "rlw", "dwa", "gls", "gradnorm", "pcgrad", "cagrad", "imtl-g", "dtp", "amtl-a", "amtl")

_EPOCH = "Each run is tested at the epoch that is best on validation; the papers do not say which epoch they report."
_EMA_SILENT = (
    "The paper does not give optimizer, learning rate, batch size, epochs, augmentation or image size: they are chosen "
    "here, see the problem's documentation.",
    "The paper prints single numbers; here they are means over the seeds.",
    "DWA compares the losses of single iterations, as this paper describes it; in its own paper it is those of epochs.",
)
_GRADNORM = "The paper does not name GradNorm's α: it is 1.5, with statistics on the last shared layer."
_PLACES = (
    "The encoder of the whole image is pretrained on ImageNet unless resnet18_places365.pth.tar lies in the data "
    "folder; the paper's is pretrained on Places."
)
_NYUD = (
    "A tenth of the 795 training pictures is held out to select the epoch; the paper trains on all of them.",
    "The paper's normals were derived from depth by Eigen and Fergus; NYUD_MT's are taken as they are, and with the "
    "authors' own file they are estimated by planes fitted to the depth.",
    "Predictions are measured at 480×640, to which NYUD_MT's pictures and labels are resized.",
    _GRADNORM,
    _EPOCH,
)
_POTENTIALS = {"segmentation": 0.4453, "depth": 0.8087, "normals": 0.4572}
"""The single-task accuracies in the authors' configuration, which their loss was given."""


def _ema(name: str, what: str, table: PaperTable, beta: float, *deviations: str) -> Experiment:
    """The paper describes DWA by the ratio of the losses at the current and the past iteration, not of epochs."""
    return Experiment(
        name=name,
        description=f"{what} (EMA paper)",
        problem=name,
        methods=_EMA_METHODS,
        seeds=3,
        table=table,
        hyperparameters={"dwa": {"interval": 1}, **{method: {"beta": beta} for method in ("ema", "rema", "dwema")}},
        deviations=(*_EMA_SILENT, *deviations, _GRADNORM, _EPOCH),
    )


def _nyud(network: str, title: str, table: PaperTable, scratch: bool) -> Experiment:
    return Experiment(
        name=f"nyudv2-{network}{'-scratch' if scratch else ''}",
        description=f"NYUDv2 by {title}, {'from scratch' if scratch else 'pretrained'} (MAO paper)",
        problem=f"nyudv2-{network}",
        methods=_MAO_METHODS,
        seeds=5,
        table=table,
        options={"pretrained": False} if scratch else {},
        deviations=_NYUD,
    )


_ALL = (
    _ema("celeba", "CelebA, 40 attributes by ResNet-18", paper_tables.CELEBA, 0.2),
    _ema(
        "affwild2",
        "Aff-Wild2, action units, expression, valence and arousal by ResNet-50",
        paper_tables.AFFWILD2,
        0.1,
        "Results are on the official validation set: the test set's annotations are not handed out. A tenth of the "
        "training videos is held out to select the epoch.",
    ),
    _ema(
        "affectnet",
        "AffectNet, expression, valence and arousal by ResNet-50",
        paper_tables.AFFECTNET,
        0.1,
        "Results are on the official validation set: there is no test set. A twentieth of the training images is "
        "held out to select the epoch.",
    ),
    Experiment(
        name="emotic",
        description="EMOTIC, 26 categories (one task) and 3 dimensions by two ResNet-18 (MAO paper)",
        problem="emotic",
        methods=_MAO_METHODS,
        seeds=5,
        table=paper_tables.EMOTIC,
        hyperparameters={"mao": {"lr": 1e-3}},
        deviations=(
            _PLACES,
            "The paper leaves number and width of the fully connected layers open: here it is one of 256.",
            _GRADNORM,
            _EPOCH,
        ),
    ),
    Experiment(
        name="emotic-26",
        description="EMOTIC, 26 categories, a task each, by two ResNet-18 (MAO paper)",
        problem="emotic-26",
        methods=_MAO_METHODS,
        seeds=5,
        table=paper_tables.EMOTIC_26,
        hyperparameters={"mao": {"lr": 1e-3}},
        deviations=(
            _PLACES,
            "The paper leaves number and width of the fully connected layers open, and does not name learning rates "
            "for 26 tasks: they are those of the two tasks.",
            _GRADNORM,
            _EPOCH,
        ),
    ),
    _nyud("mtan", "MTAN on ResNet-18", paper_tables.NYUDV2_MTAN, scratch=False),
    _nyud("mtan", "MTAN on ResNet-18", paper_tables.NYUDV2_MTAN_SCRATCH, scratch=True),
    _nyud("mtinet", "MTI-Net on HRNet-18", paper_tables.NYUDV2_MTINET, scratch=False),
    _nyud("mtinet", "MTI-Net on HRNet-18", paper_tables.NYUDV2_MTINET_SCRATCH, scratch=True),
    Experiment(
        name="nyuv2-amtl",
        description="NYUv2 by DeepLabV3 on a dilated ResNet-50 (AMTL paper)",
        problem="nyuv2-amtl",
        methods=_AMTL_METHODS,
        seeds=3,
        table=paper_tables.NYUV2_AMTL,
        hyperparameters={method: {"potentials": _POTENTIALS} for method in ("amtl-a", "amtl")},
        deviations=(
            "A tenth of the 795 training pictures is held out to select the epoch; the paper trains on all of them.",
            "Weight decay is decoupled. Augmentation follows the authors' code, with every picture rescaled instead of "
            "every second one, and a variation of brightness, contrast and saturation for its colour distortion.",
            "The paper does not say how many seeds it has; 3 are the default here.",
            _GRADNORM,
            _EPOCH,
        ),
    ),
    Experiment(
        name="voc-nyu",
        description="VOC and NYU depth, partly labelled, by EfficientDet on EfficientNetV2-S (AMTL paper)",
        problem="voc-nyu",
        methods=_AMTL_METHODS,
        seeds=3,
        table=paper_tables.VOC_NYU,
        deviations=(
            "The authors' neck and heads are their own variants; here they are EfficientDet's, with its losses.",
            "The authors warm up, lower the learning rate at plateaus and average the weights over time; here the rate "
            "follows a cosine.",
            "A twentieth of the training pictures (of depth: whole rooms) is held out to select the epoch; pictures "
            "of VOC 2007 that are in 2012's segmentation val set are not trained on.",
            "Potentials are the single-task runs' accuracies of the same seed.",
            "The paper does not say how many seeds it has; 3 are the default here.",
            _GRADNORM,
            _EPOCH,
        ),
    ),
)

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _ALL}
"""Name → experiment."""
