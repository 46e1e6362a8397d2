"""Meta-learning (MAML): learn weights from which one gradient step on ten points learns a new sine wave.

    python examples/meta_learning.py

The network tells a wave's value and its slope, which is given in other units: its loss is some thousand times the
value's. Inner and outer losses are balanced by the same weights, `balancer(losses)`; the inner step is differentiated
(`create_graph=True`), for which its weights are constants.
"""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

import equipoise as eq

TASKS = ["value", "slope"]
Parameters = dict[str, Tensor]


class Wave(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh())
        self.heads = nn.ModuleDict({task: nn.Linear(40, 1) for task in TASKS})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        return {task: head(z) for task, head in self.heads.items()}


class Episode:
    """A sine wave of its own amplitude and phase, of which samples are drawn."""

    def __init__(self, source: torch.Generator) -> None:
        self.source = source
        amplitude, phase = torch.rand(2, generator=source).tolist()
        self.amplitude, self.phase = 0.5 + 1.5 * amplitude, math.pi * phase

    def losses(self, model: Wave, parameters: Parameters, count: int = 10) -> dict[str, Tensor]:
        x = 6 * torch.rand(count, 1, generator=self.source, dtype=next(iter(parameters.values())).dtype) - 3
        outputs = functional_call(model, parameters, (x,))
        value, slope = (self.amplitude * wave(x + self.phase) for wave in (torch.sin, torch.cos))
        return {
            "value": (outputs["value"] - value).square().mean(),
            "slope": (50 * outputs["slope"] - 50 * slope).square().mean(),
        }


def adapted(model: Wave, balancer: eq.Balancer, episode: Episode, rate: float = 0.1, graph: bool = True) -> Parameters:
    """The model's parameters after a gradient step on ten points, the weights being those of the last outer step."""
    parameters = dict(model.named_parameters())
    with balancer.frozen():
        loss = balancer(episode.losses(model, parameters))
    gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=graph)
    return {name: p - rate * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}


def main(steps: int = 1000, episodes: int = 4, objective: eq.Weighting | None = None) -> dict[str, float]:
    torch.manual_seed(0)
    source = torch.Generator().manual_seed(0)
    model = Wave()
    balancer = eq.Balancer(TASKS, objective or eq.EMA(), model=model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(steps):
        met = []
        for episode in (Episode(source) for _ in range(episodes)):
            met.append(episode.losses(model, adapted(model, balancer, episode)))
        losses = {task: torch.stack([found[task] for found in met]).mean() for task in TASKS}
        balancer(losses).backward()  # through the inner steps
        optimizer.step()
        optimizer.zero_grad()
        if step % 250 == 0:
            print(f"step {step}:", {task: f"{loss:.3f}" for task, loss in losses.items()})

    errors = dict.fromkeys(TASKS, 0.0)
    for episode in (Episode(source) for _ in range(100)):
        after = adapted(model, balancer, episode, graph=False)
        with torch.no_grad():
            found = episode.losses(model, after, 50)
        errors = {task: errors[task] + found[task].item() / 100 for task in TASKS}
    print("on waves not seen, after one step:", {task: f"{error:.3f}" for task, error in errors.items()})
    return errors


if __name__ == "__main__":
    main()
