"""A run on several devices of one machine: a process for each, which Fabric finds as if torchrun had started them."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, wait
from typing import cast

import torch

from equipoise.bench.experiment.folder import readable, storable
from equipoise.bench.experiment.processes import GUARD, UNGUARDED, begin_process, start_process
from equipoise.bench.experiment.training import Outputs, train
from equipoise.bench.experiment.trial import Record, Trial
from equipoise.bench.problems import load_problem
from equipoise.bench.problems._errors import in_own_code

POLL_SECONDS = 0.2
"""How often it is asked whether to stop."""


class RankError(Exception):
    """A run failed on one of its devices.

    Args:
        rank: which.
        found: what `in_record` says of it there.
    """

    def __init__(self, rank: int, found: Mapping[str, str]) -> None:
        super().__init__(f"device {rank}: {found['message']}")
        self.found = {**found, "message": str(self)}


def train_on_ranks(
    problem: str,
    quick: bool,
    trial: Trial,
    on_epoch: Callable[[int, float], None],
    on_step: Callable[[], None],
    outputs: Outputs,
) -> Record:
    """Runs a trial on its devices; as `train`, but for the problem, which every process loads itself.

    Raises:
        RankError: a process failed, or was killed.
    """
    context = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes, readers = [], {}
    try:
        for rank in range(trial.devices):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(
                target=_rank, args=(rank, port, writer, problem, quick, trial, outputs, torch.get_num_threads())
            )
            start_process(process)
            writer.close()  # the process has its own: so its end is seen here
            processes.append(process)
            readers[reader] = rank
        while True:
            on_step()
            for reader in cast("list[Connection]", wait(list(readers), POLL_SECONDS)):
                try:
                    message = readable(json.loads(reader.recv_bytes()))
                except EOFError:
                    rank = readers.pop(reader)
                    processes[rank].join()
                    if code := processes[rank].exitcode:
                        message = GUARD if code == UNGUARDED else f"its process ended with exit code {code}"
                        raise RankError(rank, {"message": message}) from None
                    continue
                if "error" in message:
                    raise RankError(readers[reader], message["error"])
                if "record" in message:
                    return dict(message["record"])
                on_epoch(message["epoch"], message["score"])
    finally:
        for process in processes:
            process.kill()
            process.join()


def in_record(error: Exception) -> dict[str, str]:
    """Returns what a failed run's record says of an error.

    That is a `message` of one line, the whole `traceback`, and, of an error in a person's own code, a readable `block`.
    """
    if isinstance(error, RankError):
        return error.found
    whole = {"traceback": "".join(traceback.format_exception(error))}
    own = in_own_code(error)
    if own is not None:
        return {"message": str(own), "block": own.block, **whole}
    return {"message": f"{type(error).__name__}: {error}".splitlines()[0], **whole}


def _rank(
    rank: int, port: int, writer: Connection, problem: str, quick: bool, trial: Trial, outputs: Outputs, threads: int
) -> None:
    """A device's process: the first one tells what happens and writes."""
    begin_process(threads)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(trial.devices), "LOCAL_WORLD_SIZE": str(trial.devices)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "equipoise"}

    def tell(**message: object) -> None:
        writer.send_bytes(json.dumps(storable(message)).encode())

    try:
        loaded = load_problem(problem)
        record = train(
            loaded,
            loaded.data(quick),
            trial,
            (lambda epoch, score: tell(epoch=epoch, score=score)) if rank == 0 else (lambda epoch, score: None),
            outputs=outputs,
        )
        if rank == 0:
            tell(record=record)
    except Exception as error:
        tell(error=in_record(error))
    threading.Event().wait()  # the parent ends all of them together
