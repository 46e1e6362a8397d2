"""A balancing method with its optimizer, as `make_method` makes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from equipoise._checks import check_choice, check_counts, check_losses, check_metrics
from equipoise._intersection import MATCHES, Match, in_common, learned_names, optimizer_state
from equipoise._saving import balancer_in_common, check_complete, check_state
from equipoise.balancer import Balancer
from equipoise.gradients.graph.wrappers import parameter_names
from equipoise.optim import BalancingOptimizer

SINGLE = "single:"
"""Prefix of the baselines that train one task alone."""


class Method:
    """A balancing method with its optimizer: backward, step, and everything to save. Made by `make_method`.

    Attributes:
        name: the method's name.
        tasks: the tasks' names.
        optimizer: over the model's (and the objective's) parameters; for learning-rate schedulers.
        balancer: the Balancer; None where the optimizer balances by itself, as MAO does.
    """

    def __init__(
        self,
        name: str,
        tasks: tuple[str, ...],
        model: nn.Module,
        optimizer: Optimizer,
        balancer: Balancer | None,
    ) -> None:
        self.name = name
        self.tasks = tasks
        self.optimizer = optimizer
        self.balancer = balancer
        names = {id(parameter): name for name, parameter in parameter_names(model).items()}
        if balancer is not None:
            names |= dict(zip(map(id, balancer.parameters()), learned_names(balancer), strict=True))
        self._parameters = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, tasks={list(self.tasks)})"

    @property
    def needs_after_step(self) -> bool:
        """Whether `after_step` has to be called (FAMO)."""
        return self.balancer is not None and self.balancer.needs_after_step

    @property
    def needs_accuracies(self) -> bool:
        """Whether `end_epoch` has to be given accuracies (DTP, Achievement)."""
        return self.balancer is not None and self.balancer.needs_accuracies

    @property
    def needs_validation_losses(self) -> bool:
        """Whether `observe_validation` has to be called (CoBa)."""
        return self.balancer is not None and self.balancer.needs_validation_losses

    def backward(self, losses: Mapping[str, Tensor], **options: Any) -> dict[str, Tensor]:
        """Computes the balanced gradients; arguments and result as in `Balancer.backward`."""
        if isinstance(self.optimizer, BalancingOptimizer):
            return self.optimizer.backward(losses, **options)
        assert self.balancer is not None
        return self.balancer.backward(losses, **options)

    def loss(self, losses: Mapping[str, Tensor], counts: Mapping[str, float | Tensor] | None = None) -> Tensor:
        """Returns a scalar whose backward pass balances; see `Balancer.forward` and `MAO.loss`."""
        if isinstance(self.optimizer, BalancingOptimizer):
            return self.optimizer.loss(losses, counts)
        assert self.balancer is not None
        loss: Tensor = self.balancer(losses, counts)
        return loss

    def step(self) -> None:
        """Updates the parameters."""
        self.optimizer.step()

    def zero_grad(self) -> None:
        """Clears the gradients."""
        self.optimizer.zero_grad()
        if self.balancer is not None:
            self.balancer.zero_grad()

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        """Takes the same batch's losses again, where the method needs them; see `Balancer.after_step`."""
        if self.balancer is not None:
            self.balancer.after_step(losses)

    def observe_validation(
        self, losses: Mapping[str, Tensor], counts: Mapping[str, float | Tensor] | None = None
    ) -> None:
        """Takes a validation batch's losses, where the method needs them; see `Balancer.observe_validation`."""
        if self.balancer is not None:
            self.balancer.observe_validation(losses, counts)
        else:
            check_losses(losses, self.tasks, graph=False)
            if counts is not None:
                check_counts(counts, losses, self.tasks)

    def end_epoch(self, metrics: Mapping[str, float | Tensor] | None = None) -> None:
        """Tells the method that an epoch has ended, and each task's accuracy; see `Balancer.end_epoch`."""
        if self.balancer is None:
            check_metrics(metrics, self.tasks)
        else:
            self.balancer.end_epoch(metrics)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that, beside the model's own state, is needed to go on bit for bit."""
        return {
            "method": self.name,
            "tasks": list(self.tasks),
            "parameters": list(self._parameters),
            "optimizer": self.optimizer.state_dict(),
            "balancer": None if self.balancer is None else self.balancer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, tasks: Match = "equal") -> None:
        """Takes over what `state_dict` gave.

        Args:
            state: of the same method.
            tasks: "equal": it has to be of the same tasks and parameters. "intersection": of others, too, where tasks
                (and their heads) were added or dropped: what the balancing keeps of the tasks of both, and what the
                optimizer keeps of the parameters of both, is taken over, by their names; the rest stays as it is. The
                model's own state is yours to load: `model.load_state_dict(..., strict=False)`.

        Raises:
            ValueError: the state is of another method, of other tasks or parameters where they have to be equal, or no
                task is in both; nothing has changed then.
        """
        check_choice("tasks", tasks, MATCHES)
        expected = ("method", "tasks", "parameters", "optimizer", "balancer")
        missing = [key for key in expected if not isinstance(state, Mapping) or key not in state]
        if missing:
            raise ValueError(f"This is no state_dict of a method: it lacks {', '.join(map(repr, missing))}.")
        for what, own in (("method", self.name), ("tasks", list(self.tasks))):
            if state.get(what) != own and not (what == "tasks" and tasks == "intersection"):
                raise ValueError(
                    f"This state_dict is of another {what}: found {state.get(what)!r}, expected {own!r}. "
                    f"Make the method with the same {what} first."
                )
        optimizer, balancer = state["optimizer"], state["balancer"]
        if tasks == "intersection":
            in_common(state["tasks"], self.tasks)
            names = self._parameters, state["parameters"]
            if isinstance(self.optimizer, BalancingOptimizer):
                optimizer = self.optimizer.in_common(optimizer, *names)
            else:
                optimizer = optimizer_state(self.optimizer, optimizer, *names)
            balancer = None if self.balancer is None else balancer_in_common(self.balancer, balancer)
        if self.balancer is not None:
            check_state(self.balancer, balancer, "")
            check_complete(self.balancer, balancer)
        self.optimizer.load_state_dict(optimizer)  # refuses the state of another model before any change
        if self.balancer is not None:
            self.balancer.load_state_dict(balancer)


class SingleTask(Method):
    """The baseline of one task alone: the other tasks' losses are left out. Made by `make_method`."""

    balancer: Balancer

    def __init__(
        self, name: str, task: str, tasks: tuple[str, ...], model: nn.Module, optimizer: Optimizer, balancer: Balancer
    ) -> None:
        super().__init__(name, tasks, model, optimizer, balancer)
        self.task = task

    def backward(
        self, losses: Mapping[str, Tensor], *, counts: Mapping[str, float | Tensor] | None = None, **options: Any
    ) -> dict[str, Tensor]:
        """Computes the gradients of the one task; does nothing where it is left out of `losses`."""
        self.balancer.ranks.checked(self._check, losses, counts)
        own = {self.task: losses[self.task]} if self.task in losses else {}
        if counts is not None:
            options["counts"] = {task: counts[task] for task in own}
        return super().backward(own, **options) if own or self.balancer.takes_empty else {}

    def loss(self, losses: Mapping[str, Tensor], counts: Mapping[str, float | Tensor] | None = None) -> Tensor:
        """Returns the loss of the one task, to be called for batches that have it; see `Balancer.forward`."""
        self.balancer.ranks.checked(self._check, losses, counts)
        own = {self.task: losses[self.task]} if self.task in losses else {}
        return super().loss(own, None if counts is None else {task: counts[task] for task in own})

    def _check(
        self, losses: Mapping[str, Tensor], counts: Mapping[str, float | Tensor] | None, graph: bool = True
    ) -> None:
        if not isinstance(losses, Mapping) or losses or not self.balancer.takes_empty:
            check_losses(losses, self.tasks, graph=graph)
        if counts is not None:
            check_counts(counts, losses, self.tasks)

    def observe_validation(
        self, losses: Mapping[str, Tensor], counts: Mapping[str, float | Tensor] | None = None
    ) -> None:
        """Does nothing beyond checking: there is nothing to balance."""
        self.balancer.ranks.checked(self._check, losses, counts, False)

    def end_epoch(self, metrics: Mapping[str, float | Tensor] | None = None) -> None:
        """Does nothing beyond checking: there is nothing to balance."""
        check_metrics(metrics, self.tasks)
