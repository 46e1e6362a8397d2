"""Two tasks in PyTorch Lightning: is a drawing a box or a disc, and how large is it?

    python examples/lightning_module.py

The training step returns the scalar of a Balancer, so that optimization stays automatic: the Trainer clips gradients,
accumulates micro-batches and steps the scheduler as ever. The area is in pixels, and its squared error is large:
with equal weights it decides where the shared layers go. `BalanceMonitorCallback` shows that.
"""

import tempfile
from pathlib import Path

import lightning
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

import equipoise as eq
from equipoise.integrations.lightning_monitor import BalanceMonitorCallback

TASKS = ["shape", "area"]
SIZE = 16


def drawings(count: int) -> TensorDataset:
    """Boxes (0) and discs (1) of any place and size, with noise, and their areas."""
    shape = torch.randint(2, (count,))
    radius = 2 + 4 * torch.rand(count, 1, 1)
    centre = radius + (SIZE - 2 * radius) * torch.rand(2, count, 1, 1)
    across = (torch.arange(SIZE) + 0.5 - centre[0]).expand(-1, SIZE, -1)
    down = (torch.arange(SIZE)[:, None] + 0.5 - centre[1]).expand(-1, -1, SIZE)
    distance = torch.where(shape[:, None, None] == 1, across.hypot(down), torch.maximum(across.abs(), down.abs()))
    inside = (distance <= radius).float()
    return TensorDataset(inside + 0.1 * torch.randn_like(inside), shape, inside.sum((1, 2)))


class Drawings(lightning.LightningModule):
    def __init__(self, balancer: eq.Balancer) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.heads = nn.ModuleDict({"shape": nn.Linear(32, 2), "area": nn.Linear(32, 1)})
        self.balancer = balancer  # saved with the module; what it learns is among the module's parameters

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(images)
        return self.heads["shape"](features), self.heads["area"](features)[:, 0]

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        images, shape, area = batch
        logits, predicted = self(images)
        losses = {"shape": cross_entropy(logits, shape), "area": mse_loss(predicted, area)}
        return self.balancer(losses)  # was: sum(losses.values())

    def test_step(self, batch: list[Tensor], index: int) -> None:
        images, shape, area = batch
        logits, predicted = self(images)
        self.log("shape", (logits.argmax(1) != shape).float().mean())
        self.log("area", (predicted - area).abs().mean())

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main(folder: Path, epochs: int = 10) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Returns each task's share of the movement of shared layers, and its error on drawings not trained on."""
    shares, errors = {}, {}
    for name, objective in {"equal weights": eq.Equal(), "EMA": eq.EMA()}.items():
        lightning.seed_everything(0, verbose=False)
        train, test = drawings(2000), drawings(500)
        module = Drawings(eq.Balancer(TASKS, objective))
        monitor = BalanceMonitorCallback(every=20, path=folder / f"{name}.jsonl")
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accumulate_grad_batches=2,
            gradient_clip_val=1.0,
            callbacks=[monitor],
            accelerator="cpu",
            logger=False,  # with one, the samples go there as well
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, DataLoader(train, batch_size=50, shuffle=True))
        trainer.test(module, DataLoader(test, batch_size=500), verbose=False)
        shares[name] = monitor.monitor.recording.shares()
        errors[name] = {task: float(trainer.callback_metrics[task]) for task in TASKS}
        print(
            f"{name}: the area has {shares[name]['area']:.0%} of the movement; "
            f"{errors[name]['shape']:.1%} of the shapes wrong, area off by {errors[name]['area']:.1f} pixels"
        )
    return shares, errors


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
