"""A text model with two heads, in a loop of one's own: what is it about, and did they like it?

    python examples/text.py

The corpus is made here: short reviews of three kinds of things. Both heads share the embedding and a GRU. The one
line that differs from ordinary training is `balancer.backward(losses)`.
"""

import random

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

import equipoise as eq

THINGS = {
    "film": ["plot", "actor", "scene", "film"],
    "meal": ["soup", "dish", "waiter", "meal"],
    "phone": ["screen", "battery", "camera", "phone"],
}
OPINIONS = {"bad": ["awful", "weak", "boring", "poor"], "good": ["lovely", "great", "superb", "fine"]}
FILLERS = ["the", "was", "really", "and", "we", "thought", "its", "quite", "today", "again"]
WORDS = sorted({"not", *FILLERS, *(word for words in (THINGS | OPINIONS).values() for word in words)})
NUMBERS = {word: number for number, word in enumerate(WORDS, 1)}  # 0 is padding

Review = tuple[Tensor, int, int]


def review(source: random.Random) -> Review:
    """Words, topic, sentiment. "Not" before the opinion turns it around, so that order matters."""
    topic, opinion, negated = source.randrange(3), source.randrange(2), source.random() < 0.3
    words = [source.choice(FILLERS) for _ in range(source.randint(4, 10))]
    words.insert(source.randrange(len(words)), source.choice(list(THINGS.values())[topic]))
    said = [*["not"] * negated, source.choice(list(OPINIONS.values())[opinion])]
    place = source.randrange(len(words))
    words[place:place] = said
    return torch.tensor([NUMBERS[word] for word in words]), topic, opinion ^ negated


def collate(reviews: list[Review]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    words, topics, sentiments = zip(*reviews, strict=True)
    lengths = torch.tensor([len(w) for w in words])
    labels = {"topic": torch.tensor(topics), "sentiment": torch.tensor(sentiments)}
    return pad_sequence(words, batch_first=True), lengths, labels


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS) + 1, 16, padding_idx=0)
        self.gru = nn.GRU(16, 32, batch_first=True)
        self.heads = nn.ModuleDict({"topic": nn.Linear(32, len(THINGS)), "sentiment": nn.Linear(32, len(OPINIONS))})

    def forward(self, words: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        states, _ = self.gru(self.embedding(words))
        last = states[torch.arange(len(words)), lengths - 1]
        return {task: head(last) for task, head in self.heads.items()}


def main(epochs: int = 6) -> dict[str, float]:
    torch.manual_seed(0)
    source = random.Random(0)
    train, test = ([review(source) for _ in range(count)] for count in (1500, 300))
    loader = DataLoader(train, batch_size=32, shuffle=True, collate_fn=collate)

    model = Reader()
    balancer = eq.Balancer(["topic", "sentiment"], aggregator=eq.PCGrad())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for epoch in range(epochs):
        for words, lengths, labels in loader:
            outputs = model(words, lengths)
            losses = {task: cross_entropy(outputs[task], labels[task]) for task in outputs}
            weights = balancer.backward(losses)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch + 1}:", {task: f"loss {losses[task]:.3f}, weight {weights[task]:.2f}" for task in losses})

    words, lengths, labels = collate(test)
    with torch.no_grad():
        outputs = model(words, lengths)
    accuracies = {task: (outputs[task].argmax(1) == labels[task]).float().mean().item() for task in outputs}
    print("accuracy on reviews not trained on:", {task: f"{accuracy:.1%}" for task, accuracy in accuracies.items()})
    return accuracies


if __name__ == "__main__":
    main()
