"""How much a task is wanted: a β-VAE, and a main task with auxiliaries, under methods that take out losses' scales.

    python examples/priorities.py

IMTL-G and MAO give every task an equal part, whatever factor stands before its loss; `priorities` says which part. The
digits are scikit-learn's.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

import equipoise as eq


def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    return torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 64))

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        return {
            "reconstruction": binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(1).mean(),
            "divergence": 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean(),
        }


def beta_vae(priority: float, factor: float = 1.0, steps: int = 1000) -> dict[str, float]:
    """Trains with a priority of the divergence and a factor before its loss; returns the losses of other digits."""
    torch.manual_seed(0)
    x, _ = digits()
    model = VAE()
    tasks = ["reconstruction", "divergence"]
    balancer = eq.Balancer(tasks, aggregator=eq.IMTLG(), priorities={"divergence": priority}, model=model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(steps):
        losses = model.losses(x[torch.randint(1400, (64,))])
        balancer.backward({**losses, "divergence": factor * losses["divergence"]})
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        return {task: loss.item() for task, loss in model.losses(x[1400:]).items()}


def auxiliaries(priority: float, steps: int = 400) -> dict[str, float]:
    """Trains on the class of 60 digits, and on what needs no label; returns accuracy and error on other digits."""
    torch.manual_seed(0)
    x, label = digits()
    trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
    heads = nn.ModuleDict({"class": nn.Linear(32, 10), "pixels": nn.Linear(32, 64), "ink": nn.Linear(32, 1)})
    wanted = {"pixels": priority, "ink": priority}  # and 1 for the class
    optimizer = eq.MAO([*trunk.parameters(), *heads.parameters()], heads, lr=1e-3, priorities=wanted)
    for _ in range(steps):
        rows = torch.randint(1400, (64,))
        z = trunk(x[rows] * (torch.rand(64, 64) > 0.3))  # as a denoising autoencoder
        losses = {
            "class": cross_entropy(heads["class"](trunk(x[:60])), label[:60]),
            "pixels": (heads["pixels"](z) - x[rows]).square().mean(),
            "ink": (heads["ink"](z)[:, 0] - x[rows].mean(1)).square().mean(),
        }
        optimizer.backward(losses)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        z = trunk(x[1400:])
        accuracy = (heads["class"](z).argmax(1) == label[1400:]).float().mean().item()
        return {"class": accuracy, "pixels": (heads["pixels"](z) - x[1400:]).square().mean().item()}


def main() -> None:
    for what in ({"priority": 0.03}, {"priority": 0.1}, {"priority": 0.3}, {"priority": 0.1, "factor": 100.0}):
        print(what, {task: f"{loss:.1f}" for task, loss in beta_vae(**what).items()})
    for priority in (1.0, 0.1, 0.01):
        found = auxiliaries(priority)
        print(f"auxiliaries of priority {priority}: {found['class']:.1%} of the classes, error {found['pixels']:.3f}")


if __name__ == "__main__":
    main()
