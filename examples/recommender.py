"""A recommender: sparse embedding tables, a click for every impression, a conversion for those alone that were clicked.

    python examples/recommender.py

Users, items and each user's last items are looked up in `EmbeddingBag(sparse=True)` tables. Whether a click becomes a
conversion is known of one impression in eight: `masked_mean` takes that loss over them, and `count_labels` says how
many there are. The tables' balanced gradients are sparse, and go to SparseAdam; the rest goes to AdamW. In the end,
steps are timed with these tables, and with tables of 100 times as many rows.
"""

import time

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import equipoise as eq

TASKS = ["click", "conversion"]
USERS, ITEMS, WIDTH = 1000, 400, 16
Batch = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


class Recommender(nn.Module):
    """A shared bottom with two towers; ids are hashed into tables of `rows` rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows
        self.tables = nn.ModuleDict(
            {name: nn.EmbeddingBag(rows, WIDTH, mode="mean", sparse=True) for name in ("user", "item", "history")}
        )
        self.bottom = nn.Sequential(nn.Linear(3 * WIDTH, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.towers = nn.ModuleDict({task: nn.Linear(64, 1) for task in TASKS})

    def forward(self, ids: dict[str, Tensor]) -> dict[str, Tensor]:
        found = [table(ids[name] * 2654435761 % self.rows) for name, table in self.tables.items()]
        z = self.bottom(torch.cat(found, 1))
        return {task: tower(z).squeeze(1) for task, tower in self.towers.items()}


def impressions(count: int, source: torch.Generator) -> Batch:
    """Ids, labels, and which labels are known. Who clicks and who buys are different things."""
    taste, budget = torch.randn(2, USERS, 1, generator=torch.Generator().manual_seed(1))
    topic, price = torch.randn(2, ITEMS, 1, generator=torch.Generator().manual_seed(2))
    user, item = (torch.randint(n, (count,), generator=source) for n in (USERS, ITEMS))
    history = (user[:, None] * 31 + torch.randint(8, (count, 5), generator=source)) % ITEMS
    click = torch.sigmoid(2 * (taste[user] * topic[item])[:, 0] - 2.5)
    conversion = torch.sigmoid(2 * (budget[user] - price[item])[:, 0])
    drawn = torch.rand(2, count, generator=source) < torch.stack([click, conversion])
    ids = {"user": user[:, None], "item": item[:, None], "history": history}
    labels = {"click": drawn[0].float(), "conversion": (drawn[0] & drawn[1]).float()}
    return ids, labels, {"click": torch.ones(count, dtype=torch.bool), "conversion": drawn[0]}


class Training:
    def __init__(self, rows: int) -> None:
        torch.manual_seed(0)
        self.model = Recommender(rows)
        self.balancer = eq.Balancer(TASKS, eq.EMA(), eq.PCGrad(), model=self.model)
        dense = [*self.model.bottom.parameters(), *self.model.towers.parameters()]
        tables = list(self.model.tables.parameters())
        self.optimizers = [torch.optim.SparseAdam(tables, lr=1e-2), torch.optim.AdamW(dense, lr=3e-3)]

    def step(self, batch: Batch) -> None:
        ids, labels, known = batch
        counts = eq.count_labels(known)
        logits = self.model(ids)
        each = {t: binary_cross_entropy_with_logits(logits[t], labels[t], reduction="none") for t in TASKS}
        self.balancer.backward({t: eq.masked_mean(each[t], known[t]) for t in TASKS}, counts=counts)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()


def main(steps: int = 800, rows: int = 20_000) -> dict[str, float]:
    source = torch.Generator().manual_seed(0)
    training = Training(rows)
    for _ in range(steps):
        training.step(impressions(256, source))
    ids, labels, known = impressions(20_000, source)
    with torch.no_grad():
        logits = training.model(ids)
    areas = {t: float(roc_auc_score(labels[t][known[t]], logits[t][known[t]])) for t in TASKS}
    print("area under the ROC curve on new impressions:", {task: f"{value:.3f}" for task, value in areas.items()})
    return areas


def step_times(*sizes: int) -> None:
    source = torch.Generator().manual_seed(0)
    runs = {rows: (Training(rows), []) for rows in sizes}
    for _ in range(100):
        for training, seconds in runs.values():  # in turn
            batch, start = impressions(256, source), time.perf_counter()
            training.step(batch)
            seconds.append(time.perf_counter() - start)
    for rows, (_, seconds) in runs.items():
        print(f"three tables of {rows:,} rows: {1000 * min(seconds):.1f} ms the fastest step")


if __name__ == "__main__":
    main()
    step_times(20_000, 2_000_000)
