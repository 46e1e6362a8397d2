"""What the tasks of a step share, whether it is enough to balance, and what is said where it is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from equipoise._notices import Notices
from equipoise.aggregators import Aggregator
from equipoise.gradients.micro_batches import Waiting
from equipoise.gradients.ranks import Company
from equipoise.gradients.shared import SharedParameters
from equipoise.gradients.step import Step

ALONE_STEPS = 100
"""Steps without two tasks to balance after which an aggregator says so."""


class Sharing:
    """Finds what is shared in a step, and takes note of it.

    Args:
        tasks: all tasks.
        aggregator: what balances them; None: nothing is looked for.
        shared: the shared parameters so far.
        probe: the parameters on which the Gramian is taken; empty: all that are shared.
        company: how to go over ranks.
        waiting: holds the micro-batches so far.
        notices: gives warnings.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        aggregator: Aggregator | None,
        shared: SharedParameters,
        probe: Mapping[Tensor, None],
        company: Company,
        waiting: Waiting,
        notices: Notices,
    ) -> None:
        self._tasks = tasks
        self._name = type(aggregator).__name__
        self._shared = shared
        self._probe = probe
        self._company = company
        self._waiting = waiting
        self._notices = notices
        self._alone: int | None = 0  # steps so far without two tasks; None: there was one with two
        self._seen: Any = None  # the leaves that the tasks reached in the first step that shared something

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_seen": None}

    @property
    def probing(self) -> bool:
        """Whether there is a probe."""
        return bool(self._probe)

    @property
    def given(self) -> bool:
        """Whether a person named what is shared."""
        return self._shared.given is not None

    def names(self, shared: Mapping[Tensor, None]) -> list[str]:
        """Returns the names of shared parameters."""
        return self._shared.names_of(shared)

    def measured(self, shared: Mapping[Tensor, None], reached: Mapping[str, Sequence[Tensor]]) -> dict[Tensor, None]:
        """Returns the shared part of the probe; nothing, for all that is shared, if no part of it has all tasks.

        A task that did not reach it would have no say, and two that reach different parts of it no conflict.
        """
        part = [p for p in self._probe if p in shared]
        if not part:
            return {}
        rows = [set(row) for row in reached.values()]
        return dict.fromkeys(part if any(all(p in row for row in rows) for p in part) else ())

    def taking(self, shared: Mapping[Tensor, None], reached: Mapping[str, Sequence[Tensor]]) -> tuple[str, ...]:
        """Returns the tasks that reach anything shared; a row of zeros would tell an aggregator to stop the others."""
        return tuple(task for task, row in reached.items() if any(leaf in shared for leaf in row))

    def everybody(self, reached: Mapping[str, Sequence[Tensor]]) -> bool:
        """Whether all tasks are there, two or more."""
        return 1 < len(reached) == len(self._tasks)

    def shared_in(self, reached: Mapping[str, Sequence[Tensor]], step: Step, given: bool = False) -> dict[Tensor, None]:
        """Returns what is shared in this step.

        Args:
            reached: task → the trained leaves that it reaches, in all micro-batches and on all ranks.
            step: the last micro-batch.
            given: a representation says what is shared.

        Raises:
            ValueError: it leaves nothing to balance or, with a probe, to measure.
        """
        found = self._shared.find(reached.values())
        everybody = self.everybody(reached)
        if not given and everybody and self._probe and found and not any(p in self._probe for p in found):
            raise ValueError(
                "probe= holds no parameter that two losses reach, so no gradient statistics can be taken on it: give "
                "parameters of the shared trunk, such as its last layer, or leave probe out."
            )
        if not given and everybody and not found:
            self._company.now().checked(self.nothing_shared, reached, step)
        return found

    def note(self, shared: Mapping[Tensor, None], reached: Mapping[str, Sequence[Tensor]]) -> None:
        """Takes note of what is shared, and warns if there have never been two tasks to balance."""
        self._shared.keep(shared)
        if self._seen is None and shared:
            self._seen = WeakIdKeyDictionary({leaf: True for row in reached.values() for leaf in row})
        if len(self.taking(shared, reached)) > 1:
            self._alone = None
        elif self._alone is not None and (
            shared or len(reached) < len(self._tasks)
        ):  # else a frozen trunk: it was said
            self._alone += 1
        if self._alone == ALONE_STEPS:
            self._notices.give(
                "alone",
                f"{self._name} balances the gradients of two tasks or more, and had no two in any "
                f"of {ALONE_STEPS} steps, so that it made no difference. Where tasks come from different batches, pass "
                "them to one backward() (MixedLoader's order 'concatenated'), or accumulate=True for all but the last.",
            )

    def nothing_shared(self, reached: Mapping[str, Sequence[Tensor]], step: Step) -> None:
        """Nothing is shared though all tasks are there: right where the trunk is frozen, and else an error.

        Raises:
            ValueError: the losses do not come from one trunk.
        """
        name = self._name
        model = self._company.order.model
        trained = {leaf for row in reached.values() for leaf in row}
        common = self._common_inputs(step)
        own = [] if model is None else [p for p in model.parameters() if p.requires_grad]
        foreign = own and not any(p in trained for p in own)
        known = self._seen is not None and any(leaf in self._seen for leaf in trained)  # the trunk was cut off
        gone = not known and any(p.requires_grad for p in self._shared.known)
        hint = ""
        if common:
            kinds = ("a parameter of another model" if isinstance(p, nn.Parameter) else "an input" for p in common)
            some = ", ".join(f"{kind} of shape {tuple(p.shape)}" for kind, p in zip(kinds, common[:3], strict=False))
            more = f" and {len(common) - 3} more" if len(common) > 3 else ""
            hint = (
                f" What several losses do reach requires a gradient and is not trained: {some}{more}. If it is, make "
                "it an nn.Parameter (with model=: one of the model's), or name it as shared=."
            )
        if foreign or gone or (common and not self._trunk_can_be_frozen(step)):
            raise ValueError(
                f"{name} balances gradients on shared parameters, and found none: no parameter "
                "(of those given as shared=) is reached by two losses. Check that the losses come from one forward "
                f"pass of the same model and that its trunk is not frozen or detached.{hint}"
            )
        self._notices.give(
            "frozen",
            f"{name} balances gradients on shared parameters, and found none: every parameter that the losses reach "
            "is one task's own and gets its plain gradient. That is right while the trunk is frozen; otherwise "
            f"check that the losses come from one forward pass of the same model.{hint}",
        )

    def _common_inputs(self, step: Step) -> list[Tensor]:
        """Returns the leaves that are not trained and that several tasks reach on this rank, in all micro-batches."""
        if self._company.now().sharded:
            return []  # its graphs hold gathered parameters
        rows = {task: set(row) for task, row in self._waiting.micro_batches.rows.items()}
        held = [task for task, loss in zip(step.tasks, step.losses, strict=True) if loss is not None]
        for task, leaves in zip(held, step.graph.leaves, strict=True):
            rows.setdefault(task, set()).update(leaves)
        count = Counter(leaf for row in rows.values() for leaf in row)
        return [leaf for leaf, tasks in count.items() if tasks > 1 and not self._company.order.is_trained(leaf)]

    def _trunk_can_be_frozen(self, step: Step) -> bool:
        """Whether the losses can have a trunk in common that is frozen: their graphs merge above leaves."""
        model = self._company.order.model
        parameters = self._shared.known if model is None else list(model.parameters())
        frozen = not parameters or any(not p.requires_grad for p in parameters)
        return frozen and step.cut is not None and any(step.cut.edges)
