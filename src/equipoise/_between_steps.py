"""What a Balancer is told between two steps."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from equipoise._balancing import Balancing
from equipoise.gradients.ranks import Alone, Company
from equipoise.objectives import Objective


class BetweenSteps(nn.Module):
    """The part of a Balancer that is about what objectives want beside the losses of a step."""

    tasks: tuple[str, ...]
    objective: Objective
    _company: Company
    _balancing: Balancing

    @property
    def ranks(self) -> Alone:
        """What goes over the ranks that train together."""
        return self._company.now()

    @property
    def needs_after_step(self) -> bool:
        """Whether `after_step` has to be called (FAMO)."""
        return any(part.needs_after_step for part in self.objective.task_modules())

    @property
    def needs_accuracies(self) -> bool:
        """Whether `end_epoch` has to be given accuracies (DTP, Achievement)."""
        return any(part.needs_accuracies for part in self.objective.task_modules())

    @property
    def needs_validation_losses(self) -> bool:
        """Whether `observe_validation` has to be called (CoBa)."""
        return any(part.needs_validation_losses for part in self.objective.task_modules())

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        """Takes the same batch's losses again, after the optimizer's step, for objectives that ask for it (FAMO).

        Args:
            losses: task → scalar loss, computed anew; needs no graph.

        Raises:
            TypeError: losses is not a mapping of tensors.
            ValueError: unknown task, no loss, a loss that is not a scalar, or is NaN or infinite.
        """
        if self.needs_after_step:
            self._balancing.after_step(losses)

    def observe_validation(
        self, losses: Mapping[str, Tensor], counts: Mapping[str, float | Tensor] | None = None
    ) -> None:
        """Takes the losses of a validation batch, for objectives that follow them (CoBa); others only check them.

        Call it before a step, or every few steps; what the objective remembers, it counts in calls. Compute the losses
        in evaluation mode. Nothing waits for an accelerator; a loss there that is not finite changes nothing.

        Args:
            losses: task → scalar loss; needs no graph.
            counts: as in `backward`: on several ranks, the losses are then the means over all ranks' samples.

        Raises:
            TypeError: losses is not a mapping of tensors.
            ValueError: unknown task, no loss, a loss that is not a scalar, or is NaN or infinite; as in `backward`, of
                counts. Nothing has changed then.

        Example:
            >>> import torch, equipoise as eq
            >>> balancer = eq.Balancer(["a", "b"], eq.CoBa())
            >>> balancer.observe_validation({"a": torch.tensor(1.0), "b": torch.tensor(3.0)})
        """
        step = self._balancing.read_beside(losses, counts)
        if self.needs_validation_losses:
            self._balancing.go_along(self, step)  # it can be called before any step
            self._balancing.show(step, "observe_validation")

    def end_epoch(self, metrics: Mapping[str, float | Tensor] | None = None) -> None:
        """Tells the methods that an epoch has ended (DWA), and how accurate each task now is (DTP, Achievement).

        Args:
            metrics: task → accuracy in [0, 1], higher is better; tasks that were not evaluated are left out.

        Raises:
            TypeError: metrics is not a mapping.
            ValueError: unknown task, or an accuracy outside [0, 1].
        """
        accuracies = self.ranks.mean_metrics(metrics, self.tasks)
        self._balancing.weigh.end_epoch(accuracies)
