"""Checks of what a method keeps: saved, copied and resumed bit for bit, and untouched of who is absent or mistaken."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from equipoise._method import Method
from equipoise.aggregators import RowStateAggregator
from equipoise.testing._comparing import assert_same, snapshot
from equipoise.testing._subject import PRESENT, TASKS, Network, Subject, batch, step, train

Both = tuple[Network, Method]


def check_resumes_bit_for_bit(subject: Subject) -> None:
    """Saved in the middle, loaded into a new method with `weights_only=True`; the first step after lacks tasks."""
    model, method = subject.make()
    train(model, method, 0, 6)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "method": method.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    twin, resumed = subject.make(seed=77, lr=9.0)
    twin.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["method"])
    assert_same(resumed.state_dict(), method.state_dict(), "load_state_dict does not take over what was saved")
    for index in range(6, len(PRESENT)):
        train(model, method, index, index + 1)
        train(twin, resumed, index, index + 1)
        what = f"after load_state_dict step {index - 5} differs from that of the method that was saved"
        assert_same(twin.state_dict(), model.state_dict(), what)
        assert_same(resumed.state_dict(), method.state_dict(), what)


def check_goes_on_as_a_copy(subject: Subject) -> None:
    """Model and method copied together, or pickled, go on alike; what the copy does leaves the first alone."""
    for how in (copy.deepcopy, _pickled):
        model, method = subject.make()
        train(model, method, 0, 6)
        method.zero_grad()
        twin, other = how((model, method))
        before = snapshot(model, method)
        train(twin, other, 6)
        copied = "copy.deepcopy" if how is copy.deepcopy else "pickle"
        assert_same(snapshot(model, method), before, f"training what {copied} made changes the first")
        train(model, method, 6)
        what = f"what {copied} made does not go on as the first does"
        assert_same(snapshot(twin, other), snapshot(model, method), what)


def check_goes_back_to_a_saved_state(subject: Subject) -> None:
    """Loading into a method that has gone on forgets what came after."""
    model, method = subject.make()
    train(model, method, 0, 3)
    saved = copy.deepcopy((model.state_dict(), method.state_dict()))
    train(model, method, 3)
    expected = copy.deepcopy((model.state_dict(), method.state_dict()))
    model.load_state_dict(saved[0])
    method.load_state_dict(copy.deepcopy(saved[1]))
    assert_same(method.state_dict(), saved[1], "load_state_dict does not take over what was saved")
    train(model, method, 3)
    what = "back at a saved state, the same steps end elsewhere than before"
    assert_same((model.state_dict(), method.state_dict()), expected, what)


def check_saving_changes_nothing(subject: Subject) -> None:
    """`state_dict()` between steps leaves no trace."""
    runs = []
    for save in (False, True):
        model, method = subject.make()
        for index in range(6):
            step(model, method, index, PRESENT[index])
            if save:
                method.state_dict()
        runs.append(snapshot(model, method))
    assert_same(runs[1], runs[0], "with state_dict() called between them, steps differ from those without")


def check_a_balancers_state_is_tensors_whose_sizes_stay(subject: Subject) -> None:
    """Formats of checkpoints ask for it: safetensors for the one, PyTorch's distributed ones for the other."""
    if subject.is_optimizer:
        return
    model, method = subject.make()
    assert method.balancer is not None
    if any(isinstance(part, RowStateAggregator) for part in subject.parts):  # as an optimizer's, it begins with a step
        train(model, method, stop=1)
    shapes = [{key: value.shape for key, value in method.balancer.state_dict().items()}]
    for stop in (3, 12):
        train(model, method, stop=stop)
        shapes.append({key: value.shape for key, value in method.balancer.state_dict().items()})
    for later in shapes[1:]:
        changed = [name for name in {**shapes[0], **later} if shapes[0].get(name) != later.get(name)]
        assert not changed, f"the state's sizes change while training: {', '.join(changed)}"


def check_the_state_of_an_absent_task_is_untouched(subject: Subject) -> None:
    """Steps without a task leave what is kept of it as it was."""
    if subject.single is not None:
        return
    for absent in TASKS:
        model, method = subject.make()
        train(model, method, 0, 5)
        method.end_epoch()
        before = _state_of(method, absent)
        for index in range(5, 8):
            step(model, method, index, [t for t in TASKS if t != absent])
            method.end_epoch({t: 0.5 for t in TASKS if t != absent})
        assert bool(before) == subject.keeps, "what is kept of a task was not found"
        what = f"three steps without task {absent!r} changed what is kept of it"
        assert_same(_state_of(method, absent), before, what)


def check_state_never_becomes_narrower(subject: Subject) -> None:
    """A balancer that is part of a model goes along with `.bfloat16()`; what it keeps does not."""
    if subject.is_optimizer:
        return
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        results = []
        for moved in (True, False):
            model, method = subject.make()
            assert method.balancer is not None
            for start in (0, 6):
                if moved:
                    method.balancer.to(dtype)
                train(model, method, start, start + 6)
            results.append((model.state_dict(), method.state_dict()))
        what = f"a method that was moved by .to({dtype}) does not go on as one that was not"
        assert_same(results[0], results[1], what)


def check_errors_change_nothing(subject: Subject) -> None:
    """A call that is wrong raises, and leaves model, method and `.grad` as they were."""
    wrong: dict[str, Callable[[Network, Method], object]] = {
        "unknown task": lambda m, one: one.backward({**m.losses(batch(9)), "d": m.losses(batch(9))["a"]}),
        "no losses": lambda m, one: one.backward({}),
        "no mapping": lambda m, one: one.backward(_anything(list(m.losses(batch(9)).values()))),
        "a number": lambda m, one: one.backward(_anything(dict.fromkeys(TASKS, 1.0))),
        "a vector": lambda m, one: one.backward({t: loss.expand(3) for t, loss in m.losses(batch(9)).items()}),
        "no graph": lambda m, one: one.backward({t: loss.detach() for t, loss in m.losses(batch(9)).items()}),
        "NaN": lambda m, one: one.backward({t: loss * math.nan for t, loss in m.losses(batch(9)).items()}),
        "infinite": lambda m, one: one.backward({t: loss / 0 for t, loss in m.losses(batch(9)).items()}),
        "counts of nobody": lambda m, one: one.backward(m.losses(batch(9)), counts={}),
        "negative counts": lambda m, one: one.backward(m.losses(batch(9)), counts=dict.fromkeys(TASKS, -1)),
        "validation loss that is no tensor": lambda m, one: one.observe_validation(_anything({"a": 1.0})),
        "validation loss of an unknown task": lambda m, one: one.observe_validation({"d": torch.ones(())}),
        "accuracy of an unknown task": lambda m, one: one.end_epoch({"d": 0.5}),
        "an accuracy of 1.2": lambda m, one: one.end_epoch({"a": 0.5, "b": 1.2}),
    }
    (model, method), (twin, undisturbed) = subject.make(), subject.make()
    for m, one in ((model, method), (twin, undisturbed)):
        train(m, one, 0, 4)
        one.zero_grad()
        one.backward(m.losses(batch(4)))
    before = snapshot(model, method)
    for what, act in wrong.items():
        try:
            act(model, method)
        except (ValueError, TypeError):
            pass
        else:
            raise AssertionError(f"a wrong call ({what}) raised no ValueError or TypeError")
        assert_same(snapshot(model, method), before, f"a call that raised ({what}) changed something")
    for m, one in ((model, method), (twin, undisturbed)):
        one.step()
        train(m, one, 5, 8)
    what = "after calls that raised, steps differ from those of a method without such calls"
    assert_same(snapshot(model, method), snapshot(twin, undisturbed), what)


def _pickled(both: Both) -> Both:
    copied: Both = pickle.loads(pickle.dumps(both))
    return copied


def _anything(value: Any) -> Any:
    """Hides from a type checker that a call is wrong."""
    return value


def _state_of(method: Method, task: str) -> list[Tensor]:
    """What a method keeps of a task: entries of `[K]` and `[K, K]` tensors, and an optimizer's moments."""
    position = TASKS.index(task)
    kept: list[Tensor] = []
    if method.balancer is None:
        state: Mapping[str, Any]
        for state in method.optimizer.state.values():
            steps, own = state.get("step"), state.get(task, {})
            kept += [steps[position]] if isinstance(steps, Tensor) and steps.dim() == 1 else []
            kept += [value for key, value in state.items() if key.endswith(f".{task}")]
            kept += [value for value in own.values() if isinstance(value, Tensor)]
    else:
        for part in (method.balancer.objective, method.balancer.aggregator):
            if part is not None:
                kept += [t[position] for t in part.buffers() if t.dim()]
                kept += [t[:, position] for name, t in part.named_buffers() if name in part._pairs]
                kept += [p for name, p in part.named_parameters() if name.endswith(f".{position}")]
    return [t.detach().clone() for t in kept]
