"""BalanceMonitor: looks at what balancing does, every n steps of any training loop."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from equipoise._method import Method
from equipoise.balancer import Balancer
from equipoise.gradients.graph.wrappers import parameter_names
from equipoise.gradients.jacobian import TaskRows
from equipoise.gradients.micro_batches import add_rows
from equipoise.gradients.ranks import Alone
from equipoise.gradients.shards import is_sharded
from equipoise.gradients.step import Step
from equipoise.monitor.rates import check_optimizer
from equipoise.monitor.recording import Record, Recording
from equipoise.monitor.sums import Sums, fetch, remainder
from equipoise.monitor.writers import as_writers
from equipoise.optim import BalancingOptimizer

DIGITS = 4
"""Of the cosines by layer, which are most of a file."""


class BalanceMonitor:
    """Records every n steps how much each task moves each layer, and how far the tasks agree.

    It attaches to the method when it is made; the loop stays as it is. A sample holds, per task and layer,

    - `gradient`: the norm of the task's gradient, times its weight, on the layer's parameters;
    - `contribution`: how far the task moves an element of the layer in this step, the mean over the layer of
      `|w_k g_k| · η / (√v̂ + ε)` with the optimizer's `v̂` after the step; with MAO `|g_k| · η / (√v̂_k + ε)` with the
      task's own (see `equipoise.monitor.rates` for other optimizers);

    and of the shared parameters

    - `weights`: the weight of each task, as `backward` returns it;
    - `cosines` `[K, K]`: between the tasks' gradients; negative where two tasks conflict;
    - `layer_cosines`: the same of every layer by itself, a number for every pair of tasks (1 and 2, 1 and 3, …, 2 and
      3, …), to four digits; None for a layer that no two tasks reach.

    None stands for what there is not: a task without a label in this step, a layer that the task does not reach. A
    layer is a module that holds parameters of its own, called as `model.named_modules()` calls it. Its numbers are of
    the parameters that the task reaches, so heads are their own task's; cosines are of parameters that two or more
    tasks reach. Nothing about the training changes: not its numbers, its random state or `.grad`.

    Where the method runs a backward pass a task (aggregators, MAO and its kin), a sample takes the gradients there.
    Otherwise it runs one more on shared parameters for each task but one, whose gradient is what the others leave of
    the sum; for that one it takes the task with the largest gradient at the sample before, so that next to nothing is
    lost to rounding. With `accumulate=True`, or gradients that were not cleared, it runs all K. A sample keeps the K
    task gradients until the optimizer's step. Of a scalar (`balancer(losses)`) the numbers are those before a factor
    that reaches it, and of several in a step those of the last one, for each is balanced by itself.

    MAO: with `groups`, what is recorded is of groups in place of tasks, for a group has one gradient and one set of
    moments. With `streaming=True` the gradients are never there together: cosines are None. With `max_norm`, gradients
    are as clipped. What clips `.grad` between `backward` and the step, the monitor does not see: contributions are then
    too large by the factor of clipping, for all tasks alike. On several ranks, make a monitor on each of them: the
    numbers are those of all ranks' samples together, and the first rank writes them.

    Args:
        method: what `make_method` gives, a Balancer with its `optimizer=`, or an optimizer that balances by itself.
        model: the model that is trained, wrapped or not.
        every: steps of the optimizer from one sample to the next; the first step is sampled.
        writers: where samples go as they are made: a path (one JSON line each, for `read_monitor`), a TensorBoard
            SummaryWriter, a Lightning logger, or several of these.
        optimizer: the optimizer that steps after `Balancer.backward`: Adam, AdamW, RMSprop, Adagrad or SGD.

    Attributes:
        recording: all samples so far, with their means over layers and steps; see `Recording`.

    Raises:
        TypeError: `method` or a writer is something else; an optimizer whose effective learning rates are not known.
        ValueError: the optimizer is missing, or holds no parameter of the model; every < 1; the model is sharded by
            `fully_shard`; the method has a monitor already; a path is of another recording's file.

    Example:
        >>> import torch, equipoise as eq
        >>> model = torch.nn.Linear(4, 2)
        >>> method = eq.make_method("ew", model, ["left", "right"])
        >>> monitor = eq.BalanceMonitor(method, model, every=1)
        >>> left, right = model(torch.randn(8, 4)).square().mean(0)
        >>> weights = method.backward({"left": left, "right": right})
        >>> method.step()
        >>> monitor.records[0]["weights"]
        {'left': 1.0, 'right': 1.0}
    """

    def __init__(
        self,
        method: Method | Balancer | BalancingOptimizer,
        model: nn.Module,
        every: int = 50,
        writers: Any = (),
        *,
        optimizer: Any = None,
    ) -> None:
        self._balancing, self._optimizer = _parts(method, optimizer)
        if not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a whole number of steps, at least 1; found {every!r}.")
        layers = _layers(model, self._balancing, self._optimizer)
        names = self._balancing.groups if isinstance(self._balancing, BalancingOptimizer) else self._balancing.tasks
        self.recording = Recording(list(names), list(layers), every)
        self._layer = {parameter: index for index, owned in enumerate(layers.values()) for parameter in owned}
        ranks = self._balancing._company.ranks
        first = not ranks.active or torch.distributed.get_rank(ranks.process_group) == 0
        self._balancing.watch(self)
        try:
            self._writers = as_writers(writers, self.recording) if first else []
        except Exception:
            self._balancing.watch(None)
            raise
        self._hook = self._optimizer.register_step_post_hook(self._after_step)
        self._shared: set[Tensor] = set()
        self._norms: dict[str, float] = {}  # of the last sample with the task
        self._weights: dict[str, float] = {}
        self._sample = _Sample()
        self._step = self._next = 0

    @property
    def records(self) -> list[Record]:
        """The samples so far; see `Recording`."""
        return self.recording.records

    @property
    def rows(self) -> TaskRows:
        """The task gradients of a step that is sampled, from `backward` until the optimizer's step; of MAO's, none."""
        return self._sample.rows

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Records how well tasks do, say on validation after an epoch, with the number of steps taken so far.

        Args:
            metrics: task → its metric; some tasks may be left out.

        Raises:
            ValueError: a name is no task's.
        """
        unknown = [task for task in metrics if task not in self.recording.tasks]
        if unknown:
            raise ValueError(f"Metrics are of the tasks {', '.join(self.recording.tasks)}; found {unknown[0]!r}.")
        record = {"step": self._step, "metrics": {task: float(value) for task, value in metrics.items()}}
        self.recording.metrics.append(record)
        for writer in self._writers:
            writer.write(self.recording, record)

    def detach(self) -> None:
        """Ends the recording; what has been recorded stays."""
        self._balancing.watch(None)
        self._hook.remove()
        self._sample = _Sample()

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of steps so far: all that is needed to go on in the same file."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self._step = int(state["step"])
        self._next = math.ceil(self._step / self.recording.every) * self.recording.every
        self._sample = _Sample()

    @property
    def due(self) -> bool:
        """Whether this step is sampled."""
        return self._step >= self._next

    def see_scalar(self) -> None:
        """Begins a new sample; see `Watcher`."""
        self._sample = _Sample()

    @contextmanager
    def around(self, ranks: Alone, step: Step, coefficients: Tensor) -> Iterator[None]:
        """Runs the backward passes of single tasks, before the one of all of them; see `Watcher`."""
        kept = replace(step, retain_graph=True)
        leaves = [[p for p in row if p in self._layer] for row in ranks.leaves(kept)]
        sample = self._begin()
        every = Counter(p for row in leaves for p in row)
        fresh = not step.accumulate and not sample.rows and all(p.grad is None for p in every)
        left = self._left_out(step.tasks, coefficients) if fresh else None  # whose pass is spared
        own = {p for p, count in every.items() if fresh and count == 1}  # one task's: `.grad` is its gradient
        wanted = [[] if index == left else [p for p in row if p not in own] for index, row in enumerate(leaves)]
        found = ranks.rows(kept, wanted, coefficients, reduce=True)
        rows = dict(zip(step.tasks, found, strict=True))
        if left is not None:
            del rows[step.tasks[left]]
        yield
        others = list(rows.values())
        for index, task in enumerate(step.tasks):
            if index == left:
                rows[task] = remainder(leaves[index], others)
            else:
                rows[task] = rows[task] | remainder([p for p in leaves[index] if p in own], [])
        sample.rows = add_rows(sample.rows, step.scale.unscaled({task: rows[task] for task in step.tasks}))

    def see_rows(self, rows: TaskRows) -> None:
        """Copies the task gradients; see `Watcher`."""
        sample = self._begin()
        sample.rows = add_rows(sample.rows, {task: self._own(row, copy=True) for task, row in rows.items()})

    def see_weights(self, weights: Mapping[str, Tensor], shared: Sequence[Tensor]) -> None:
        """Takes the aggregator's weights; see `Watcher`."""
        sample = self._sample
        sample.factors, sample.weighted = dict(weights), set(shared)
        for task in sample.weights.keys() & weights.keys():  # of earlier micro-batches
            sample.weights[task] = sample.weights[task] * weights[task]

    def see_taken(self, optimizer: BalancingOptimizer, rows: TaskRows) -> None:
        """Measures what an optimizer has taken in, while it is there; see `Watcher`."""
        own = {task: self._own(row) for task, row in rows.items()}
        if self._sample.weights.keys() & own.keys():  # streaming, and cleared in place of a step
            self._sample = _Sample()
        self._sample.weights |= dict.fromkeys(own, torch.ones((), device="cpu"))
        self._measure(own)

    def see_result(self, weights: Mapping[str, Tensor]) -> None:
        """Takes the weights, and how `.grad` is left; see `Watcher`."""
        self._sample.weights |= weights
        self._sample.leave()

    def _begin(self) -> _Sample:
        """Returns the sample under way; a new one if gradients have been cleared since, in place of a step."""
        if self._sample.stale:
            self._sample = _Sample()
        return self._sample

    def _own(self, row: Mapping[Tensor, Tensor], copy: bool = False) -> dict[Tensor, Tensor]:
        """Returns the gradients of the parameters that are recorded."""
        return {p: gradient.clone() if copy else gradient for p, gradient in row.items() if p in self._layer}

    def _left_out(self, tasks: Sequence[str], coefficients: Tensor) -> int | None:
        """Returns which task needs no backward pass of its own: the largest one as far as is known, or the only one.

        What the others leave of `.grad` is exact for that one alone: coefficients may differ by more than the digits
        there are. An accelerator is not asked for them.
        """
        if len(tasks) == 1:
            return 0
        known = {index: self._norms[task] for index, task in enumerate(tasks) if task in self._norms}
        if coefficients.device.type == "cpu":
            now = coefficients.abs().tolist()
            known = {index: norm * now[index] / (self._weights[tasks[index]] or 1) for index, norm in known.items()}
        return max(known, key=known.__getitem__, default=None)

    def _after_step(self, *_: object) -> None:
        """After the optimizer's step: completes the sample."""
        if self.due:
            if self._sample.rows:
                self._measure(self._sample.rows)
            if self._sample.sums.norms and self._record():
                self._next = (self._step // self.recording.every + 1) * self.recording.every
            self._sample = _Sample()
        self._step += 1

    def _measure(self, rows: TaskRows) -> None:
        """Measures the rows after the optimizer has taken them."""
        reached = Counter(p for row in rows.values() for p in row)
        self._shared |= {p for p, count in reached.items() if count > 1}
        self._sample.sums.add(rows, self._optimizer, self._shared, self._layer)

    def _record(self) -> bool:
        """Appends the sample to the records; not if a gradient scaler had the optimizer's kernel leave the step out."""
        sample, sums = self._sample, self._sample.sums
        overflow = getattr(self._optimizer, "found_inf", None)
        norms, moved, factors, weights, flat, left_out = fetch(
            [norm for _, _, norm in sums.norms],
            [distance for _, _, distance in sums.moved],
            list(sample.factors.values()),
            list(sample.weights.values()),
            list(sums.products.values()),
            [] if overflow is None else [overflow.reshape(())],
        )
        if any(left_out):
            return False
        factor = dict(zip(sample.factors, map(abs, factors), strict=True))
        totals = {task: [_Total() for _ in self.recording.layers] for task in self.recording.tasks}
        for (task, p, _), norm in zip(sums.norms, norms, strict=True):
            totals[task][self._layer[p]].add_norm(norm * (factor[task] if p in sample.weighted else 1))
        for (task, p, _), distance in zip(sums.moved, moved, strict=True):
            scale = factor[task] if p in sample.weighted else 1
            totals[task][self._layer[p]].add_distance(distance * scale, p.numel())
        weight = dict(zip(sample.weights, weights, strict=True))
        for task in {task for task, _, _ in sums.norms}:
            self._norms[task] = math.sqrt(sum(total.square for total in totals[task]))
            self._weights[task] = abs(weight.get(task, 1.0))
        overall, by_layer = _cosines(self.recording, sums, flat)
        self.recording.records.append(
            {
                "step": self._step,
                "weights": {task: weight.get(task) for task in self.recording.tasks},
                "gradient": {task: [total.norm for total in found] for task, found in totals.items()},
                "contribution": {task: [total.mean_distance for total in found] for task, found in totals.items()},
                "cosines": overall,
                "layer_cosines": by_layer,
            }
        )
        for writer in self._writers:
            writer.write(self.recording, self.recording.records[-1])
        return True


@dataclass
class _Sample:
    """What is kept of a step until the optimizer has taken it.

    Attributes:
        rows: the task gradients; of such optimizers, which are measured at once, nothing.
        weights: what `backward` returned.
        factors: the aggregator's weights, not yet in the rows.
        weighted: the parameters that they are applied on.
        sums: what has been measured.
    """

    rows: TaskRows = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    factors: dict[str, Tensor] = field(default_factory=dict)
    weighted: set[Tensor] = field(default_factory=set)
    sums: Sums = field(default_factory=Sums)
    _mark: tuple[Tensor, int] | None = None

    def leave(self) -> None:
        """Takes note of how `.grad` is left."""
        marked = next((p for row in self.rows.values() for p in row if p.grad is not None), None)
        self._mark = None if marked is None or marked.grad is None else (marked, marked.grad._version)

    @property
    def stale(self) -> bool:
        """Whether the gradients have been cleared, or changed, since."""
        if self._mark is None:
            return False
        marked, version = self._mark
        return marked.grad is None or marked.grad._version != version


@dataclass
class _Total:
    """A task's numbers of a layer, over its parameters."""

    square: float = 0.0
    distance: float = 0.0
    elements: int = 0
    reached: bool = False

    def add_norm(self, norm: float) -> None:
        self.square += norm * norm
        self.reached = True

    def add_distance(self, distance: float, elements: int) -> None:
        self.distance += distance
        self.elements += elements

    @property
    def norm(self) -> float | None:
        return math.sqrt(self.square) if self.reached else None

    @property
    def mean_distance(self) -> float | None:
        return self.distance / self.elements if self.elements else None


def _cosines(
    recording: Recording, sums: Sums, products: Sequence[float]
) -> tuple[list[list[float | None]], list[list[float | None] | None]]:
    """Returns the cosines from the Gramians of the layers.

    Args:
        recording: which tasks and layers there are.
        sums: says of which tasks and layers the Gramians are.
        products: the Gramians' elements, one Gramian after the other.

    Returns:
        `[K][K]` of all layers together, and of every layer a number a pair, or None. None where a gradient is missing
        or 0.
    """
    size = len(sums.tasks)
    gramians = torch.tensor(products, dtype=torch.float64, device="cpu").view(len(sums.products), size, size)
    gramians = torch.cat([gramians.sum(0, keepdim=True), gramians])
    lengths = gramians.diagonal(dim1=1, dim2=2).sqrt()
    overall, *parts = (gramians / lengths[:, :, None] / lengths[:, None, :]).tolist()
    place = {task: index for index, task in enumerate(sums.tasks)}

    def cosine(matrix: list[list[float]], one: str, other: str) -> float | None:
        value = matrix[place[one]][place[other]] if one in place and other in place else math.nan
        return None if math.isnan(value) else value

    by_layer: list[list[float | None] | None] = [None] * len(recording.layers)
    for layer, matrix in zip(sums.products, parts, strict=True):
        found = [cosine(matrix, one, other) for one, other in recording.pairs]
        by_layer[layer] = [None if value is None else round(value, DIGITS) for value in found]
    return [[cosine(overall, one, other) for other in recording.tasks] for one in recording.tasks], by_layer


def _parts(method: Any, optimizer: Any) -> tuple[Balancer | BalancingOptimizer, Optimizer]:
    """Returns what is watched, and the optimizer that steps."""
    if isinstance(method, Method):
        balancing: Any = method.balancer or method.optimizer
        given = method.optimizer
    else:
        balancing = method if isinstance(method, Balancer) else getattr(method, "optimizer", method)
        given = balancing if optimizer is None and isinstance(balancing, BalancingOptimizer) else optimizer
        if not isinstance(balancing, Balancer | BalancingOptimizer):
            raise TypeError(
                "BalanceMonitor watches what make_method() gives, a Balancer, or an optimizer as MAO; "
                f"found {type(method).__name__}."
            )
    if given is None:
        raise ValueError(
            "Beside a Balancer, BalanceMonitor needs the optimizer that steps: BalanceMonitor(balancer, model, "
            "optimizer=optimizer)."
        )
    if optimizer is not None and not isinstance(method, Balancer):
        raise ValueError(f"A {type(method).__name__} has its optimizer: leave optimizer out.")
    return balancing, check_optimizer(given)


def _layers(
    model: nn.Module, balancing: Balancer | BalancingOptimizer, optimizer: Optimizer
) -> dict[str, list[Tensor]]:
    """Returns the layers by name, with those of their own parameters that the optimizer holds."""
    held = {p for group in optimizer.param_groups for p in group["params"]}
    if isinstance(balancing, Balancer):
        held -= set(balancing.parameters())
    layers: dict[str, list[Tensor]] = {}
    for name, parameter in parameter_names(model).items():
        if parameter in held:
            layers.setdefault(name.rpartition(".")[0] or "(model)", []).append(parameter)
    if not layers:
        raise ValueError("The optimizer holds no parameter of the model: pass the model that it trains.")
    if any(is_sharded(p) for owned in layers.values() for p in owned):
        raise ValueError("BalanceMonitor does not work with parameters that fully_shard has sharded.")
    return layers
