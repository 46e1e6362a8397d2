"""What every problem whose data ship inside a package is held to."""

import torch

from equipoise.bench.problems import Problem, Splits

SPLITS = ("train", "validation", "test")


def joined(data: Splits, name: str) -> torch.Tensor:
    """What is under a name, over all splits in their order."""
    return torch.cat([getattr(data, split).tensors[name] for split in SPLITS])


def assert_standardised(data: Splits, atol: float) -> None:
    """The training features have mean 0 and deviation 1 (0 where all are the same); the others nearly."""
    inputs = data.train.tensors["input"].double()
    torch.testing.assert_close(inputs.mean(0), torch.zeros_like(inputs[0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(inputs.std(0), torch.ones_like(inputs[0]), rtol=0, atol=1e-3)
    test = data.test.tensors["input"].double()
    assert 1e-6 < test.mean(0).abs().max() < atol  # by the training split's numbers, not by its own


def assert_trains(problem: Problem, data: Splits) -> None:
    """Every task has a finite loss that reaches the shared part and its own head, and metrics with its measures."""
    torch.manual_seed(0)
    network = problem.model()
    batch = data.train[list(range(64))]
    predictions = problem.predict(network, batch)
    losses = {task.name: task.loss(predictions, batch) for task in problem.tasks}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    shared = next(iter(network.shared_parameters()))
    for loss in losses.values():
        (gradient,) = torch.autograd.grad(loss, shared, retain_graph=True)
        assert gradient.any()
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.eval()
    evaluated = data.test[list(range(len(data.test)))]
    with torch.no_grad():
        predictions = problem.predict(network, evaluated)
    for task in problem.tasks:
        metrics = task.metrics()
        task.update(metrics, predictions, evaluated)
        values = {name: float(value) for name, value in metrics.compute().items()}
        assert {measure.name for measure in task.measures} == values.keys()
        assert 0 <= task.accuracy(values) <= 1
