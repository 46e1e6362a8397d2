"""The example runs, and shows what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from equipoise.monitor import read_monitor

EXAMPLE = Path(__file__).parents[2] / "examples" / "monitoring.py"


@pytest.mark.slow
def test_monitoring(tmp_path):
    done = subprocess.run(
        [sys.executable, EXAMPLE, tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    imbalance = {name: float(number) for name, number in re.findall(r"(\w+): the largest .* is (\S+) ×", done.stdout)}
    assert list(imbalance) == ["ew", "ema", "mao"]
    assert imbalance["mao"] < 3 < 100 < imbalance["ew"]
    assert {path.name for path in tmp_path.glob("*.png")} == {"layers.png", "steps.png", "conflicts.png", "weights.png"}
    for name, number in imbalance.items():
        assert read_monitor(tmp_path / f"{name}.jsonl").imbalance() == pytest.approx(number, rel=0.01)
