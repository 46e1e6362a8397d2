"""Training on a handful of samples, to see that a problem's network can learn its tasks at all."""

import torch


def assert_learns(problem, samples, count):
    """Every task's loss on the first samples falls by a quarter in 25 steps; returns the network and the last batch."""
    torch.manual_seed(0)
    model = problem.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    first = None
    for _ in range(25):
        batch = samples[list(range(count))]
        predictions = problem.predict(model, batch)
        losses = [task.loss(predictions, batch) for task in problem.tasks]
        first = first or [loss.item() for loss in losses]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    assert all(loss.item() < 0.75 * start for loss, start in zip(losses, first, strict=True))
    return model, batch
