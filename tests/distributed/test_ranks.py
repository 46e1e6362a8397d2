"""Several ranks, started by torchrun, give what one process gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checks import CHECKS
from launch import launch
from resuming import SAVED, load
from scenarios import STEPS, Trainer, difference

from equipoise.aggregators import RowStateAggregator
from equipoise.registry import METHODS

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow
BOUND = 1e-12
"""Relative, in float64: what remains is the order of additions."""


BRIEFLY = (
    *("stch", "uw-so", "go4align", "ldc-mtl", "cov", "softadapt", "relobralo", "pbi", "cosmos", "coba"),
    *("fairgrad", "aligned-mtl", "config", "upgrad", "dualproj", "gradvac", "pcd", "krum", "trimmed-mean"),
    *("moco", "db-mtl", "excess-mtl", "lr-annealing", "adatask", "mtadam"),
)


def cases():
    """Methods on every kind of model, and every kind of wrapper with a method of each family.

    What is in `BRIEFLY` goes the same ways as the others, and so has one case of each kind of gradients, whole and
    sharded.
    """
    settings = []
    for name in BRIEFLY:
        settings.append({"name": name, "kind": "ddp", "pattern": "missing"})
        if not keeps_rows(name):
            settings.append({"name": name, "kind": "fsdp-nested", "pattern": "some", "micro": 2, "optimizer": "sgd"})
    for name in [*(name for name in METHODS if name not in BRIEFLY), "single:b"]:
        for kind in ("plain", "ddp") if keeps_rows(name) else ("plain", "ddp", "fsdp-nested"):
            settings.append({"name": name, "kind": kind, "pattern": "missing"})
            settings.append({"name": name, "kind": kind, "pattern": "some", "micro": 2, "optimizer": "sgd"})
        settings.append({"name": name, "kind": "ddp", "pattern": "halves", "counts": False, "micro": 2})
    for name in ("ema", "uw", "pcgrad", "graddrop", "mao"):
        settings.append({"name": name, "kind": "plain", "pattern": "halves", "counts": False, "micro": 2})
        for kind in ("ddp-unused", "ddp-static", "ddp-nosync", "fsdp", "fsdp-kept", "fsdp-hybrid"):
            settings.append({"name": name, "kind": kind, "pattern": "missing", "micro": 2})
            settings.append({"name": name, "kind": kind, "pattern": "all", "counts": False})
    for kind in ("plain", "ddp"):
        settings.append({"name": "mao@sgd", "kind": kind, "pattern": "missing"})
    for kind in ("plain", "ddp", "fsdp-nested"):
        settings.append({"name": "mao", "kind": kind, "pattern": "missing", "streaming": True})
        settings.append({"name": "mao", "kind": kind, "pattern": "missing", "groups": 2})
        settings.append({"name": "mgda", "kind": kind, "pattern": "missing", "every": 2})
    for kind in ("plain", "ddp"):
        settings.append({"name": "coba", "kind": kind, "pattern": "missing", "warmup": 2, "history": 3})
        settings.append({"name": "mgda", "kind": kind, "pattern": "halves", "counts": False, "micro": 2, "every": 3})
    return {label(**case): case for case in settings}


def keeps_rows(name):
    """Whether a method's state is as large as the tasks' gradients, which is not for sharded parameters."""
    takes = METHODS[name].takes if name in METHODS else None
    return isinstance(takes, type) and issubclass(takes, RowStateAggregator)


def label(name, kind, pattern, **options):
    return " ".join([name, kind, pattern, *(f"{key}={value}" for key, value in options.items())])


def runs_on(case, size):
    """Two ranks run everything but the hybrid mesh, which needs four; four ranks share two cores, and run a part."""
    if case["kind"] == "fsdp-hybrid":
        return size == 4
    return size == 2 or case["pattern"] == ("missing" if case["kind"] in ("plain", "fsdp-nested") else "halves")


CASES = cases()
SIZES = (4, 2)


@pytest.fixture(scope="session")
def expected(tmp_path_factory):
    """What one process, without torch.distributed, makes of every case; in a file for the workers."""
    table = {}
    for key, case in CASES.items():
        settings = {name: value for name, value in case.items() if name not in ("kind", "pattern")}
        trainer = Trainer(**settings).train(range(STEPS), case["pattern"])
        sizes = [size for size in SIZES if runs_on(case, size)]
        table[key] = (case, sizes, [*trainer.parameters(), *trainer.states()])
    path = tmp_path_factory.mktemp("expected") / "cases.pt"
    torch.save(table, path)
    return path


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="session")
def found(expected, checkpoints, tmp_path_factory):
    """What 4 and then 2 ranks found; the 2 load the checkpoints of the 4."""
    results = tmp_path_factory.mktemp("results")
    for size in SIZES:
        launch(size, HERE / "worker.py", expected, results, checkpoints)
    return {size: [json.loads((results / f"{size}-{rank}.json").read_text()) for rank in range(size)] for size in SIZES}


@pytest.mark.parametrize(("case", "size"), [(c, s) for c, case in CASES.items() for s in SIZES if runs_on(case, s)])
def test_ranks_train_as_one_process_does(found, case, size):
    assert found[size][0][case] < BOUND


@pytest.mark.parametrize(("name", "size"), [(n, s) for n, check in CHECKS.items() for s in sorted(check.sizes)])
def test_check_held_on_every_rank(found, name, size):
    assert all(rank[name] == "held" for rank in found[size])


@pytest.mark.usefixtures("found")
@pytest.mark.parametrize("saved", ["fsdp-nested", "ddp"])
@pytest.mark.parametrize("name", SAVED)
def test_a_distributed_checkpoint_goes_on_in_one_process(checkpoints, name, saved):
    trainer = Trainer(name)
    load(trainer, checkpoints / f"{name}-{saved}")
    trainer.train(range(2, STEPS), "missing")
    one = Trainer(name).train(range(STEPS), "missing")
    assert difference([*trainer.parameters(), *trainer.states()], [*one.parameters(), *one.states()]) < BOUND
