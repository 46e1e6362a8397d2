"""What task gradients cost where the model is compiled, and what compiling the batched vjp itself would give.

    python benchmarks/compiled.py           # about 10 minutes on two CPU cores; compiles with the C++ compiler

Prints a table a model and number of tasks, of whole steps of IMTL-G, by turns. A compiled graph takes one task at a
time, so that the library makes K backward passes through it. "vjp from outside" is a compiled function of the
parameters and the batch that returns the K task gradients, by `torch.func.vjp` and `torch.vmap`: it needs a model
that can be called as a function, and the heads in it. Without a GPU the time is this process's processor time, on one
thread, so that ratios hold on a busy machine.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from measure import Step, interleave, make_turn, relative
from rich.console import Console
from rich.table import Table
from steps import WAYS, method_step
from torch import Tensor
from torch.func import functional_call, grad_and_value, vjp
from workloads import Workload, make_workload

import equipoise as eq

BASE = "compiled, K passes"
"""What the library does with a compiled model."""


def with_compiled_trunk(workload: Workload) -> Workload:
    """Returns a copy whose trunk is compiled."""
    model = copy.deepcopy(workload.model)
    model.trunk = torch.compile(model.trunk)
    return replace(workload, model=model)


def outside_step(workload: Workload) -> Step:
    """The K rows from one compiled function, then weights and `.grad` as in a Balancer."""
    model, scales = workload.model, torch.logspace(-2, 2, len(workload.targets)).tolist()
    trunk, heads = dict(model.trunk.named_parameters()), [dict(head.named_parameters()) for head in model.heads]
    aggregator = eq.IMTLG()
    aggregator.bind(workload.tasks)

    def gradients(trunk: dict[str, Tensor], heads: list[dict[str, Tensor]]) -> tuple[list[Tensor], list, dict]:
        z, pull_back = vjp(lambda parameters: functional_call(model.trunk, parameters, (workload.inputs,)), trunk)
        losses, at_cut, own = [], [], []
        for module, head, target, scale in zip(model.heads, heads, workload.targets, scales, strict=True):

            def loss(z: Tensor, head: dict[str, Tensor], module=module, target=target, scale=scale) -> Tensor:
                return scale * (functional_call(module, head, (z,)).squeeze(1) - target).square().mean()

            (at_head, at_parameters), value = grad_and_value(loss, argnums=(0, 1))(z, head)
            losses.append(value)
            at_cut.append(at_head)
            own.append(at_parameters)
        return losses, own, torch.vmap(pull_back)(torch.stack(at_cut))[0]

    compiled = torch.compile(gradients)

    def step() -> None:
        with torch.no_grad():
            losses, own, stacks = compiled(trunk, heads)
            rows = list(zip(*(stack.unbind() for stack in stacks.values()), strict=True))
            combined, _ = aggregator.aggregate(rows, torch.stack(losses))
        for parameter, gradient in zip(trunk.values(), combined, strict=True):
            parameter.grad = gradient
        for head, found in zip(heads, own, strict=True):
            for name, parameter in head.items():
                parameter.grad = found[name]

    return step


STEPS: dict[str, Callable[[Workload], Step]] = {
    BASE: lambda workload: method_step(with_compiled_trunk(workload), "imtl-g", {"chunk_size": 1}),
    "eager, one by one": lambda workload: method_step(workload, "imtl-g", WAYS["one by one"](len(workload.tasks))),
    "eager, at once": lambda workload: method_step(workload, "imtl-g", WAYS["batched"](len(workload.tasks))),
    "eager, layers": lambda workload: method_step(workload, "imtl-g", WAYS["layers"](len(workload.tasks))),
    "vjp from outside": outside_step,
}


def main() -> None:
    """Measures and prints a table a model and number of tasks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["mlp", "mlp 8×512", "transformer"])
    parser.add_argument("--tasks", type=int, nargs="+", default=[3, 26])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    torch.set_num_threads(1)
    for model in arguments.models:
        for tasks in arguments.tasks:
            turns, first = {}, {}
            torch.compiler.reset()
            for name, make in STEPS.items():
                step = make(make_workload(model, tasks, device))
                start = time.perf_counter()
                step()
                first[name] = time.perf_counter() - start
                turns[name] = make_turn(step, device, 0.1, clock)
            times = interleave(turns, arguments.rounds, BASE)
            table = Table(title=f"{model}, K={tasks}, {device.type}")
            for column in ("way", "first step, s", "step, ms", f"of {BASE}"):
                table.add_column(column)
            for name, taken in times.items():
                ratio = relative(taken.own, taken.reference)
                own = 1000 * statistics.median(taken.own)
                table.add_row(name, f"{first[name]:.1f}", f"{own:.3g}", f"{ratio.median:.2f}")
            Console().print(table)


if __name__ == "__main__":
    main()
