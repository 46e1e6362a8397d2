"""Without being asked for, layers are taken where shapes say that they save and nothing in the trunk acts by task."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from architectures import SCALES, TASKS, make
from torch import nn
from torch.autograd.graph import register_multi_grad_hook
from ways import NeedsValues, assert_close, balanced, gradients_of, run, tensors

import equipoise as eq

ROWS = "rows: one after the other: on a CPU more gain nothing"


@pytest.fixture
def saving(monkeypatch):
    """Shapes say that layers save, however small the network."""
    monkeypatch.setattr("equipoise._collect.LITTLE", 0)
    monkeypatch.setattr("equipoise._collect.layers_save", lambda *arguments: True)


def wide_losses(trunk, rows):
    z = trunk(torch.randn(rows, 512))
    return {task: (SCALES[task] * z[:, index]).square().mean() for index, task in enumerate(TASKS)}


@pytest.mark.parametrize(("width", "rows", "way"), [(512, 16, "layers"), (512, 1024, ROWS), (16, 16, ROWS)])
def test_shapes_decide(width, rows, way):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(512, width), nn.ReLU(), nn.Linear(width, 512))
    balancer = eq.Balancer(TASKS, aggregator=eq.MGDA())
    for size in (rows, 2 * rows):
        balancer.backward(wide_losses(trunk, size))
        assert balancer.way == way


def test_shapes_decide_anew_in_every_step():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    balancer, ways = eq.Balancer(TASKS, aggregator=eq.MGDA()), []
    for rows in (16, 1024, 16):
        balancer.backward(wide_losses(trunk, rows))
        ways.append(balancer.way)
    assert ways == ["layers", ROWS, "layers"]


@pytest.mark.usefixtures("saving")
@pytest.mark.parametrize(
    ("options", "way"),
    [
        ({}, "layers"),
        ({"engine": "rows"}, ROWS),
        ({"chunk_size": 4}, "rows: chunk_size=4"),
        ({"aggregator": eq.GradDrop}, ROWS),
    ],
)
def test_what_is_asked_for_comes_first(options, way):
    ways = []
    run(lambda model: None, balanced(ways, **options))
    assert ways == [way, way]


@pytest.mark.usefixtures("saving")
def test_on_an_accelerator_they_are_named(monkeypatch):
    model, balancer = make("mlp"), eq.Balancer(TASKS, aggregator=eq.MGDA())
    monkeypatch.setattr("equipoise._collect.CHOSEN_ON", ())
    for _ in range(2):
        balancer.backward(model.losses(0))
        assert balancer.way == f"{ROWS}; engine='layers' would hold less"


def clip(gradient):
    return gradient.clamp(-0.01, 0.01)


def clip_in_place(gradient):
    entries = gradient.numpy()
    np.clip(entries, -0.01, 0.01, out=entries)


class Clip(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return clip(gradient)


class ClipWithoutRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return clip(gradient)


def with_hidden(model, look):
    """Has `look` see the trunk's inner tensor in each step; what it returns takes the tensor's place."""
    model.trunk[1].register_forward_hook(lambda module, args, output: look(output))


def hooked(hook):
    def change(model):
        with_hidden(model, lambda hidden: hidden.register_hook(hook) and None)

    return change


def retained(model):
    model.seen = []
    with_hidden(model, lambda hidden: hidden.retain_grad() or model.seen.append(hidden))


def stored(model):
    model.seen = []
    hooked(model.seen.append)(model)


def stored_without_history(model):
    model.seen = []
    hooked(lambda gradient: model.seen.append(gradient.data))(model)


def logged(model):
    model.seen = []
    hooked(lambda gradient: model.seen.append(gradient.norm()))(model)


def stored_together(model):
    model.seen = []
    with_hidden(model, lambda hidden: register_multi_grad_hook([hidden], model.seen.extend) and None)


def on_a_parameter(model):
    model.trunk[0].weight.register_hook(clip)


def on_a_view(model):
    layer = model.trunk[0]

    def forward(x):
        view = layer.weight.t()
        view.register_hook(clip)
        return torch.addmm(layer.bias, x, view)

    layer.forward = forward


def on_a_node(model):
    with_hidden(model, lambda h: h.grad_fn.register_hook(lambda into, _: tuple(map(clip, into))) and None)


def before_a_node(model):
    with_hidden(model, lambda h: h.grad_fn.register_prehook(lambda gradients: tuple(map(clip, gradients))) and None)


def on_a_module(model):
    model.trunk[2].register_full_backward_hook(lambda _, into, __: tuple(map(clip, into)))


def before_a_module(model):
    model.trunk[2].register_full_backward_pre_hook(lambda _, gradients: tuple(map(clip, gradients)))


def at_the_cut(model):
    model.trunk.register_forward_hook(lambda _, __, output: output.register_hook(clip) and None)


def hidden_in_a_view(model):
    """An `autograd.Function` that works in place on a view is inside another node."""

    class Inside(Clip):
        @staticmethod
        def forward(x):
            return x.mul_(1)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.mark_dirty(output)

    def look(hidden):
        whole = hidden.clone()
        Inside.apply(whole[:, 1:])
        return whole

    with_hidden(model, look)


ACTING = {
    "linear": (hooked(lambda gradient: -3 * gradient), "a tensor of the trunk has a hook"),
    "clipping": (hooked(clip), "a tensor of the trunk has a hook"),
    "clipping in place": (hooked(clip_in_place), "a tensor of the trunk has a hook"),
    "retain_grad": (retained, "a tensor of the trunk has a hook"),
    "storing": (stored, "a tensor of the trunk has a hook"),
    "storing without history": (stored_without_history, "a tensor of the trunk has a hook"),
    "storing several": (stored_together, "a tensor of the trunk has a hook"),
    "logging": (logged, "a tensor of the trunk has a hook"),
    "view": (on_a_view, "a tensor of the trunk has a hook"),
    "cut": (at_the_cut, "a tensor of the trunk has a hook"),
    "parameter": (on_a_parameter, "a parameter has a hook"),
    "node": (on_a_node, "a node of the graph has a hook"),
    "before a node": (before_a_node, "a node of the graph has a hook"),
    "module": (on_a_module, "BackwardHookFunctionBackward need not be linear"),
    "before a module": (before_a_module, "BackwardHookFunctionBackward need not be linear"),
    "function": (lambda model: with_hidden(model, Clip.apply), "ClipBackward need not be linear"),
    "function without a rule": (
        lambda model: with_hidden(model, ClipWithoutRule.apply),
        "ClipWithoutRuleBackward need not be linear",
    ),
    "function in a view": (hidden_in_a_view, "CopySlices need not be linear"),
}


@pytest.mark.usefixtures("saving")
@pytest.mark.parametrize("case", ACTING)
def test_what_acts_on_each_task_sees_every_row(case):
    change, because = ACTING[case]
    ways = []
    found = run(change, balanced(ways, aggregator=eq.IMTLG))
    assert ways == [f"rows, not layers ({because}): one after the other: on a CPU more gain nothing"] * 2
    expected = run(change, balanced(aggregator=eq.IMTLG, engine="rows"))
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("saving")
@pytest.mark.parametrize(
    ("change", "zeros"), [(retained, 0), (stored, 1), (stored_without_history, 1), (stored_together, 0), (logged, 1)]
)
def test_what_hooks_keep_is_that_of_rows_after_zeros_once(change, zeros):
    def kept(engine):
        model = make("mlp")
        change(model)
        balancer = eq.Balancer(TASKS, aggregator=eq.MGDA(), engine=engine)
        for step in range(2):
            balancer.backward(model.losses(step))
        return [seen.grad if seen.requires_grad and seen.grad_fn is not None else seen for seen in model.seen]

    found, expected = kept(None), kept("rows")
    assert not any(seen.any() for seen in found[:zeros])
    found = found[zeros:]
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.usefixtures("saving")
def test_a_hook_that_does_nothing_with_gradients_does_no_harm():
    calls = []
    ways = []
    found = run(hooked(lambda gradient: calls.append(0)), balanced(ways))
    assert ways == ["layers", "layers"]
    assert len(calls) == 2 * 3  # zeros, all tasks together, their weighted sum
    assert_close(found, run(lambda model: None, balanced(engine="rows")), 1e-10)


@pytest.mark.usefixtures("saving")
def test_a_hook_above_the_cut_is_called_a_task():
    def change(model):
        model.heads["b"].weight.register_hook(clip)

    ways = []
    found = run(change, balanced(ways))
    assert ways == ["layers", "layers"]
    assert_close(found, run(change, balanced(engine="rows")), 1e-10)


@pytest.mark.usefixtures("saving")
@pytest.mark.parametrize("engine", [None, "layers"])
def test_a_step_by_rows_stays_one_after_resuming(engine):
    """What was there in the first step and is not any more is known to checkpoints."""

    def trained(steps, model, balancer):
        found = {}
        for step in steps:
            model.zero_grad()
            handle = model.trunk[1].register_forward_hook(
                lambda module, args, output, step=step: NeedsValues.apply(output) if step == 0 else None
            )
            balancer.backward(model.losses(step))
            handle.remove()
            found |= tensors({f"gradients {step}": gradients_of(model)})
        return found

    model, balancer = make("mlp"), eq.Balancer(TASKS, aggregator=eq.MGDA(), engine=engine)
    trained([0], model, balancer)
    resumed = copy.deepcopy(model), eq.Balancer(TASKS, aggregator=eq.MGDA(), engine=engine)
    resumed[1].load_state_dict(balancer.state_dict())
    expected, found = trained([1, 2], model, balancer), trained([1, 2], *resumed)
    assert balancer.way.startswith("rows, not layers (")
    assert resumed[1].way == balancer.way
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("saving")
def test_another_engine_does_not_go_by_what_one_has_found():
    model, balancer = make("mlp"), eq.Balancer(TASKS, aggregator=eq.MGDA())
    hooked(clip)(model)
    balancer.backward(model.losses(0))
    asked = eq.Balancer(TASKS, aggregator=eq.MGDA(), engine="layers")
    asked.load_state_dict(balancer.state_dict())
    asked.backward(model.losses(0))
    assert asked.way == "layers"
