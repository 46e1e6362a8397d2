"""LoRA fine-tuning of a frozen language model on several data sets, each a task.

    python examples/language_model.py

The base, a tiny GPT-2 of random weights, and the data sets are made here: texts that count up, down and in steps of
three, each begun by a token that says which. Their losses are negative log-likelihoods of whole texts, so that with
equal weights the long ones decide. All data sets train the same LoRA matrices, and the frozen base takes no part.
`MixedLoader` gives a batch of every data set in each step, so that an aggregator has their gradients side by side.
"""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

import equipoise as eq

STEPS = {"up": 1, "down": -1, "threes": 3}
LENGTHS = {"up": 40, "down": 12, "threes": 4}
NUMBERS = 20


def texts(task: str, count: int) -> Tensor:
    """Token ids `[count, 1 + length]`: which data set, and numbers that go on from a random one."""
    numbers = torch.randint(NUMBERS, (count, 1)) + STEPS[task] * torch.arange(LENGTHS[task])
    begin = torch.full((count, 1), NUMBERS + list(STEPS).index(task))
    return torch.cat([begin, numbers % NUMBERS], 1)


def lora_model() -> PeftModel:
    sizes = {
        "n_embd": 48,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 1 + max(LENGTHS.values()),
        "vocab_size": NUMBERS + len(STEPS),
    }
    base = GPT2LMHeadModel(
        GPT2Config(**sizes, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0)
    )
    lora = LoraConfig(r=8, target_modules=["c_attn", "c_fc", "c_proj"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    return get_peft_model(base, lora)


def losses_of(model: PeftModel, batches: dict[str, Tensor]) -> dict[str, Tensor]:
    return {task: LENGTHS[task] * model(input_ids=ids, labels=ids).loss for task, ids in batches.items()}


@torch.no_grad()
def accuracies_of(model: PeftModel) -> dict[str, float]:
    """How many numbers are the right ones, the first left out, of which nothing can be known."""
    found = {}
    for task in STEPS:
        ids = texts(task, 100)
        right = model(input_ids=ids).logits[:, 1:-1].argmax(-1) == ids[:, 2:]
        found[task] = right.float().mean().item()
    return found


def trained(balancer: eq.Balancer, epochs: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = lora_model()
    loader = eq.MixedLoader({task: DataLoader(texts(task, 500), 25, shuffle=True) for task in STEPS})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(epochs):
        for batches in loader:
            balancer.backward(losses_of(model, batches))
            optimizer.step()
            optimizer.zero_grad()
    return accuracies_of(model)


def main(epochs: int = 3) -> dict[str, dict[str, float]]:
    balancers = {
        "equal weights": eq.Balancer(list(STEPS)),
        "EMA": eq.Balancer(list(STEPS), eq.EMA()),
        "IMTL-G": eq.Balancer(list(STEPS), aggregator=eq.IMTLG()),
    }
    results = {name: trained(balancer, epochs) for name, balancer in balancers.items()}
    for name, accuracies in results.items():
        print(f"{name:14}", {task: f"{accuracy:.1%}" for task, accuracy in accuracies.items()})
    return results


if __name__ == "__main__":
    main()
