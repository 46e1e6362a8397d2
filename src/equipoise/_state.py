"""State per task: declared once, then saved, moved, restricted to the tasks present, and committed as one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from equipoise._active import Active
from equipoise._checks import check_seed, check_tasks
from equipoise._state_step import StateStep, StateView
from equipoise.search_space import SearchSpace


class Flag:
    """A 0-dim bool that is on its way to the host while the host goes on; only who asks for its truth waits for it."""

    def __init__(self, flag: Tensor) -> None:
        self._event = None if flag.device.type == "cpu" else torch.Event(flag.device)
        self._value = flag.to("cpu", non_blocking=True)
        if self._event is not None:
            self._event.record()

    @property
    def arrived(self) -> bool:
        """Whether nobody has to wait."""
        return self._event is None or self._event.query()

    def __bool__(self) -> bool:
        if self._event is not None:
            self._event.synchronize()
        return bool(self._value)


class Undecided:
    """State to go back to, should a flag that another device has yet to compute turn out false."""

    def __init__(self, old: dict[str, Tensor], unless: Tensor) -> None:
        self.old = old
        self._valid = Flag(unless)

    @property
    def valid(self) -> bool:
        """The flag."""
        return bool(self._valid)


Snapshot = list[tuple[dict[str, Tensor], Tensor | None, Any]]
"""The states by name, the generator's state, and what else it keeps, of a module and each inside it."""


def _is_elsewhere(flag: Tensor, state: Tensor) -> bool:
    """Whether `torch.where` cannot choose by this flag what the state becomes."""
    return flag.device != state.device


class TaskModule(nn.Module):
    """Base of everything that decides between tasks: objectives, weightings and aggregators.

    A subclass declares in `__init__` what it keeps per task (`add_state`, `add_parameter`) or pair of tasks
    (`add_pair_state`), and whether it draws random numbers (`add_generator`), and reads and writes `self.state` in its
    methods. The Balancer names the tasks (`bind`) and opens a step (`step`) for the tasks present; from there state is
    saved in `state_dict`, follows `.to()` to any device, and changes only when the whole step succeeded.

    Which of the tasks present take part may be known on an accelerator alone, as a bool `[K']` there. A formula that
    looks at each task by itself need not care; what it does across tasks goes through `self.active`, as in
    `self.active.softmax(rate)`.

    Attributes:
        masked: whatever the class does across tasks goes through `self.active`. Not inherited, as a subclass has
            another formula. Where it is False, the tasks that take part are picked on the host, which waits for them.
        requires_positive: the method is undefined for losses ≤ 0; a task with one takes no part in the step.
        needs_after_step: `after_step` wants the same batch's losses again after the optimizer's step.
        needs_accuracies: `observe` wants each task's accuracy after every evaluation.
        needs_validation_losses: `observe_validation` wants the losses of validation batches.
        search_space: hyperparameter → what it may be when it is tuned: the range that its paper tried, or, where the
            paper names none, a decade to each side of its default.
    """

    masked: bool = False
    requires_positive: bool = False
    needs_after_step: bool = False
    needs_accuracies: bool = False
    needs_validation_losses: bool = False
    search_space: ClassVar[SearchSpace] = {}

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.masked = vars(cls).get("masked", False)

    def __init__(self) -> None:
        super().__init__()
        self.tasks: tuple[str, ...] | None = None
        self.generator: torch.Generator | None = None
        self._states: dict[str, float | int] = {}
        self._sizes: dict[str, int] = {}  # of these, of those that are several numbers a task
        self._pairs: set[str] = set()  # of these, those that are kept per pair
        self._rows: set[str] = set()  # buffers `[K, ...]` as large as the tasks' gradients, in their dtype
        self._learned: dict[str, float] = {}
        self._view: StateView | None = None
        self._undecided: list[Undecided] = []
        self._inside: tuple[TaskModule, ...] | None = None  # once the tasks are known

    def add_state(self, name: str, default: float | int, size: int | None = None) -> None:
        """Declares a `[K]` buffer that starts at `default`, on the CPU: float64 for a float, int64 for an int.

        float64 because K numbers cost nothing and moving averages lose digits; on a device without it, float32.

        Args:
            name: of the buffer, and in `self.state`.
            default: what it starts at.
            size: N, for a buffer `[K, N]`, N numbers a task, such as its last N losses; `[K', N]` in a step.
        """
        self._states[name] = default
        if size is not None:
            self._sizes[name] = size

    def add_pair_state(self, name: str, default: float) -> None:
        """Declares a `[K, K]` buffer, a number for each pair of tasks, that is otherwise as `add_state` has it.

        In a step, `self.state` has the pairs of tasks that take part, `[K', K']`; all others stay as they are.
        """
        self.add_state(name, default)
        self._pairs.add(name)

    def add_parameter(self, name: str, default: float) -> None:
        """Declares a parameter per task that starts at `default` and is learned with the model: float32, or wider.

        They are K 0-dim parameters, so that an optimizer with momentum leaves those of absent tasks alone; in a step
        `self.state` gives them as `[K']`.
        """
        self._learned[name] = float(default)

    def add_generator(self, seed: int | None) -> None:
        """Declares that random numbers are drawn from `self.generator`, whose state is saved and restored.

        Args:
            seed: the generator's seed; None draws one from PyTorch's default generator, so that
                `torch.manual_seed` decides.

        Raises:
            ValueError: the seed is no integer of at most 64 bits.
        """
        self.generator = torch.Generator(device="cpu")
        self.generator.manual_seed(int(torch.randint(2**62, (), device="cpu")) if seed is None else check_seed(seed))

    def bind(self, tasks: Sequence[str]) -> None:
        """Names the tasks, in the order of every `[K]` tensor, and creates what was declared for them.

        Raises:
            ValueError: already bound to other tasks.
        """
        names = check_tasks(tasks)
        self._inside = None
        modules = self.task_modules()
        for module in modules:
            if module.tasks not in (None, names):
                raise ValueError(
                    f"This {type(module).__name__} belongs to the tasks {list(module.tasks or ())}, "
                    f"found {list(names)}: make a new one for other tasks."
                )
        unbound = [module for module in modules if module.tasks is None]
        try:
            for module in unbound:
                module.tasks = names
                for name, default in module._states.items():
                    kind = torch.int64 if isinstance(default, int) else torch.float64
                    shape = (len(names),) * (2 if name in module._pairs else 1)
                    shape += (module._sizes[name],) if name in module._sizes else ()
                    module.register_buffer(name, torch.full(shape, default, dtype=kind, device="cpu"))
                dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
                for name, default in module._learned.items():
                    learned = (torch.tensor(default, dtype=dtype, device="cpu") for _ in names)
                    module.register_module(name, nn.ParameterList(learned))
                module.on_bind()
        except Exception:
            for module in unbound:
                module.tasks = None
            raise
        for module in modules:
            module._inside = tuple(module.task_modules()[1:])

    def lower_bounds(self) -> Tensor | float:
        """What each loss has to lie above, within a step: one number for all tasks, or `[K']`.

        0 where `requires_positive`, no bound otherwise; a method that is undefined elsewhere overrides it.
        """
        return 0.0 if self.requires_positive else -math.inf

    def on_bind(self) -> None:
        """Hook: check or complete what depends on the tasks' names. May raise; the default does nothing."""

    def task_modules(self) -> list[TaskModule]:
        """This module and those inside it that keep state per task."""
        if self._inside is not None:
            return [self, *self._inside]
        return [module for module in modules_of(self) if isinstance(module, TaskModule)]

    def declared_parameters(self) -> list[nn.Module | None]:
        """The lists of K parameters that this module has declared."""
        return [self._modules[name] for name in self._learned]

    def gradients(self, derivatives: Mapping[str, Tensor]) -> dict[Tensor, Tensor]:
        """Returns the gradients of declared parameters that are learned, within a step.

        Args:
            derivatives: name → of the K' parameters of this name, `[K']`.
        """
        found = {}
        for name, derivative in derivatives.items():
            parameters = self.state.learned(name)
            pairs = zip(parameters, derivative.to(parameters[0]).unbind(), strict=True)
            found.update({parameter: gradient for parameter, gradient in pairs if parameter.requires_grad})
        return found

    @property
    def state(self) -> StateView:
        """The state of the tasks present; only within a step."""
        if self._view is None:
            raise RuntimeError(
                f"{type(self).__name__} is used outside a step: pass it to equipoise.Balancer, "
                "or bind(tasks) and open `with module.step():`."
            )
        return self._view

    @property
    def present_tasks(self) -> tuple[str, ...]:
        """The names of the K' tasks present; only within a step."""
        known, present = self.tasks or (), self.state.present
        return known if present is None else tuple(known[index] for index in present)

    @property
    def active(self) -> Active:
        """The tasks that take part, and what a formula does across them; only within a step."""
        return self.state._active

    def leave_out(self, tasks: Tensor) -> None:
        """Lets the tasks where the bool `[K']` is true take no part in the rest of the step."""
        for module in self.task_modules():
            module.state._leave_out(tasks)

    def positions(self, tasks: Sequence[str]) -> list[int] | None:
        """Returns where these tasks stand among all K, for `step`; None: they are all K."""
        known = self.tasks or ()
        return None if len(tasks) == len(known) else [known.index(task) for task in tasks]

    def step(
        self,
        present: Iterable[int] | None = None,
        dtype: torch.dtype = torch.float64,
        usable: Tensor | None = None,
    ) -> AbstractContextManager[StateStep]:
        """Opens a step of the tasks with the K' indices `present` (None: all K).

        What the methods write becomes lasting with `StateStep.commit`, and is dropped if the block ends without it.

        Args:
            present: the tasks' indices.
            dtype: in which the state is read.
            usable: bool `[K']` on the state's device, false for present tasks that take no part: they change no state,
                and no formula looks at them. Their losses have to be 1, and their coefficients mean nothing. None: all
                take part.
        """
        indices = None if present is None else tuple(int(index) for index in present)
        active = Active(len(self.tasks or ()) if indices is None else len(indices), dtype, usable)
        return StateStep(self.task_modules(), indices, dtype, active)

    def snapshot(self) -> Snapshot:
        """Returns the state of this module and those inside it, random generators included, for `restore`."""
        return [
            (
                {name: module.get_buffer(name).clone() for name in module._states},
                None if module.generator is None else module.generator.get_state(),
                module.more_state(),
            )
            for module in self.task_modules()
        ]

    def restore(self, snapshot: Snapshot, unless: Tensor | None = None) -> None:
        """Goes back to what `snapshot` gave; with a 0-dim bool tensor, only where it is false. The host does not wait.

        Random generators go back only where the host knows that they have to: not by a flag on an accelerator.
        """
        failed = unless is None or (unless.device.type == "cpu" and not bool(unless))
        for module, (states, generator, more) in zip(self.task_modules(), snapshot, strict=True):
            if unless is None:
                module._undecided = []  # nothing to wait for: every state is overwritten
            module.revert(states, unless)
            if failed and generator is not None:
                assert module.generator is not None
                module.generator.set_state(generator)
            if more is not None and (unless is None or not bool(unless)):  # sync: state that only the host can restore
                module.restore_more(more)

    def more_state(self) -> Any:
        """Hook: a copy of what the module keeps beside declared state; None: nothing."""
        return None

    def restore_more(self, kept: Any) -> None:
        """Hook: takes over what `more_state` gave."""

    def revert(self, old: dict[str, Tensor], unless: Tensor | None) -> None:
        """Goes back to old values of this module's states, by name; with a 0-dim bool tensor, only where it is false.

        A flag on another device than the state decides when the state is next looked at (`settle`).
        """
        if unless is not None and any(_is_elsewhere(unless, value) for value in old.values()):
            self._undecided.append(Undecided(old, unless))
            return
        for name, value in old.items():
            buffer = self.get_buffer(name)
            buffer.copy_(value if unless is None else torch.where(unless, buffer, value))

    def decides_later(self, valid: Tensor, states: Mapping[str, Tensor]) -> bool:
        """Whether the 0-dim flag is on another device than these states, and so decides when they are next looked at.

        They then go back to what they are now, where it is false.
        """
        later = any(_is_elsewhere(valid, state) for state in states.values())
        if later:
            self._undecided.append(Undecided({name: state.clone() for name, state in states.items()}, valid))
        return later

    def settle(self) -> None:
        """Takes back what was written in steps that turned out not to be valid; the host waits for what they say.

        Called wherever this module's state is looked at, but for `buffers()`, which may be those of a module around it.
        """
        undecided, self._undecided = self._undecided, []
        for step in undecided:
            if not step.valid:
                self.revert(step.old, unless=None)

    def settled(self, name: str) -> Tensor:
        """Returns the state of this name as it is once nothing is undecided; quicker than as an attribute."""
        if self._undecided:
            self.settle()
        state = self._buffers[name]
        assert state is not None
        return state

    def observe(self, accuracies: Tensor) -> None:
        """Hook: takes the accuracies `[K']` of the evaluated tasks, within a step of those tasks."""

    def observe_validation(self, losses: Tensor) -> None:
        """Hook: takes the losses `[K']` of a validation batch."""

    def end_epoch(self) -> None:
        """Hook: an epoch has ended; within a step of all tasks."""

    def end_step(self, losses: Tensor) -> None:
        """Hook: takes the losses `[K']` of a step of several micro-batches together, after the last one's."""

    def after_step(self, losses: Tensor) -> None:
        """Hook: takes the batch's losses `[K']` again after the optimizer's step."""

    def extra_repr(self) -> str:
        """What the method was made with, as far as it keeps that under the arguments' names."""
        given = {name: getattr(self, name, None) for name in inspect.signature(type(self)).parameters}
        shown = {name: value for name, value in given.items() if isinstance(value, int | float | str | tuple | dict)}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())

    def get_extra_state(self) -> Any:
        """The generator's state (random methods; else a zero), for `state_dict`: a tensor, as safetensors wants it."""
        return torch.zeros(1, dtype=torch.uint8, device="cpu") if self.generator is None else self.generator.get_state()

    def set_extra_state(self, state: Any) -> None:
        """Takes over what `get_extra_state` gave."""
        if self.generator is not None:
            self.generator.set_state(state.cpu())

    def __getattr__(self, name: str) -> Any:
        modules: dict[str, nn.Module] = vars(self).get("_modules", {})
        if name in modules:
            return modules[name]  # quicker than what follows
        if vars(self).get("_undecided") and name in self._buffers:
            self.settle()
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return vars(self).copy()

    def _save_to_state_dict(self, *arguments: Any) -> None:
        self.settle()
        super()._save_to_state_dict(*arguments)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.settle()
        super()._load_from_state_dict(*arguments)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TaskModule:
        """Moves the state as told, but keeps it from becoming narrower: `.bfloat16()` is meant for the model."""

        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return tensor.to(new.device) if new.dtype.itemsize < tensor.dtype.itemsize else new

        self.settle()
        apply: Callable[..., TaskModule] = super()._apply
        try:
            return apply(moved, recurse)
        except TypeError:  # the device has no float64 (MPS): keep the state in float32 there
            for name, buffer in self._buffers.items():
                if buffer is not None and buffer.dtype == torch.float64:
                    self._buffers[name] = buffer.float()
            return apply(moved, recurse)


def is_of_rows(name: str) -> bool:
    """Whether a name in a state dict is of state that is as large as the tasks' gradients: `state/name/of/parameter`.

    No other name has a slash: such state begins in the step in which a parameter is first shared.
    """
    return "/" in name


def modules_of(module: nn.Module) -> list[nn.Module]:
    """Returns the module and those inside it, in the order of `nn.Module.modules`, which takes longer for names."""
    found: dict[nn.Module, None] = {}
    waiting: list[nn.Module | None] = [module]
    while waiting:
        here = waiting.pop()
        if here is not None and here not in found:
            found[here] = None
            waiting.extend(reversed(here._modules.values()))
    return list(found)
