"""A loop that is run only to look at it: batches over and over, an optimizer's twin, and everything as it was after."""

from __future__ import annotations

import copy
import random
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

Kind = TypeVar("Kind", bound=Optimizer)


@contextmanager
def restored(model: nn.Module, optimizer: Optimizer, batches: object) -> Iterator[None]:
    """Puts back, at the end, whatever training changes.

    That is the parameters and buffers of the model, `.grad`, which modules are in training mode, the optimizer's other
    parameters, and the generators of random numbers: PyTorch's, Python's, NumPy's where it has been imported, and those
    of a DataLoader. Meanwhile `.grad` is None.
    """
    modules = [(module, module.training, dict(module._buffers)) for module in model.modules()]
    held = {p for group in optimizer.param_groups for p in group["params"]}
    gradients = {p: p.grad for p in {*held, *model.parameters()}}
    values = {tensor: tensor.detach().clone() for tensor in {*gradients, *model.buffers()}}
    generators = [(generator, generator.get_state()) for generator in _generators(batches)]
    numpy = sys.modules.get("numpy")
    drawn = random.getstate(), None if numpy is None else numpy.random.get_state()
    devices = {tensor.device.index for tensor in values if tensor.device.type == "cuda"}
    try:
        with torch.random.fork_rng(sorted(devices)):
            for p in gradients:
                p.grad = None
            yield
    finally:
        with torch.no_grad():
            for module, training, buffers in modules:
                module.training = training
                module._buffers.clear()
                module._buffers.update(buffers)
            for tensor, value in values.items():
                tensor.copy_(value)
            for p, gradient in gradients.items():
                p.grad = gradient
        for generator, state in generators:
            generator.set_state(state)
        random.setstate(drawn[0])
        if numpy is not None:
            numpy.random.set_state(drawn[1])


def _generators(batches: object) -> list[torch.Generator]:
    """The generators of their own that a DataLoader and its samplers draw from."""
    sampler = getattr(batches, "sampler", None)
    batch_sampler = getattr(batches, "batch_sampler", None)
    places = (
        batches,
        sampler,
        batch_sampler,
        getattr(sampler, "sampler", None),
        getattr(batch_sampler, "sampler", None),
    )
    found = [getattr(place, "generator", None) for place in places]
    return list({id(generator): generator for generator in found if isinstance(generator, torch.Generator)}.values())


def twin(optimizer: Kind) -> Kind:
    """Returns an optimizer of the same parameters, settings and state that shares none of its state, nor hooks."""
    made = copy.copy(optimizer)
    made.state = defaultdict(dict)
    made.param_groups = [dict(group) for group in optimizer.param_groups]
    made.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return made


Batch = TypeVar("Batch")


def cycled(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yields batches without end, iterating anew where they end.

    Raises:
        ValueError: there are none; an iterator has ended, which cannot begin anew.
    """
    count = 0
    while True:
        before = count
        for batch in batches:
            count += 1
            yield batch
        if isinstance(batches, Iterator):
            raise ValueError(
                f"batches ended after {count}, and an iterator does not begin anew: give a list or a DataLoader."
            )
        if count == before:
            raise ValueError("batches is empty: give at least one batch, or a DataLoader of some.")
