"""The examples run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from equipoise.bench.problems import load_problem

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_tabular_compares(tmp_path):
    arguments = ["compare", f"{EXAMPLES / 'tabular.py'}:problem", "--quick", "--seeds", "3", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "equipoise", *arguments, "--methods", "ew,ema,amtl,pcgrad,mao"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert len(runs) == 3 * (3 + 5)
    assert {record["status"] for record in runs} == {"finished"}


def test_tabular_has_missing_labels_in_training_only():
    data = load_problem(f"{EXAMPLES / 'tabular.py'}:problem").data()
    assert [len(split) for split in (data.train, data.validation, data.test)] == [98, 40, 40]
    missing = [int(split.tensors["alcohol"].isnan().sum()) for split in (data.train, data.validation, data.test)]
    assert missing == [20, 0, 0]
    inputs = torch.cat([split.tensors["input"] for split in (data.train, data.validation, data.test)])
    assert len(inputs.unique(dim=0)) == pytest.approx(178, abs=1)  # no wine twice, but for one duplicate in the source
