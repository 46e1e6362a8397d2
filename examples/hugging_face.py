"""A text model with two heads under Hugging Face's Trainer: which product is it about, and what did it cost?

    python examples/hugging_face.py

The model is made here, with random weights, and so are its texts. The losses are of very different size (a
cross-entropy, and a squared error in euros): with equal weights, the price decides where the shared layers go.
What differs from ordinary use of the Trainer is `model.balancer`, and the scalar that `compute_loss` returns. As a
part of the model the balancer is evaluated, saved and resumed with it, and what it learns goes to the same optimizer.
"""

import tempfile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import BertConfig, BertModel, BertPreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import EvalPrediction

import equipoise as eq

TASKS = ["product", "price"]
FIRST, PRODUCTS, LENGTH = 30, 5, 10  # words 1 to 10 are numbers, those from 30 on products, the others fillers


def review() -> dict[str, Tensor]:
    words = torch.randint(11, FIRST, (LENGTH,))
    (where, other), number, product = torch.randperm(LENGTH)[:2], torch.randint(10, ()), torch.randint(PRODUCTS, ())
    words[where], words[other] = 1 + number, FIRST + product
    return {"input_ids": words, "product": product, "price": 10.0 * number}


class TwoHeads(BertPreTrainedModel):
    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.heads = nn.ModuleDict(
            {"product": nn.Linear(config.hidden_size, PRODUCTS), "price": nn.Linear(config.hidden_size, 1)}
        )
        self.post_init()

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        states = self.bert(input_ids).last_hidden_state.mean(1)
        return {"product": self.heads["product"](states), "price": self.heads["price"](states)[:, 0]}


class MultiTaskTrainer(Trainer):
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(inputs["input_ids"])
        losses = {
            "product": cross_entropy(outputs["product"], inputs["product"]),
            "price": mse_loss(outputs["price"], inputs["price"]),
        }
        loss = self.model.balancer(losses)  # for MAO: optimizer.loss(losses)
        return (loss, outputs) if return_outputs else loss


def metrics(evaluated: EvalPrediction) -> dict[str, float]:
    (logits, prices), (products, paid) = evaluated.predictions, evaluated.label_ids
    return {"accuracy": (logits.argmax(1) == products).mean(), "euros": abs(prices - paid).mean()}


def trained(balancer: eq.Balancer, steps: int) -> dict[str, float]:
    set_seed(0)
    config = BertConfig(
        vocab_size=FIRST + PRODUCTS, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    model = TwoHeads(config)
    model.balancer = balancer
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=64,
            learning_rate=5e-3,
            label_names=TASKS,
            remove_unused_columns=False,
            report_to="none",
            save_strategy="no",
        )
        train, test = ([review() for _ in range(count)] for count in (2000, 300))
        trainer = MultiTaskTrainer(model, arguments, train_dataset=train, eval_dataset=test, compute_metrics=metrics)
        trainer.train()
        return trainer.evaluate()


def main(steps: int = 200) -> dict[str, dict[str, float]]:
    balancers = {
        "equal weights": eq.Balancer(TASKS),
        "EMA + IMTL-G": eq.Balancer(TASKS, eq.EMA(), eq.IMTLG()),
    }
    results = {name: trained(balancer, steps) for name, balancer in balancers.items()}
    for name, found in results.items():
        print(f"{name:14}  product {found['eval_accuracy']:.1%}  price off by {found['eval_euros']:.1f} euros")
    return results


if __name__ == "__main__":
    main()
