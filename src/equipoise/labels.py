"""Labels that are missing for some samples: means over the labelled ones, and how many there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Computes the mean of the values that have a label.

    Where none has, the result is 0 and still has a graph, so that the loss of every task can always be written down;
    pass `count_labels` as `counts` to `backward`, and a task without a label is left out of the step.

    Values without a label may be anything, NaN too. Their *gradient* is 0 as it leaves this function, but the backward
    pass of what made a NaN may turn it into NaN again: fill missing labels with a finite number.

    Args:
        values: a loss a sample, or a pixel: with `reduction="none"`.
        mask: true or nonzero where there is a label. Of the values' shape, or of its first dimensions, and then it is
            for all that belongs to a sample.

    Returns:
        0-dim; float32 for values of half precision.

    Raises:
        TypeError: one of them is no tensor.
        ValueError: the mask's shape is not that of the values' first dimensions.

    Example:
        >>> import torch, equipoise as eq
        >>> eq.masked_mean(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, False, True]))
        tensor(3.5000)
    """
    if not isinstance(values, Tensor) or not isinstance(mask, Tensor):
        found = ", ".join(type(given).__name__ for given in (values, mask))
        raise TypeError(f"masked_mean takes two tensors, values and mask, found {found}.")
    if mask.shape != values.shape[: mask.dim()]:
        raise ValueError(
            f"mask must have the shape of values {tuple(values.shape)}, or of its first dimensions, "
            f"found {tuple(mask.shape)}."
        )
    labelled = mask.to(values.device, torch.bool, non_blocking=True)
    labelled = labelled.reshape((*mask.shape, *[1] * (values.dim() - mask.dim()))).expand(values.shape)
    dtype = torch.promote_types(values.dtype, torch.float32)
    total = torch.where(labelled, values, 0).sum(dtype=dtype)
    return total / labelled.sum().clamp(min=1)


def count_labels(masks: Mapping[str, Tensor]) -> Mapping[str, int]:
    """Counts every task's labels, for `counts=` of `backward`.

    Masks on the CPU, as loaders give them, are counted at once. For masks on an accelerator the numbers are sent to
    the host, which looks at them only when `backward` asks. Call it before the forward pass: then they have arrived
    by that time, and nothing waits.

    Args:
        masks: task → tensor, true or nonzero where there is a label; the one passed to `masked_mean`.

    Returns:
        Task → number of labels.

    Raises:
        TypeError: `masks` is not a mapping of tensors.

    Example:
        >>> import torch, equipoise as eq
        >>> dict(eq.count_labels({"depth": torch.tensor([1, 0, 1]), "normals": torch.tensor([0, 0, 0])}))
        {'depth': 2, 'normals': 0}
    """
    if not isinstance(masks, Mapping) or not all(isinstance(mask, Tensor) for mask in masks.values()):
        raise TypeError(f"masks must be a mapping from task to tensor, found {masks!r}.")
    return _Counts({task: torch.count_nonzero(mask) for task, mask in masks.items()})


class _Counts(Mapping[str, int]):
    """Numbers on their way to the host; reading the first one waits for all."""

    def __init__(self, counts: Mapping[str, Tensor]) -> None:
        self._copies = {task: count.to("cpu", non_blocking=True) for task, count in counts.items()}
        self._arrivals = []
        for device in {count.device for count in counts.values() if count.device.type != "cpu"}:
            arrival = torch.Event(device)
            arrival.record(torch.accelerator.current_stream(device))
            self._arrivals.append(arrival)

    def __getitem__(self, task: str) -> int:
        while self._arrivals:
            self._arrivals.pop().synchronize()
        return int(self._copies[task])

    def __iter__(self) -> Iterator[str]:
        return iter(self._copies)

    def __len__(self) -> int:
        return len(self._copies)
