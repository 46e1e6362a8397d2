"""A step of the state per task: what is read and written in it, and becomes lasting as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from equipoise._active import Active
from equipoise._kept import constants

if TYPE_CHECKING:
    from equipoise._state import TaskModule


class StateView:
    """The state of the tasks that are present in a step, as attributes.

    Reading gives `[K']` tensors (K' tasks present, in the Balancer's order), `[K', N]` of state of N numbers a task and
    `[K', K']` of state per pair; writing keeps the new value until the step is committed. So a method is written as if
    every task were always there: a task that is left out keeps its state without a line of the method's own.
    """

    _module: TaskModule
    _present: tuple[int, ...] | None
    _dtype: torch.dtype
    _active: Active
    _written: dict[str, Tensor]

    def __init__(self, module: TaskModule, present: tuple[int, ...] | None, dtype: torch.dtype, active: Active) -> None:
        vars(self).update(_module=module, _present=present, _dtype=dtype, _active=active, _written={})

    def __getattr__(self, name: str) -> Tensor:
        if name in self._written:
            return self._written[name]
        if name in self._module._buffers:
            value = self._restricted(name, self._module.settled(name))
        else:
            value = torch.stack(self.learned(name))
        as_it_is = value.dtype == self._dtype or not value.is_floating_point() or name in self._module._rows
        return value if as_it_is else value.to(self._dtype)

    @property
    def present(self) -> tuple[int, ...] | None:
        """The present tasks' indices; None: all."""
        return self._present

    def learned(self, name: str) -> list[Tensor]:
        """Returns the K' parameters of this name."""
        parameters = list(self._module._modules[name]._parameters.values())  # type: ignore[union-attr]
        return parameters if self._present is None else [parameters[index] for index in self._present]

    def _places(self, name: str, buffer: Tensor) -> tuple[Tensor, ...]:
        """Where the numbers of the tasks present are, as an index, where not all are."""
        assert self._present is not None
        rows = constants(self._present, torch.int64, buffer.device)
        return (rows[:, None], rows) if name in self._module._pairs else (rows,)

    def _spread(self, name: str, taken: Tensor, buffer: Tensor) -> Tensor:
        """Which of a state's numbers change, of a bool for each task, `[K']`, or for all."""
        if not taken.dim() or buffer.dim() == 1:
            return taken
        rows = taken.view(-1, *[1] * (buffer.dim() - 1))
        return rows & taken if name in self._module._pairs else rows

    def _restricted(self, name: str, buffer: Tensor) -> Tensor:
        return buffer if self._present is None else buffer[self._places(name, buffer)]

    def _leave_out(self, tasks: Tensor) -> None:
        vars(self).update(_active=self._active.without(tasks))

    def __setattr__(self, name: str, value: Tensor) -> None:
        self._written[name] = value.detach() if value.requires_grad else value

    def changes(self, valid: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """Returns buffers and what they become, in the order in which they were first written.

        The new values of the active tasks; where the 0-dim bool `valid` is false, the old ones.
        """
        if not self._written:
            return []
        buffers = {name: self._module.settled(name) for name in self._written}
        taken = self._active.mask
        if valid is not None and not self._module.decides_later(valid, buffers):
            taken = valid if taken is None else taken & valid
        changes = []
        for name, buffer in buffers.items():
            new = self._written[name].to(buffer.dtype)
            if taken is not None:
                new = torch.where(self._spread(name, taken, buffer), new, self._restricted(name, buffer))
            if self._present is not None:
                new = buffer.index_put(self._places(name, buffer), new)
            changes.append((buffer, new))
        return changes


class StateStep:
    """A step of some modules' state; made by `TaskModule.step`, and open within its `with` block."""

    def __init__(
        self, modules: Sequence[TaskModule], present: tuple[int, ...] | None, dtype: torch.dtype, active: Active
    ) -> None:
        self.present = present
        self._views = {module: StateView(module, present, dtype, active) for module in modules}
        self._generators: list[tuple[torch.Generator, Tensor]] = []
        self.committed = False
        self.valid: Tensor | None = None

    def __enter__(self) -> StateStep:
        self._generators = [(m.generator, m.generator.get_state()) for m in self._views if m.generator is not None]
        for module, view in self._views.items():  # past `nn.Module.__setattr__`, which looks whether it is a parameter
            vars(module)["_view"] = view
        return self

    def __exit__(self, *_: object) -> None:
        for module in self._views:
            vars(module)["_view"] = None
        if not self.committed:
            for generator, state in self._generators:
                generator.set_state(state)

    def commit(self, valid: Tensor | None = None) -> None:
        """Makes what was written lasting; with a 0-dim bool tensor, only where it is true.

        Random generators advance all the same on an accelerator: holding them back would need the host to wait.
        """
        changes = [change for view in self._views.values() for change in view.changes(valid)]
        if changes:
            _copy([buffer for buffer, _ in changes], [new for _, new in changes])
        self.valid = valid
        self.committed = valid is None or valid.device.type != "cpu" or bool(valid)


def _copy(buffers: list[Tensor], new: list[Tensor]) -> None:
    """Copies the new values into the buffers, as one operation.

    A state can be handed on to another before it is replaced, so a new value can be one of the buffers. On the CPU they
    are copied in order; elsewhere all at once, and such a value is copied apart first.
    """
    if buffers[0].device.type != "cpu":
        replaced = {buffer.data_ptr() for buffer in buffers}
        new = [value.clone() if value.data_ptr() in replaced else value for value in new]
    torch._foreach_copy_(buffers, new)
