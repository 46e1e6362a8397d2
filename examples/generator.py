"""A conditional GAN: a generator with three losses, a discriminator with two, each with a Balancer and an optimizer.

    python examples/generator.py

Of scikit-learn's digits the generator sees the upper half and draws the lower one, as in pix2pix. Its losses are the
adversarial one, the reconstruction error, and the difference of the discriminator's features; pix2pix weighs the second
by 100, which holds for the scales of its losses. Here EMA takes the scales out, and a priority says how much more the
reconstruction is wanted. Two of the losses go through the discriminator, which is not trained in this step: with
`model=generator` it has no say in what the aggregator does.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import softplus

import equipoise as eq

GENERATOR_TASKS = ["adversarial", "reconstruction", "features"]
DISCRIMINATOR_TASKS = ["real", "drawn"]


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(32 + 8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())
        self.last = nn.Linear(128, 32)

    def forward(self, upper: Tensor) -> Tensor:
        noise = torch.randn(len(upper), 8, dtype=upper.dtype)
        return self.last(self.trunk(torch.cat([upper, noise], 1))).sigmoid()


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 64), nn.LeakyReLU(0.2))
        self.head = nn.Linear(64, 1)

    def forward(self, upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(torch.cat([upper, lower], 1))
        return features, self.head(features)


def generator_losses(generator: Generator, discriminator: Discriminator, upper: Tensor, lower: Tensor) -> dict:
    drawn = generator(upper)
    features, score = discriminator(upper, drawn)
    with torch.no_grad():
        wanted, _ = discriminator(upper, lower)
    return {
        "adversarial": softplus(-score).mean(),
        "reconstruction": (drawn - lower).abs().mean(),
        "features": (features - wanted).abs().mean(),
    }


def discriminator_losses(generator: Generator, discriminator: Discriminator, upper: Tensor, lower: Tensor) -> dict:
    with torch.no_grad():
        drawn = generator(upper)
    _, real = discriminator(upper, lower)
    _, false = discriminator(upper, drawn)
    return {"real": softplus(-real).mean(), "drawn": softplus(false).mean()}


def main(steps: int = 1500) -> dict[str, float]:
    torch.manual_seed(0)
    digits = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    seen, unseen = digits[:1400], digits[1400:]
    generator, discriminator = Generator(), Discriminator()
    judging = eq.Balancer(DISCRIMINATOR_TASKS, model=discriminator)
    drawing = eq.Balancer(
        GENERATOR_TASKS,
        eq.EMA(),
        eq.PCGrad(),
        priorities={"reconstruction": 4.0},
        model=generator,
        probe=generator.last,
    )
    players = [
        (discriminator_losses, judging, torch.optim.Adam(discriminator.parameters(), lr=5e-4, betas=(0.5, 0.999))),
        (generator_losses, drawing, torch.optim.Adam(generator.parameters(), lr=5e-4, betas=(0.5, 0.999))),
    ]
    for step in range(steps):
        upper, lower = seen[torch.randint(len(seen), (64,))].split(32, 1)
        for losses_of, balancer, optimizer in players:
            losses = losses_of(generator, discriminator, upper, lower)
            optimizer.zero_grad()  # here: the generator's losses have left gradients in the discriminator
            weights = balancer.backward(losses)
            optimizer.step()
        if step % 500 == 0:
            print(f"step {step}:", {task: f"loss {losses[task]:.3f}, weight {weights[task]:.2f}" for task in losses})

    upper, lower = unseen.split(32, 1)
    with torch.no_grad():
        drawn = generator(upper)
    error, contrast = (drawn - lower).abs().mean().item(), (drawn.std(0).mean() / lower.std(0).mean()).item()
    print(f"on digits not seen: error {error:.3f}, contrast {contrast:.3f} of theirs")
    return {"error": error, "contrast": contrast}


if __name__ == "__main__":
    main()
