"""What is measured together: cases, each a model, a number of tasks and the names of steps (see `steps.make_step`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peers import LIBMTL, TORCHJD

from equipoise.registry import METHODS

LOSS_BASED = [name for name, spec in METHODS.items() if spec.passes == "1"]
GRADIENT_BASED = [name for name, spec in METHODS.items() if spec.passes == "K"]

ON_GPU = ("imtl-g", "pcgrad", "cagrad", "mgda", "nash-mtl", "mao")
"""The methods that are compared with TorchJD on a GPU."""

GPU_MODELS = ("mlp", "resnet18, 64 images", "transformer 8×512")
GPU_TASKS = (3, 26, 40)


@dataclass(frozen=True)
class Case:
    """What is measured together.

    Attributes:
        model, tasks: the workload.
        names: of the steps, beside EW; what makes one backward pass and what makes K take their turns apart.
        rounds: turns that each step takes.
    """

    model: str
    tasks: int
    names: Sequence[str]
    rounds: int

    @property
    def name(self) -> str:
        """As it stands over the table."""
        return f"{self.model}, K={self.tasks}"


def ours(methods: Iterable[str], ways: Sequence[str] = ()) -> list[str]:
    """Ours as the way is chosen, and in these ways."""
    return [f"equipoise {name}{way}" for name in methods for way in ("", *(f", {way}" for way in ways))]


def torchjd(methods: Iterable[str], ways: Sequence[str] = ("one by one", "vmap")) -> list[str]:
    """TorchJD's, for the methods that it has."""
    return [f"TorchJD {name}, {way}" for name in methods if name in TORCHJD for way in ways]


def libmtl(methods: Iterable[str]) -> list[str]:
    """LibMTL's, for the methods that it has."""
    return [f"LibMTL {name}" for name in methods if name in LIBMTL]


def cpu_plan() -> list[Case]:
    """Every method on the MLP with K = 3 and 40 and on ResNet-18 with K = 3, elsewhere what a target is about.

    Gramian aggregators differ with K = 26 by their weights alone, which are measured by themselves. On ResNet-18 the
    tasks that go at once gain nothing, and are tried on 8 images alone.
    """
    few, every, floors = ("ema", "imtl-g", "pcgrad", "mao"), LOSS_BASED + GRADIENT_BASED, ["floor", "floor, batched"]
    batched = ours(["imtl-g"], ["batched", "layers"])[1:] + ours(["mao"], ["batched"])[1:]
    three = torchjd(["imtl-g"], ["one by one", "vmap", "autogram"])
    quick_nash = [name for name in every if name != "nash-mtl"]  # with K = 40 TorchJD's takes 2 s a step
    any_tasks = [name for name in every if name != "cagrad"]  # LibMTL's is for three
    layers = ours(["imtl-g"], ["one by one", "batched", "layers"])
    return [
        Case(
            "mlp", 3, [*floors, "task gradients", *ours(every), *batched, *torchjd(every), three[2], *libmtl(every)], 5
        ),
        *(Case("mlp", tasks, [*floors, *ours(few), *three, "LibMTL pcgrad"], 3) for tasks in (10, 26)),
        Case("mlp", 40, [*floors, *ours(every), *batched, *torchjd(quick_nash), three[2], *libmtl(any_tasks)], 3),
        Case("mlp 8×512", 26, [*floors, *layers, *three], 3),
        Case("transformer", 3, [*floors, *ours(few), *batched, *three, "LibMTL pcgrad"], 3),
        Case("transformer", 26, [*floors, *ours(few), *batched[:2], *three], 2),
        Case("convolutions", 26, [*ours(["imtl-g"], ["one by one", "layers"]), three[0]], 1),
        Case("resnet18, 8 images", 26, ["floor", *ours(["imtl-g"], ["one by one", "batched"]), three[0]], 2),
        Case(
            "resnet18", 3, ["floor", "task gradients", *ours(every), *torchjd(every, ["one by one"]), *libmtl(every)], 2
        ),
        Case(
            "resnet18",
            26,
            [
                *("floor", "task gradients", "LibMTL pcgrad"),
                *ours(["ema", "imtl-g", "pcgrad", "nash-mtl", "mao"]),
                *torchjd(["imtl-g", "pcgrad"], ["one by one"]),
            ],
            2,
        ),
    ]


def gpu_plan() -> list[Case]:
    """Three models with K = 3, 26 and 40: what launches bound, and what the device is busy with."""
    cases = []
    for model in GPU_MODELS:
        for tasks in GPU_TASKS:
            peers = [name for name in ON_GPU if name != "nash-mtl" or tasks < 40]  # TorchJD's solver takes 2 s
            losses = LOSS_BASED if model == "mlp" and tasks != 26 else ["ema"]
            names = [
                *("floor", "floor, batched"),
                *ours(losses),
                *ours(ON_GPU),
                *ours(["imtl-g"], ["one by one", "batched", "layers"])[1:],
                *torchjd(peers),
                *("TorchJD imtl-g, autogram", "TorchJD task gradients, one by one", "TorchJD task gradients, vmap"),
            ]
            cases.append(Case(model, tasks, names, 3))
    return cases


def quick_plan() -> list[Case]:
    """Two small tables."""
    few = ("ema", "imtl-g", "pcgrad", "mao")
    rest = [*torchjd(["imtl-g", "pcgrad"]), *libmtl(few)]
    return [Case(model, 3, ["floor", "task gradients", *ours(few), *rest], 3) for model in ("mlp", "resnet18")]
