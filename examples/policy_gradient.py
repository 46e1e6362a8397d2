"""A language model by policy gradient (GRPO) on several reward terms, each a task.

    python examples/policy_gradient.py

The policy, a tiny GPT-2 made here, answers a number with six numbers. It is to repeat the number first (which it does
once in twenty times before it has learned it), to say even numbers, and to say them in ascending order. Each reward is
normalised within the group of answers to the same question, so that its scale does not matter. What still differs is
how large the gradients are: where the terms are summed, the two that are easy leave nothing to explore for the third.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

import equipoise as eq

NUMBERS, LENGTH = 20, 6
QUESTIONS, GROUP = 16, 16
TERMS = ["repeats", "even", "ascending"]


def make_policy() -> GPT2LMHeadModel:
    sizes = {"n_embd": 48, "n_layer": 2, "n_head": 2, "n_positions": 1 + LENGTH, "vocab_size": NUMBERS}
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **no_dropout, bos_token_id=None, eos_token_id=None))


def rewards_of(questions: Tensor, answers: Tensor) -> dict[str, Tensor]:
    """The terms' rewards `[QUESTIONS * GROUP]`."""
    return {
        "repeats": (answers[:, 0] == questions).float(),
        "even": (answers % 2 == 0).float().mean(1),
        "ascending": (answers.diff(dim=1) >= 0).float().mean(1),
    }


def normalised(rewards: Tensor) -> Tensor:
    """Advantages: how much better than the other answers to the same question, in standard deviations."""
    groups = rewards.view(-1, GROUP)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def losses_of(
    policy: GPT2LMHeadModel, questions: Tensor, answers: Tensor, rewards: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The policy-gradient loss of every term; one forward pass. A term that rewards all answers alike has none."""
    logits = policy(torch.cat([questions[:, None], answers], 1)).logits[:, :-1]
    likelihood = -cross_entropy(logits.flatten(0, 1), answers.flatten(), reduction="none").view_as(answers).sum(1)
    advantages = {term: normalised(reward) for term, reward in rewards.items()}
    return {term: -(advantage * likelihood).mean() for term, advantage in advantages.items() if advantage.any()}


def trained(balancer: eq.Balancer, steps: int) -> dict[str, float]:
    torch.manual_seed(0)
    policy = make_policy()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
    for _ in range(steps):
        questions = torch.randint(NUMBERS, (QUESTIONS,)).repeat_interleave(GROUP)
        answers = policy.generate(questions[:, None], do_sample=True, top_k=0, max_new_tokens=LENGTH)[:, 1:]
        rewards = rewards_of(questions, answers)
        losses = losses_of(policy, questions, answers, rewards)
        if losses:
            balancer.backward(losses)
            optimizer.step()
            optimizer.zero_grad()
    return {term: reward.mean().item() for term, reward in rewards.items()}


def main(steps: int = 80) -> dict[str, dict[str, float]]:
    balancers = {
        "summed": eq.Balancer(TERMS),
        "IMTL-G": eq.Balancer(TERMS, aggregator=eq.IMTLG()),
        "CAGrad": eq.Balancer(TERMS, aggregator=eq.CAGrad()),
    }
    results = {name: trained(balancer, steps) for name, balancer in balancers.items()}
    for name, rewards in results.items():
        print(f"{name:8}", {term: f"{reward:.2f}" for term, reward in rewards.items()})
    return results


if __name__ == "__main__":
    main()
