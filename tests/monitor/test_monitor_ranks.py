"""On several ranks: the numbers of one process on all samples, in one file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from monitor.ranks import NAMES, PRESENT, train
from monitor.test_attaching import assert_close

from equipoise.monitor import read_monitor

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What two ranks have recorded, and the folder they wrote to."""
    folder = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node=2",
            HERE / "ranks.py",
            folder,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)], folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "ddp"])
def test_ranks_record_what_one_process_does(launched, name, wrapped, tmp_path):
    everyone, folder = launched
    layers, expected = train(name, 1, 0, False, tmp_path)
    assert [record["step"] for record in expected] == list(range(0, len(PRESENT), 2))
    for found_layers, found in (ranks[f"{name} {wrapped}"] for ranks in everyone):
        assert found_layers == layers
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, tolerance=1e-8)
    assert read_monitor(folder / f"{name}-2-{wrapped}.jsonl").records == everyone[0][f"{name} {wrapped}"][1]
