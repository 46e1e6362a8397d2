"""Training with MAO, and with what it is compared with: torch.optim.AdamW, and its formula in float64."""

import torch
from networks import Network, batch

import equipoise as eq
from equipoise.optim.moments import listed, update

STEPS = 8


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def run(model, optimizer, steps=range(STEPS), scheduler=None, tasks=("a",)):
    """Trains on the sum of `tasks` with AdamW, or on the tasks with MAO."""
    for index in steps:
        losses = model.losses(batch(index), tasks)
        if isinstance(optimizer, eq.MAO):
            optimizer.backward(losses)
        else:
            torch.autograd.backward(list(losses.values()))
        optimizer.step()
        optimizer.zero_grad()
        if scheduler is not None:
            scheduler.step()


def pair(make, fused, mutate=lambda optimizer, model: None, tasks=("a",)):
    """The same model under MAO with one task and under AdamW, with the arguments that `make(model)` gives."""
    models = Network(), Network()
    groups, arguments = zip(*(make(model) for model in models), strict=True)
    optimizers = (
        eq.MAO(groups[0], list(tasks), fused=fused, **arguments[0]),
        torch.optim.AdamW(groups[1], fused=fused, foreach=False, **arguments[1]),
    )
    for optimizer, model in zip(optimizers, models, strict=True):
        mutate(optimizer, model)
    return models, optimizers


def take(parameters, gradients, moments, group, taking=None):
    """Updates parameters that are a group by one task's gradients, all that it has."""
    sparse = [gradient.is_sparse for gradient in gradients]
    update(listed(zip(range(len(sparse)), parameters, sparse, moments, strict=True)), gradients, group, taking)


class Reference:
    """`θ ← θ − Σ_n η m̂_n/(√v̂_n + ε) − η λ θ` in float64, parameter by parameter and task by task."""

    def __init__(self, model, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.model, self.lr, self.betas, self.eps, self.weight_decay = model, lr, betas, eps, weight_decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.first, self.second, self.times = {}, {}, {}

    def gradients(self, losses):
        return {
            task: {
                name: g
                for name, g in zip(
                    self.parameters,
                    torch.autograd.grad(loss, list(self.parameters.values()), retain_graph=True, allow_unused=True),
                    strict=True,
                )
                if g is not None
            }
            for task, loss in losses.items()
        }

    @torch.no_grad()
    def step(self, rows):
        (beta1, beta2), eta = self.betas, self.lr
        for name, parameter in self.parameters.items():
            update = torch.zeros_like(parameter)
            tasks = [task for task in rows if name in rows[task]]
            for task in tasks:
                key, g = (task, name), rows[task][name]
                self.times[key] = t = self.times.get(key, 0) + 1
                self.first[key] = m = beta1 * self.first.get(key, torch.zeros_like(g)) + (1 - beta1) * g
                self.second[key] = v = beta2 * self.second.get(key, torch.zeros_like(g)) + (1 - beta2) * g * g
                update += eta * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + self.eps)
            if tasks:
                parameter.sub_(update + eta * self.weight_decay * parameter)


PRESENT = ["abc", "ac", "abc", "b", "ab", "c", "abc", "a", "bc", "abc"]
