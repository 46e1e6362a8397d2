"""All metrics in a real process group: ranks with unequal shares, and one with nothing to add."""

import os
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torchmetrics import MetricCollection

pytest.importorskip("torchvision")

from equipoise.bench import metrics
from equipoise.bench.metrics.detection import COCODetection, VOCDetection


def collections() -> list[tuple[MetricCollection, tuple]]:
    """Metrics and the whole of their data: ten samples."""
    generator = torch.Generator().manual_seed(0)
    normals = torch.randn(10, 3, 4, 4, generator=generator)
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 40.0, 40.0]])
    truth = [{"boxes": boxes, "labels": torch.tensor([0, 1])} for _ in range(10)]
    found = [image | {"boxes": boxes + i / 2, "scores": torch.tensor([i / 10, 0.5])} for i, image in enumerate(truth)]
    labels = torch.randint(-1, 2, (10, 2), generator=generator)
    logits = torch.randn(10, 2, generator=generator)
    return [
        (MetricCollection([metrics.Segmentation(2)]), (logits[:, :, None], labels[:, :1])),
        (MetricCollection([metrics.DepthErrors(), metrics.RegressionErrors()]), (logits.abs(), logits.abs() * 1.1)),
        (MetricCollection([metrics.AngularErrors()]), (normals + 0.2, normals)),
        (MetricCollection([metrics.MeanAveragePrecision(2), metrics.MeanF1(2)]), (logits, labels)),
        (MetricCollection([metrics.Concordance(2)]), (logits, logits.abs())),
        (MetricCollection([metrics.MacroF1(2)]), (logits, labels[:, 0])),
        (MetricCollection([VOCDetection(2, "2007")]), (found, truth)),
        (MetricCollection([COCODetection()]), (found, truth)),
    ]


def run(rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=120))
    for share in (7, 10):  # unequal; all and nothing
        for collection, data in collections():
            alone = collection.clone()
            for metric in alone.values():
                metric._to_sync = False
            alone.update(*data)
            if rank == 0:
                collection.update(*(argument[:3] for argument in data))
                collection.update(*(argument[3:share] for argument in data))
            elif share < 10:
                collection.update(*(argument[share:] for argument in data))
            found, expected = collection.compute(), alone.compute()
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert found[name].item() == pytest.approx(value.item(), rel=1e-6), name
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_compute_what_one_process_computes() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(run, args=(port,), nprocs=2)
