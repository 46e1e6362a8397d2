"""Run by torchrun: trains every case on several ranks, and runs every check; writes down what it found.

Arguments: a file with the cases and what one process makes of them, a folder for results, a folder for checkpoints.
"""

from __future__ import annotations

import datetime
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

CHECKS = {}
from scenarios import STEPS, Trainer, alike_on_all_ranks, difference


def main(cases_file, results, checkpoints):
    warnings.filterwarnings("ignore", message=".*_register_pre_backward_hook.*")
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank, size = dist.get_rank(), dist.get_world_size()
    found = {}
    for key, (settings, sizes, expected) in torch.load(cases_file, weights_only=True).items():
        if size in sizes:
            found[key] = attempt(train, settings, expected, rank, size)
    for name, check in CHECKS.items():
        if size in check.sizes:
            found[name] = attempt(check, rank, size, Path(checkpoints))
    Path(results, f"{size}-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def train(settings, expected, rank, size):
    settings = dict(settings)
    pattern = settings.pop("pattern")
    trainer = Trainer(**settings, parts=size, part=rank).train(range(STEPS), pattern)
    parameters = trainer.parameters()
    assert alike_on_all_ranks([*parameters, *trainer.states()]), "ranks have drifted apart"
    return difference([*parameters, *trainer.states()], expected)


def attempt(function, *arguments):
    """Calls the function; an error ends this process, and so the launch: ranks can no longer be in step."""
    start = time.perf_counter()
    try:
        result = function(*arguments)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    if os.environ.get("SHOW_TIMES") and dist.get_rank() == 0:
        print(f"{time.perf_counter() - start:.2f}", result, arguments[0], flush=True)
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)  # threads of PyTorch's that are still there can abort an interpreter that cleans up
