"""A physics-informed network: a plane wave from the Helmholtz equation, its boundary values and a few measurements.

    python examples/physics_informed.py [SEEDS]     (under a minute a seed)

Δu + κ²u = 0 on [-1, 1]². The residual is of the order of κ² times u, and 0 where u is: with equal weights the network
learns that and stays there. First Adam with a balancing method, then LBFGS on weights that are held during its steps.
"""

import math
import sys
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

import equipoise as eq

TASKS = ["residual", "boundary", "data"]
METHODS = ["ew", "ema", "imtl-g", "mao"]
WAVE = math.pi * torch.tensor([1.0, 1.5])
"""The wave vector, whose length is κ."""


def exact(points: Tensor) -> Tensor:
    return torch.sin(points @ WAVE.to(points) + 0.5)


def sample(inside: int = 500, edge: int = 200, sensors: int = 30) -> dict[str, Tensor]:
    """Points of each task, `[N, 2]`; those of the residual require a gradient, as it is made of derivatives in them."""
    square = SobolEngine(2, scramble=True, seed=0).draw(inside + sensors) * 2 - 1
    a, b, c, d = (SobolEngine(4, scramble=True, seed=1).draw(edge // 4) * 2 - 1).unbind(1)
    one = torch.ones(edge // 4)
    sides = [torch.stack(side, 1) for side in ((a, one), (b, -one), (one, c), (-one, d))]
    return {"residual": square[:inside].requires_grad_(), "boundary": torch.cat(sides), "data": square[inside:]}


def network(width: int = 40) -> nn.Sequential:
    layers = [layer for size in pairwise([2, width, width, width, 1]) for layer in (nn.Linear(*size), nn.Tanh())]
    model = nn.Sequential(*layers[:-1], nn.Flatten(0))
    for p in model.parameters():
        nn.init.xavier_normal_(p) if p.dim() > 1 else nn.init.zeros_(p)
    return model


def losses_of(model: nn.Module, points: dict[str, Tensor]) -> dict[str, Tensor]:
    x, u = points["residual"], model(points["residual"])
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    bends = [torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2)]
    errors = {task: model(points[task]) - exact(points[task]) for task in ("boundary", "data")}
    errors = {"residual": sum(bends) + WAVE.square().sum() * u, **errors}
    return {task: error.square().mean() for task, error in errors.items()}


def train(name: str, model: nn.Module, points: dict[str, Tensor], steps: int) -> None:
    """Adam, or MAO, balanced by a method of the registry."""
    method = eq.make_method(name, model, TASKS, lr=5e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(method.optimizer, steps, eta_min=2.5e-4)
    for _ in range(steps):
        method.backward(losses_of(model, points))
        method.step()
        method.zero_grad()
        schedule.step()


def polish(balancer: eq.Balancer, model: nn.Module, points: dict[str, Tensor], steps: int) -> None:
    """LBFGS: each step learns the weights once, and holds them while its line searches compare values."""
    options = {"max_iter": 50, "history_size": 50, "tolerance_grad": 0.0, "tolerance_change": 0.0}
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe", **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = balancer(losses_of(model, points))
        loss.backward()
        return loss

    for _ in range(steps):
        balancer(losses_of(model, points))
        optimizer.state.clear()  # the curvature of the sum that the last weights made
        with balancer.frozen():
            optimizer.step(closure)


def error(model: nn.Module) -> float:
    """The relative L2 error on a grid."""
    line = torch.linspace(-1, 1, 101)
    grid = torch.cartesian_prod(line, line)
    with torch.no_grad():
        return float((model(grid) - exact(grid)).norm() / exact(grid).norm())


def main(seeds: int = 1, steps: tuple[int, int] = (1500, 20)) -> dict[str, list[float]]:
    """Returns method → the error of each seed."""
    points = sample()
    errors: dict[str, list[float]] = {name: [] for name in METHODS}
    for seed in range(seeds):
        for name in METHODS:
            torch.manual_seed(seed)
            model = network()
            train(name, model, points, steps[0])
            after_adam = error(model)
            polish(eq.Balancer(TASKS, eq.Equal() if name == "ew" else eq.EMA()), model, points, steps[1])
            errors[name].append(error(model))
            print(f"{name}, seed {seed}: error {after_adam:.1e} after Adam, {errors[name][-1]:.1e} after LBFGS")
    return errors


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
