"""The examples with language models: PEFT's LoRA on several data sets, and several reward terms."""

from __future__ import annotations

import copy
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import assert_same
from torch import Tensor, nn
from torch.utils.data import DataLoader

import equipoise as eq

pytest.importorskip("peft")
pytest.importorskip("transformers")
from transformers import Trainer, TrainingArguments

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def tuning() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / "language_model.py"))


@pytest.fixture(scope="module")
def rewarding() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / "policy_gradient.py"))


def rows(model: nn.Module, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    trained = [p for p in model.parameters() if p.requires_grad]
    return {
        task: torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained, retain_graph=True)])
        for task, loss in losses.items()
    }


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


def assert_equal_say(found: Tensor, rows: dict[str, Tensor]) -> None:
    """IMTL-G: the update has the same length along every task's gradient, whose own lengths differ."""
    lengths = torch.stack([row.norm() for row in rows.values()])
    assert lengths.max() > 1.5 * lengths.min()
    along = torch.stack([found @ row / row.norm() for row in rows.values()])
    torch.testing.assert_close(along, along.mean().expand_as(along), rtol=1e-3, atol=0)


def test_a_step_of_lora_on_several_data_sets(tuning: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = tuning["lora_model"]()
    with torch.no_grad():  # the second factors of LoRA begin at 0, and so do the gradients of the first
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn_like(p))
    before = copy.deepcopy(model.state_dict())
    losses = tuning["losses_of"](model, {task: tuning["texts"](task, 8) for task in tuning["STEPS"]})
    expected = rows(model, losses)
    balancer = eq.Balancer(list(losses), aggregator=eq.IMTLG(), model=model)
    weights = balancer.backward(losses)
    assert_equal_say(gradient(model), expected)
    torch.testing.assert_close(gradient(model), sum(weights[task] * row for task, row in expected.items()))
    for name, p in model.named_parameters():
        assert p.requires_grad == ("lora_" in name)
        assert (p.grad is None) == ("lora_" not in name)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_" in name}


def test_balanced_data_sets_all_learn(tuning: dict[str, Any]) -> None:
    results = tuning["main"](epochs=1)
    assert results["equal weights"]["threes"] < 0.1
    for name in ("EMA", "IMTL-G"):
        assert min(results[name].values()) > 0.35


def test_reward_terms(rewarding: dict[str, Any]) -> None:
    torch.manual_seed(0)
    advantages = rewarding["normalised"](torch.tensor([0.0, 1.0] * 8 + [3.0] * 16))
    torch.testing.assert_close(advantages[:16].abs(), torch.full((16,), (15 / 16) ** 0.5), rtol=1e-3, atol=0)
    assert not advantages[16:].any()
    policy = rewarding["make_policy"]()
    questions = torch.randint(20, (16,)).repeat_interleave(16)
    answers = torch.randint(20, (256, 6))
    rewards = rewarding["rewards_of"](questions, answers)
    losses = rewarding["losses_of"](policy, questions, answers, rewards)
    expected = rows(policy, losses)
    eq.Balancer(rewarding["TERMS"]).backward(losses, retain_graph=True)
    summed = sum(rewarding["normalised"](reward) for reward in rewards.values())
    logits = policy(torch.cat([questions[:, None], answers], 1)).logits[:, :-1]
    likelihood = logits.log_softmax(-1).gather(2, answers[..., None]).sum((1, 2))
    (plain,) = rows(policy, {"summed": -(summed * likelihood).mean()}).values()
    torch.testing.assert_close(gradient(policy), plain, rtol=1e-4, atol=1e-7)
    policy.zero_grad()
    eq.Balancer(rewarding["TERMS"], aggregator=eq.IMTLG()).backward(losses)
    assert_equal_say(gradient(policy), expected)
    rewards["even"] = torch.ones(256)
    assert list(rewarding["losses_of"](policy, questions, answers, rewards)) == ["repeats", "ascending"]


def test_training_by_reward_terms(rewarding: dict[str, Any]) -> None:
    results = rewarding["main"](steps=15)
    assert set(results) == {"summed", "IMTL-G", "CAGrad"}
    assert results["IMTL-G"]["repeats"] > results["summed"]["repeats"]


class Tuned(Trainer):
    """Of which every batch has a text of each data set."""

    losses_of: Any = None

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        return self.model.balancer(self.losses_of(model, inputs))

    def get_train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_dataset, batch_size=4)


def test_lora_in_their_trainer_goes_on_bit_for_bit(tuning: dict[str, Any], tmp_path: Path) -> None:
    """A PEFT model's checkpoint is the adapter alone: the balancer is kept with the optimizer."""

    def made(steps: int) -> Trainer:
        torch.manual_seed(0)
        model = tuning["lora_model"]()
        balancer = model.balancer = eq.Balancer(list(tuning["STEPS"]), eq.EMA(), eq.PCGrad())
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

        def load(_: Any, state: dict[str, Any]) -> None:
            balancer.load_state_dict(state["balancer"])

        optimizer.register_state_dict_post_hook(lambda _, state: state | {"balancer": balancer.state_dict()})
        optimizer.register_load_state_dict_pre_hook(load)
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=steps,
            lr_scheduler_type="constant",
            save_steps=3,
            remove_unused_columns=False,
            report_to="none",
            use_cpu=True,
        )
        texts = [tuning["texts"](task, 24) for task in tuning["STEPS"]]
        data = [dict(zip(tuning["STEPS"], row, strict=True)) for row in zip(*texts, strict=True)]
        trainer = Tuned(model, arguments, train_dataset=data, optimizers=(optimizer, None))
        trainer.losses_of = tuning["losses_of"]
        return trainer

    whole, stopped, resumed = made(6), made(3), made(6)
    whole.train()
    stopped.train()
    torch.manual_seed(1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert_same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
