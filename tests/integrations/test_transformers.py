"""Hugging Face's Trainer, which is given a scalar; the balancer is a part of the model."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.loops import EPOCHS, METHODS, Model, assert_close, loader, losses_of, parts, plain_scalars
from networks import assert_same
from torch import Tensor
from torch.utils.data import DataLoader

import equipoise as eq

pytest.importorskip("transformers")
from transformers import Trainer, TrainingArguments

TASKS = ["low", "high"]
CLIP = 1.0


class Balanced(Trainer):
    """The person's Trainer: its `compute_loss` returns what `balance` makes of the losses."""

    balance: Any = None

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(inputs["x"])
        losses = losses_of(outputs, inputs["x"])
        loss = self.model.balancer(losses) if self.balance is None else self.balance(losses)
        return (loss, outputs) if return_outputs else loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(samples(), batch_size=4)  # in the order of the plain loop


def samples() -> list[dict[str, Tensor]]:
    return [{"x": x} for (x,) in loader().dataset]


def trainer(name: str, path: Path, own_optimizer: bool = True, **options: Any) -> Balanced:
    """As a person has it, with an evaluation after every step."""
    model = Model()
    balancer, optimizer = parts(name, model)
    if balancer is not None:
        model.balancer = balancer
    arguments = {
        "output_dir": str(path),
        "num_train_epochs": EPOCHS,
        "lr_scheduler_type": "constant",
        "max_grad_norm": CLIP,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "no",
        "label_names": ["x"],
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "report_to": [],
        "use_cpu": True,
        **options,
    }
    made = Balanced(
        model,
        TrainingArguments(**arguments),
        train_dataset=samples(),
        eval_dataset=samples()[:8],
        optimizers=(optimizer if own_optimizer else None, None),
    )
    made.balance = optimizer.loss if name == "mao" else None
    return made


@pytest.mark.parametrize(("name", "micro_batches"), [*((name, 2) for name in METHODS), ("pcgrad", 1)])
def test_numbers_of_a_plain_loop(name: str, micro_batches: int, tmp_path: Path) -> None:
    made = trainer(name, tmp_path, gradient_accumulation_steps=micro_batches)
    made.train()
    assert_close(made.model.state_dict(), plain_scalars(name, micro_batches, CLIP))


class Keywords(Model):
    """Takes keywords, as the library's own models do, so that the Trainer believes that it normalises its loss."""

    accepts_loss_kwargs = False

    def forward(self, x: Tensor, **_: Any) -> dict[str, Tensor]:
        return super().forward(x)


def test_a_model_that_takes_keywords_leaves_it_to_them_to_divide(tmp_path: Path) -> None:
    one, other = Keywords(), Keywords()
    one.balancer, balancer = eq.Balancer(TASKS, eq.EMA()), eq.Balancer(TASKS, eq.EMA())
    optimizer = torch.optim.SGD(one.parameters(), lr=0.01)
    arguments = trainer("ema", tmp_path, gradient_accumulation_steps=2, eval_strategy="no", max_grad_norm=0.0).args
    arguments.max_steps = 1
    made = Balanced(one, arguments, optimizers=(optimizer, None))
    made.get_train_dataloader = lambda: [{"x": x, "labels": torch.zeros(4)} for (x,) in loader()]
    made.train()
    for (x,) in list(loader())[:2]:
        balancer.backward(losses_of(other(x), x))
    for found, start in zip(one.parameters(), other.parameters(), strict=False):
        torch.testing.assert_close(found, start - 0.01 * start.grad / 2)


def test_mao_of_their_making(tmp_path: Path) -> None:
    """By its class: the Trainer makes groups with and without weight decay."""
    expected = trainer("mao", tmp_path)
    expected.train()
    model = Model()
    options = {"tasks": TASKS, "lr": 0.01}
    made = Balanced(
        model,
        expected.args,
        train_dataset=samples(),
        eval_dataset=samples()[:8],
        optimizer_cls_and_kwargs=(eq.MAO, options),
    )
    made.balance = lambda losses: made.optimizer.optimizer.loss(losses)
    made.train()
    assert_same(model.state_dict(), expected.model.state_dict())


def test_an_evaluation_learns_nothing_and_says_the_weighted_loss(tmp_path: Path) -> None:
    made = trainer("ema", tmp_path, eval_strategy="no")
    made.train()
    before = copy.deepcopy(made.model.state_dict())
    weights = made.model.balancer._balancing.held.weights
    x = torch.stack([sample["x"] for sample in samples()[:8]])
    losses = losses_of(made.model(x), x)
    expected = sum(float(weights[task] * losses[task].detach()) for task in TASKS)
    assert made.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert_same(made.model.state_dict(), before)


@pytest.mark.parametrize("name", ["ema", "imtl", "pcgrad", "mao"])
def test_their_checkpoints_hold_everything(name: str, tmp_path: Path) -> None:
    """Bit for bit, by new objects, the random numbers of PCGrad included."""
    whole = trainer(name, tmp_path / "whole")
    whole.train()
    stopped = trainer(name, tmp_path / "stopped", max_steps=5, save_strategy="steps", save_steps=5)
    stopped.train()
    resumed = trainer(name, tmp_path / "resumed")
    torch.manual_seed(1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-5"))
    assert resumed.state.global_step == whole.state.global_step
    assert_same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))


@pytest.mark.parametrize("name", ["uw", "imtl"])
def test_learned_weights_go_to_their_optimizer(name: str, tmp_path: Path) -> None:
    made = trainer(name, tmp_path, own_optimizer=False, learning_rate=0.01)
    before = [p.detach().clone() for p in made.model.balancer.parameters()]
    made.train()
    assert before
    for p, start in zip(made.model.balancer.parameters(), before, strict=True):
        assert not torch.equal(p, start)
        assert p.grad is None  # cleared with the model's


def test_the_example() -> None:
    path = Path(__file__).parents[2] / "examples" / "hugging_face.py"
    results = runpy.run_path(str(path))["main"](steps=60)
    assert results["equal weights"]["eval_accuracy"] < 0.5
    assert results["EMA + IMTL-G"]["eval_accuracy"] > 0.95
    assert results["EMA + IMTL-G"]["eval_euros"] < results["equal weights"]["eval_euros"] + 5
