"""What balancing did: attach a monitor to a training, compare two methods, draw the pictures.

Run it: python examples/monitoring.py [FOLDER]   (a few seconds; writes pictures and recordings into FOLDER)

scikit-learn's wines: alcohol, colour intensity and proline from the rest of a chemical analysis. Proline is given in
mg/l, so its loss is thousands of times the others': with equal weights it alone decides where the shared layers go.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_wine
from torch import nn

import equipoise as eq
from equipoise.monitor import Recording
from equipoise.monitor.pictures import draw_conflicts, draw_layers, draw_steps, draw_weights

TASKS = ["alcohol", "color_intensity", "proline"]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        self.heads = nn.ModuleDict({task: nn.Linear(64, 1) for task in TASKS})

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.trunk(inputs).relu()
        return {task: head(features).squeeze(1) for task, head in self.heads.items()}


def train(name: str, folder: Path) -> Recording:
    """Trains by a method of the registry; returns what the monitor has recorded."""
    table = load_wine(as_frame=True).data
    targets = {task: torch.tensor(table.pop(task).to_numpy(), dtype=torch.float32) for task in TASKS}
    inputs = torch.tensor(((table - table.mean()) / table.std()).to_numpy(), dtype=torch.float32)
    torch.manual_seed(0)
    model = Network()
    method = eq.make_method(name, model, TASKS, lr=1e-3)
    monitor = eq.BalanceMonitor(method, model, every=5, writers=folder / f"{name}.jsonl")
    for _ in range(100):
        for rows in torch.randperm(len(inputs)).split(32):
            predicted = model(inputs[rows])
            method.backward({task: (predicted[task] - targets[task][rows]).square().mean() for task in TASKS})
            method.step()
            method.zero_grad()
    return monitor.recording


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/monitoring")
    recordings = {name: train(name, folder) for name in ("ew", "ema", "mao")}
    for name, recording in recordings.items():
        shares = ", ".join(f"{task} {share:.1%}" for task, share in recording.shares().items())
        print(f"{name}: the largest contribution is {recording.imbalance():.3g} × the smallest one ({shares})")
    for what, draw in {"layers": draw_layers, "steps": draw_steps, "conflicts": draw_conflicts}.items():
        draw(recordings).savefig(folder / f"{what}.png", dpi=110)
    draw_weights({"ema": recordings["ema"]}).savefig(folder / "weights.png", dpi=110)
    print(f"Pictures in {folder}")
