"""What the fragments in the documents take for granted: a model, its losses, loaders, an optimizer."""

import sys
from collections.abc import Mapping
from types import ModuleType

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

import equipoise as eq

TASKS = ["depth", "normals"]


class Model(nn.Module):
    """Two heads on a trunk; `input_ids` is what a language model would call its input."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.depth, self.normals = nn.Linear(8, 1), nn.Linear(8, 3)

    def forward(self, input_ids):
        features = self.trunk(input_ids)
        return {"depth": self.depth(features), "normals": self.normals(features)}


class Samples(Dataset):
    """Some samples, with labels of both tasks."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        x = torch.randn(4, generator=torch.Generator().manual_seed(index))
        return {"input_ids": x, "depth": x[:1], "normals": x[:3]}


class LossesOf:
    """Losses of outputs and a batch, of a model and a batch, or of either; indexed by a loader, of its own task."""

    def __init__(self, model):
        self.model = model

    def __call__(self, *arguments):
        model = next((one for one in arguments if isinstance(one, nn.Module)), self.model)
        batch = next((one for one in arguments if "input_ids" in dir_of(one)), None) or next(iter(loader()))
        outputs = next((one for one in arguments if {"depth"} <= dir_of(one) and "input_ids" not in one), None)
        outputs = model(batch["input_ids"]) if outputs is None else outputs
        return {task: functional.mse_loss(outputs[task], batch[task]) for task in TASKS}

    def __getitem__(self, name):
        task = {"voc": "depth", "nyu": "normals"}[name]
        return lambda model, batch: {task: self(model, batch)[task]}


def dir_of(argument):
    return set(argument) if isinstance(argument, Mapping) else set()


def loader():
    return DataLoader(Samples(), batch_size=4)


def scenery(code, folder):
    """Returns the names that a fragment may use, freshly made; files go below the folder."""
    torch.manual_seed(0)
    model = Model()
    losses_of = LossesOf(model)
    batch = next(iter(loader()))
    images = x = batch["input_ids"]
    losses = losses_of(model, batch)
    has = {task: torch.tensor([True, False, True, True]) for task in TASKS}
    errors = {task: (model(x)[task] - batch[task]).square().mean(1) for task in TASKS}
    optimizer = torch.optim.AdamW(model.parameters())
    balancer = eq.Balancer(TASKS, eq.EMA(), model=model)
    method = eq.make_method("ema", model, TASKS)

    def closure():
        optimizer.zero_grad()
        loss = balancer(losses_of(model))
        loss.backward()
        return loss

    path = folder / "checkpoint.pt"
    state = {"model": model.state_dict(), "method": method.state_dict(), "balancer": balancer.state_dict()}
    return {
        "eq": eq,
        "torch": torch,
        "nn": nn,
        "functional": functional,
        "tasks": TASKS,
        "Model": Model,
        "model": model,
        "samples": Samples(),
        "optimizer": optimizer,
        "balancer": balancer,
        "method": method,
        "losses_of": losses_of,
        "losses": losses,
        "depth_loss": losses["depth"],
        "normals_loss": losses["normals"],
        "images": images,
        "x": x,
        "y": torch.tensor([0, 2, 1, 0]),
        "has_depth": has["depth"],
        "has_normals": has["normals"],
        "depth_errors": errors["depth"],
        "normal_errors": errors["normals"],
        "penalty": sum(p.square().sum() for p in model.parameters()),
        "accumulation": 4,
        "parts": [batch, batch],
        "steps": 2,
        "closure": closure,
        "start": 0,
        "epochs": 1,
        **{f"{name}_loader": loader() for name in ("voc", "nyu", "en", "sw")},
        "path": path,
        "state": state,
        "batch": batch,
        "loader": loader(),
        **libraries(code, model),
    }


def libraries(code, model):
    """What fragments about a library take for granted, by what is in their text."""
    if "PerSample" in code:
        return {"model": nn.Linear(4, 3)}
    if "fabric" in code:
        from lightning import Fabric

        return {"fabric": Fabric(accelerator="cpu", devices=1)}
    if "accelerat" in code:
        from accelerate import Accelerator

        return {"accelerator": Accelerator(cpu=True)}
    if "fit(module)" in code:
        import lightning

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.model, self.balancer = model, eq.Balancer(TASKS, eq.EMA())

            def configure_optimizers(self):
                return torch.optim.AdamW(self.parameters())

            def training_step(self, batch, index):
                return self.balancer(LossesOf(self.model)(batch))

            def train_dataloader(self):
                return loader()

        return {"module": Module()}
    return {}


def run(code, page, names):
    """Runs code as of a module of its own: what it defines is found by that name, as pickling wants."""
    module = ModuleType("fragment")
    vars(module).update(names)
    sys.modules["fragment"] = module
    exec(compile(code, page, "exec"), vars(module))
    return vars(module)
