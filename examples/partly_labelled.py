"""A tabular model with three tasks in a loop of one's own, where most samples lack some of the labels.

    python examples/partly_labelled.py

Houses with a price, a kind of heating and a year of construction: every sample has the price, one in three the heating,
one in ten the year, so that some batches have no year at all. `masked_mean` takes each task's mean over its labelled
samples, `count_labels` tells which tasks have any, and those that have none are left out of the step.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import equipoise as eq

TASKS = ["price", "heating", "year"]
LABELLED = {"price": 1.0, "heating": 0.33, "year": 0.1}


def houses(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, labels and which labels are known, `[count, 8]` and twice `[count, 3]`; unknown labels are 0."""
    x = torch.randn(count, 8)
    hidden = torch.stack([x[:, :3].sum(1), x[:, 2:5].sum(1) * x[:, 0], x[:, 4:].sum(1)], 1).tanh()
    labels = torch.stack(
        [hidden.sum(1), (hidden[:, 1] > 0).float() + (hidden[:, 2] > 0.5), hidden[:, 2] - hidden[:, 0]], 1
    )
    known = torch.rand(count, 3) < torch.tensor([LABELLED[task] for task in TASKS])
    return x, labels * known, known


class Houses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU())
        self.heads = nn.ModuleDict({"price": nn.Linear(64, 1), "heating": nn.Linear(64, 3), "year": nn.Linear(64, 1)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        return {task: head(z) for task, head in self.heads.items()}


def sample_losses(outputs: dict[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
    """One loss a sample and task, known or not."""
    return {
        "price": (outputs["price"][:, 0] - labels[:, 0]).square(),
        "heating": cross_entropy(outputs["heating"], labels[:, 1].long(), reduction="none"),
        "year": (outputs["year"][:, 0] - labels[:, 2]).square(),
    }


def main(epochs: int = 15) -> dict[str, float]:
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(*houses(1200)), batch_size=16, shuffle=True)
    model = Houses()
    optimizer = eq.MAO(model.parameters(), TASKS, lr=2e-3)  # or AdamW, and balancer = eq.Balancer(TASKS, ...)
    left_out = 0
    for _ in range(epochs):
        for x, labels, known in loader:
            counts = eq.count_labels(dict(zip(TASKS, known.unbind(1), strict=True)))
            each = sample_losses(model(x), labels)
            losses = {task: eq.masked_mean(each[task], known[:, i]) for i, task in enumerate(TASKS)}
            optimizer.backward(losses, counts=counts)
            optimizer.step()
            optimizer.zero_grad()
            left_out += sum(count == 0 for count in counts.values())
    print(f"tasks left out of a step: {left_out} times in {epochs * len(loader)} steps")

    x, labels, known = houses(1000)
    with torch.no_grad():
        each = sample_losses(model(x), labels)
    errors = {task: eq.masked_mean(each[task], known[:, i]).item() for i, task in enumerate(TASKS)}
    print("loss on houses not trained on:", {task: f"{error:.3f}" for task, error in errors.items()})
    return {**errors, "left out": float(left_out)}


if __name__ == "__main__":
    main()
