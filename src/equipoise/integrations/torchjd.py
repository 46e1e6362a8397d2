"""TorchJD's aggregators, weightings and scalarizers, where equipoise takes an aggregator or an objective.

Nothing here has to be called: `Balancer` and `make_method` do. TorchJD is imported only where something of it is given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from equipoise._parts import LIBRARIES, Library
from equipoise._state import TaskModule
from equipoise._state_step import StateStep
from equipoise.aggregators._base import Aggregator, Gradients, GramianAggregator
from equipoise.gradients.gramian import as_real, combine
from equipoise.gradients.shards import gathered, like, local, shard_of
from equipoise.objectives._base import Objective
from equipoise.registry._spec import ONE_PASS, PASS_PER_TASK, MethodSpec

PREFIX = "torchjd:"
"""Before a class's name, it makes the name of a method: `torchjd:UPGrad`."""

TWO_BATCHES = ("MoDoWeighting", "SDMGradWeighting")
"""Weightings of the product of two independent batches' Jacobians."""


def is_torchjd(value: object) -> bool:
    """Whether it is an instance of a class of TorchJD's, or of one derived from it."""
    return any(base.__module__.partition(".")[0] == "torchjd" for base in type(value).__mro__)


def adapt_objective(scalarizer: Any) -> Objective:
    """Makes an objective of a TorchJD scalarizer.

    Raises:
        TypeError: it is something else of TorchJD's.
    """
    from torchjd.scalarization import Scalarizer

    if not isinstance(scalarizer, Scalarizer):
        raise TypeError(f"objective takes TorchJD's scalarizers; {type(scalarizer).__name__} goes into aggregator=.")
    return TorchJDScalarizer(scalarizer)


def adapt_aggregator(part: Any) -> Aggregator:
    """Makes an aggregator of a TorchJD aggregator or weighting.

    Raises:
        TypeError: it is something else of TorchJD's, or needs the Jacobians of two batches.
    """
    from torchjd.aggregation import Aggregator as Foreign
    from torchjd.aggregation import CRMOGMWeighting, GramianWeightedAggregator, WeightedAggregator, Weighting
    from torchjd.aggregation._weighting_bases import _Composition, _MatrixWeighting

    if isinstance(part, GramianWeightedAggregator):
        return TorchJDGramianWeighting(part.gramian_weighting)
    if isinstance(part, WeightedAggregator):
        return TorchJDMatrixWeighting(part.weighting)
    if isinstance(part, Foreign):
        return TorchJDAggregator(part)
    if not isinstance(part, Weighting):
        raise TypeError(f"aggregator takes TorchJD's aggregators and weightings; found {type(part).__name__}.")
    innermost = part
    while isinstance(innermost, CRMOGMWeighting):
        innermost = innermost.weighting
    if type(innermost).__name__ in TWO_BATCHES:
        raise TypeError(
            f"{type(innermost).__name__} needs the Jacobians of two independent batches in one step, which a backward "
            "pass of one batch's losses cannot give."
        )
    if isinstance(innermost, _MatrixWeighting | _Composition):
        return TorchJDMatrixWeighting(part)
    return TorchJDGramianWeighting(part)


def find_class(name: str) -> type[nn.Module]:
    """Returns the class behind a method's name: `torchjd:UPGrad`, `torchjd:scalarization.Mean`.

    Without the module's name, `torchjd.aggregation` comes before `torchjd.scalarization`.

    Raises:
        ImportError: TorchJD is not installed.
        ValueError: it has no such class.
    """
    try:
        import torchjd.aggregation
        import torchjd.scalarization
    except ImportError as error:
        raise ImportError(f"Method {name!r} needs TorchJD: pip install 'equipoise[torchjd]'.") from error

    modules = {"aggregation": torchjd.aggregation, "scalarization": torchjd.scalarization}
    module, _, short = name.removeprefix(PREFIX).rpartition(".")
    for place in [modules[module]] if module in modules else [] if module else modules.values():
        if short in place.__all__:
            found: type[nn.Module] = getattr(place, short)
            if not inspect.isabstract(found):
                return found
    known = {n for place in modules.values() for n in place.__all__ if not inspect.isabstract(getattr(place, n))}
    known -= set(TWO_BATCHES)
    raise ValueError(f"TorchJD has no {name.removeprefix(PREFIX)!r}; it has {', '.join(sorted(known))}.")


def spec_of(name: str, count: int) -> MethodSpec:
    """Returns what is known of the method behind `torchjd:<class>`, for `count` tasks.

    Raises:
        ImportError: TorchJD is not installed.
        ValueError: it has no such class.
    """
    found = find_class(name)
    make_it = partial(make, found, count)
    if is_scalarizer(found):
        return MethodSpec(f"TorchJD's {found.__name__}", "TorchJD", ONE_PASS, found, objective=make_it)
    return MethodSpec(f"TorchJD's {found.__name__}", "TorchJD", PASS_PER_TASK, found, aggregator=make_it)


def is_scalarizer(found: type[nn.Module]) -> bool:
    """Whether the class is one of TorchJD's scalarizers."""
    from torchjd.scalarization import Scalarizer

    return issubclass(found, Scalarizer)


def make(found: type[nn.Module], count: int, **hyperparameters: Any) -> nn.Module:
    """Makes an instance for `count` tasks, which are filled in where TorchJD asks for them; lists become tensors.

    Raises:
        ValueError: a hyperparameter without a default is not given.
    """
    given: dict[str, Any] = {
        name: torch.tensor(value, device="cpu") if isinstance(value, list | tuple) else value
        for name, value in hyperparameters.items()
    }
    parameters = inspect.signature(found).parameters
    for name in ("n_tasks", "shape"):
        if name in parameters:
            given.setdefault(name, count)
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in given]
    if missing:
        raise ValueError(f"TorchJD's {found.__name__} needs the hyperparameter {', '.join(missing)}.")
    with torch.device("cpu"):
        return found(**given)


class _Adapter(TaskModule):
    """A part of TorchJD's as a `TaskModule`: it draws from a generator of its own, and its state can be taken back.

    What a stateful part keeps, its hyperparameters included, is saved whatever kind of attribute it is in. Where a
    step may turn out not to be valid, the host looks whether it was, and so waits for an accelerator.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part: Any = part
        self.add_generator(None)

    def stateful(self) -> dict[str, Any]:
        """The modules that keep state from step to step, by name."""
        from torchjd import Stateful

        return {name: module for name, module in self.part.named_modules() if isinstance(module, Stateful)}

    def call(self, function: Callable[..., Any], values: Tensor, count: int) -> Any:
        """Returns `function(values)`, with PyTorch's random numbers replaced by those of the own generator.

        Raises:
            ValueError: tasks are missing (`count` is not the number of tasks), and the part keeps state for all.
        """
        known = self.tasks or ()
        if count != len(known) and self.stateful():
            raise ValueError(
                f"TorchJD's {type(self.part).__name__} keeps state for all {len(known)} tasks, and would lose it "
                f"where tasks are left out; found {count}. Leave out none, or take one of equipoise's methods."
            )
        for module in self.part.modules():  # preference vectors and the like are neither moved nor cast with a module
            for name, held in vars(module).items():
                if isinstance(held, Tensor) and held.is_floating_point():
                    setattr(module, name, held.to(values.device, values.dtype))
        seed = int(torch.randint(2**62, (), generator=self.generator, device="cpu"))
        device = values.device
        if device.type == "cpu":
            with torch.random.fork_rng(devices=[]), device:
                torch.default_generator.manual_seed(seed)
                return function(values)
        with torch.random.fork_rng(devices=[device.index or 0], device_type=device.type), device:
            torch.default_generator.manual_seed(seed)
            torch.get_device_module(device).manual_seed(seed)
            return function(values)

    @contextmanager
    def step(
        self,
        present: Iterable[int] | None = None,
        dtype: torch.dtype = torch.float64,
        usable: Tensor | None = None,
    ) -> Iterator[StateStep]:
        """Opens a step; takes TorchJD's state back if it is not committed, or turns out not to be valid."""
        before = self.more_state()
        kept = False
        try:
            with super().step(present, dtype, usable) as step:
                yield step
            kept = step.committed and (step.valid is None or bool(step.valid))  # sync: see the class
        finally:
            if not kept:
                self._restore(before)

    def more_state(self) -> dict[str, Any]:
        """What the stateful modules keep."""
        return {name: _pack_all(module) for name, module in self.stateful().items()}

    def restore_more(self, kept: dict[str, Any]) -> None:
        """Takes over what `more_state` gave."""
        self._restore(kept)

    def get_extra_state(self) -> Any:
        """The generator's state; in a dictionary with what the stateful modules keep, where there are any."""
        generator, more = super().get_extra_state(), self.more_state()
        return {"generator": generator, **more} if more else generator

    def set_extra_state(self, state: Any) -> None:
        """Takes over what `get_extra_state` gave."""
        super().set_extra_state(state["generator"] if self.stateful() else state)
        self._restore(state)

    def _restore(self, state: dict[str, Any]) -> None:
        for name, module in self.stateful().items():
            _unpack_all(module, state[name])


class TorchJDScalarizer(_Adapter, Objective):
    """A TorchJD scalarizer as an objective."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__(part)
        self.needs_after_step = hasattr(part, "update")  # FAMO

    def forward(self, losses: Tensor) -> Tensor:
        """Returns the scalarizer's value of the losses `[K']`."""
        value: Tensor = self.call(self.part, losses, len(losses))
        return value

    def end_epoch(self) -> None:
        """Rolls the history of DWA."""
        if hasattr(self.part, "step"):
            self.part.step()

    def after_step(self, losses: Tensor) -> None:
        """Hands the losses `[K']` to FAMO, unless the step they belong to was dropped."""
        if self.needs_after_step and self.part._prev_losses is not None:
            self.part.update(losses)
            self.part._prev_losses = None


class TorchJDGramianWeighting(_Adapter, GramianAggregator):
    """A TorchJD weighting of the Gramian as an aggregator."""

    @torch.no_grad()
    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Returns the weighting's weights `[K']`."""
        found: Tensor = self.call(self.part, gramian, len(gramian))
        return found.to(gramian)


class TorchJDMatrixWeighting(_Adapter, Aggregator):
    """A TorchJD weighting of the Jacobian as an aggregator. The Jacobian is built, `K' · P` numbers."""

    @torch.no_grad()
    def aggregate(self, gradients: Gradients, losses: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns `Σ_k w_k g_k` of every parameter, and the weights `[K']`."""
        jacobian, finite = _jacobian(gradients)
        weights = torch.where(finite, self.call(self.part, jacobian, len(jacobian)), torch.nan)
        return combine(gradients, weights), weights


class TorchJDAggregator(_Adapter, Aggregator):
    """Any other TorchJD aggregator. The Jacobian is built, `K' · P` numbers."""

    @torch.no_grad()
    def aggregate(self, gradients: Gradients, losses: Tensor) -> tuple[list[Tensor], None]:
        """Returns the combined gradient of every parameter; there are no weights."""
        jacobian, finite = _jacobian(gradients)
        combined = torch.where(finite, self.call(self.part, jacobian, len(jacobian)), torch.nan)
        some = _some(gradients)
        if any(gradient.is_complex() for gradient in some):
            raise TypeError(f"TorchJD's {type(self.part).__name__} takes real parameters only, found a complex one.")
        parts = torch.split(combined, [gradient.numel() for gradient in some])
        return [like(shard_of(p.view(g.shape), g).to(local(g)), g) for p, g in zip(parts, some, strict=True)], None


def _some(gradients: Gradients) -> list[Tensor]:
    return [next(g for g in column if g is not None) for column in zip(*gradients, strict=True)]


def _jacobian(gradients: Gradients) -> tuple[Tensor, Tensor]:
    """Returns `J [K', P]`, or unit rows where it is not finite, and whether it is: TorchJD's solvers raise for NaN."""
    full = [[None if g is None else as_real(gathered(g)) for g in row] for row in gradients]
    some = _some(full)
    rows = [
        torch.cat([torch.zeros_like(o).flatten() if g is None else g.flatten() for g, o in zip(row, some, strict=True)])
        for row in full
    ]
    jacobian = torch.stack(rows)
    finite = jacobian.isfinite().all()
    harmless = torch.eye(*jacobian.shape, dtype=jacobian.dtype, device=jacobian.device)
    return torch.where(finite, jacobian, harmless), finite


def _pack_all(module: Any) -> dict[str, Any]:
    """What a module holds beside parameters and submodules, in kinds that `torch.load(weights_only=True)` takes."""
    inner = vars(nn.Module())
    held = {name: value for name, value in vars(module).items() if name not in inner} | module._buffers
    packed = {name: _pack(value) for name, value in held.items()}
    return {name: value[0] for name, value in packed.items() if value is not None}


def _pack(value: Any) -> tuple[Any] | None:
    """Returns a copy of the value in a tuple, None for what is no state (functions, a solver's problem)."""
    if value is None or isinstance(value, int | float | str | torch.dtype | torch.device):
        return (value,)
    if isinstance(value, Tensor):
        return (value.detach().clone(),)
    if hasattr(value, "__array_interface__"):  # NumPy
        return (torch.tensor(value, device="cpu"),)
    if isinstance(value, torch.optim.Optimizer):
        return _pack(value.state_dict()) or (None,)
    if isinstance(value, dict):
        return ({key: (_pack(item) or (None,))[0] for key, item in value.items()},)
    if isinstance(value, list | tuple):
        return (type(value)((_pack(item) or (None,))[0] for item in value),)
    return None


def _unpack_all(module: Any, packed: dict[str, Any]) -> None:
    """Puts back what `_pack_all` took."""
    for name, value in packed.items():
        taken = _pack(value)
        assert taken is not None
        if name in module._buffers:
            module._buffers[name] = taken[0]
        elif hasattr(vars(module)[name], "__array_interface__"):
            setattr(module, name, taken[0].numpy())
        elif name == "_optimizer" and value is not None:  # FAMO's own
            optimizer = torch.optim.Adam([module._w], module.lr, weight_decay=module.weight_decay)
            optimizer.load_state_dict(taken[0])
            module._optimizer = optimizer
        else:
            setattr(module, name, taken[0])
    if packed.get("step") and hasattr(module, "_init_optim_problem"):  # NashMTL makes its problem in the first step
        module._init_optim_problem()


LIBRARIES.append(Library(is_torchjd, adapt_objective, adapt_aggregator))
