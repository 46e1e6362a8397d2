"""The Gramian by layers equals that of rows from separate backward passes, whatever the graph is made of."""

import warnings
import weakref

import pytest
import torch
from layered_networks import CASES, Checkpointed, Complex, doubles, mlp
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from ways import NeedsValues

from equipoise.gradients.layers import Unsupported, gramian_by_layers, layers_save

K = 5
WITHIN = {torch.float64: 1e-10, torch.float32: 1e-5}


def by_rows(roots, cotangents, leaves, also=None):
    """The Gramian from one backward pass a task."""
    rows = []
    for k in range(K):
        found = torch.autograd.grad(
            roots, leaves, [rows[k] for rows in cotangents], retain_graph=True, allow_unused=True
        )
        row = []
        for leaf, gradient in zip(leaves, found, strict=True):
            gradient = torch.zeros_like(leaf) if gradient is None else gradient
            if also is not None and leaf in also:
                gradient = gradient + also[leaf][k]
            row.append((torch.view_as_real(gradient) if gradient.is_complex() else gradient).flatten().double())
        rows.append(torch.cat(row))
    return torch.stack(rows) @ torch.stack(rows).T


def cotangents_of(outputs):
    return [torch.randn(K, *output.shape, dtype=output.dtype) for output in outputs]


def assert_close(found, expected, within):
    norms = expected.diagonal().sqrt()
    assert found.dtype == torch.float64
    assert (found - expected).abs().max() <= within * (norms[:, None] * norms).max()


tells_packing = pytest.mark.skipif(
    not hasattr(nn.Linear(1, 1)(torch.ones(1, 1)).grad_fn._raw_saved_mat1, "unpack_hook"),
    reason="before 2.7 PyTorch does not tell which saved tensors hooks have packed, and rows are taken",
)


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("case", [pytest.param(c, marks=tells_packing) if c == "checkpoint" else c for c in CASES])
def test_equals_rows(case, dtype):
    torch.manual_seed(0)
    make, inputs = CASES[case]
    model, x = make().to(dtype), inputs()
    assert_equals_rows([model(x.to(dtype) if x.is_floating_point() else x)], model.parameters(), WITHIN[dtype])


def assert_equals_rows(outputs, leaves, within=1e-10):
    """Also that nothing is left behind: no hook, no `.grad`, and the graph as it was."""
    leaves, cotangents = list(leaves), cotangents_of(outputs)
    hooks = [dict(leaf._backward_hooks or {}) for leaf in leaves]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = gramian_by_layers([get_gradient_edge(output) for output in outputs], cotangents, leaves)
    assert [dict(leaf._backward_hooks or {}) for leaf in leaves] == hooks
    expected = by_rows(outputs, cotangents, leaves)
    assert expected.diagonal().min() > 0
    assert_close(found, expected, within)
    assert all(leaf.grad is None for leaf in leaves)


def test_complex_leaves():
    torch.manual_seed(0)
    model = Complex()
    assert_equals_rows([model(torch.randn(3, 6, dtype=torch.float64))], model.parameters())


@tells_packing
def test_random_numbers_are_left_alone():
    model = Checkpointed()
    output = model(torch.randn(2, 6))
    cotangents = cotangents_of([output])
    state = torch.get_rng_state()
    gramian_by_layers([get_gradient_edge(output)], cotangents, list(model.parameters()))
    assert torch.equal(torch.get_rng_state(), state)


def test_partly_shared_with_roots_below_others():
    trunk, branch = mlp(6, 8, 8), mlp(8, 8)
    z = trunk(doubles(2, 6))
    assert_equals_rows([branch(z), z, branch[0](z)], [*trunk.parameters(), *branch.parameters()])


def test_only_the_leaves_asked_for():
    model = mlp(9, 8, 8, 4)
    x = doubles(2, 9).requires_grad_()
    assert_equals_rows([model(x)], [model[2].weight, model[4].bias])
    assert_equals_rows([model(x)], [model[0].weight, doubles(3).requires_grad_()])  # one that is not reached
    assert_equals_rows([model(x)], [model[2].weight])  # which nothing else leads autograd to


def test_leaves_that_heads_use_themselves():
    model = mlp(6, 6, 6)
    z = model(doubles(2, 6))
    leaves, cotangents = list(model.parameters()), cotangents_of([z])
    unreached = doubles(4).requires_grad_()
    also = {leaf: doubles(K, *leaf.shape) for leaf in (model[0].weight, model[2].bias, unreached)}
    found = gramian_by_layers([get_gradient_edge(z)], cotangents, [*leaves, unreached], also)
    assert_close(found, by_rows([z], cotangents, [*leaves, unreached], also), 1e-10)
    as_roots = [get_gradient_edge(z), *map(get_gradient_edge, also)]
    assert_close(gramian_by_layers(as_roots, [*cotangents, *also.values()], [*leaves, unreached]), found, 1e-12)


def negated(gradient):
    return -3 * gradient.clamp(-0.1, 0.2)


def hooked_output(model, x):
    hidden = model[0](x)
    hidden.register_hook(negated)
    return model[1:](hidden)


def hooked_view(model, x):
    view = model[0].weight.t()
    view.register_hook(negated)
    return model[1:](torch.addmm(model[0].bias, x, view))


def hooked_leaf(model, x):
    model[0].weight.register_hook(negated)
    return model(x)


def constant_leaf(model, x):
    model[0].weight.register_hook(lambda gradient: torch.ones(6, 6, dtype=torch.float64))
    return model(x)


def hooked_before_node(model, x):
    hidden = model[0](x)
    hidden.grad_fn.register_prehook(lambda gradients: tuple(map(negated, gradients)))
    return model[1:](hidden)


def hooked_after_node(model, x):
    hidden = model[0](x)
    hidden.grad_fn.register_hook(lambda into, _: tuple(g if g is None else negated(g) for g in into))
    return model[1:](hidden)


def hooked_module(model, x):
    model[0].register_full_backward_pre_hook(lambda _, gradients: tuple(map(negated, gradients)))
    model[2].register_full_backward_hook(lambda _, into, __: tuple(map(negated, into)))
    return model(x)


@pytest.mark.parametrize(
    "hooked",
    [hooked_output, hooked_view, hooked_leaf, constant_leaf, hooked_before_node, hooked_after_node, hooked_module],
)
def test_hooks_change_gradients_as_in_any_backward_pass(hooked):
    model = mlp(6, 6, 6)
    assert_equals_rows([hooked(model, doubles(2, 6))], model.parameters())


def test_a_hook_is_called_once_with_the_gradient():
    model, seen = mlp(6, 6), []
    z = model(doubles(2, 6))
    model[0].weight.register_hook(lambda gradient: seen.append(min(gradient.stride())))
    gramian_by_layers([get_gradient_edge(z)], cotangents_of([z]), list(model.parameters()))
    assert seen == [1]  # not the zeros, of stride 0, that are sent through views


@pytest.mark.parametrize("positions", [2, 50])  # by a closed form, and explicitly
def test_a_tensor_changed_in_place_is_autograds_error(positions):
    model = mlp(6, 6, 6)
    hidden = model[:2](doubles(positions, 6))
    z = model[2](hidden)
    with torch.no_grad():
        hidden.mul_(2)
    weights = [model[0].weight, model[2].weight]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gramian_by_layers([get_gradient_edge(z)], cotangents_of([z]), weights)
    assert all(not leaf._backward_hooks for leaf in model.parameters())


def test_a_released_graph_is_autograds_error():
    model = mlp(6, 6, 6)
    z = model(doubles(2, 6))
    z.sum().backward()
    with pytest.raises(RuntimeError, match="a second time"):
        gramian_by_layers([get_gradient_edge(z)], cotangents_of([z]), list(model.parameters()))


def test_what_takes_one_task_at_a_time_is_unsupported():
    model = mlp(6, 6)
    z = NeedsValues.apply(model(doubles(2, 6)))
    with pytest.raises(Unsupported, match="together"):
        gramian_by_layers([get_gradient_edge(z)], cotangents_of([z]), list(model.parameters()))
    assert all(leaf.grad is None and not leaf._backward_hooks for leaf in model.parameters())
    z.sum().backward()


def test_compiled_graphs_are_unsupported():
    model = mlp(6, 6)
    z = torch.compile(model, backend="aot_eager")(doubles(2, 6))
    with pytest.raises(Unsupported, match="compiled"):
        gramian_by_layers([get_gradient_edge(z)], cotangents_of([z]), list(model.parameters()))
    assert not layers_save([get_gradient_edge(z)], list(model.parameters()), 100)


def test_autocast():
    """Rounded to bfloat16 in another order than one by one, so only close."""
    model = mlp(16, 16, 16).float()
    with torch.autocast("cpu", torch.bfloat16):
        z = model(torch.randn(4, 16))
    assert_equals_rows([z], model.parameters(), within=2e-2)


def storages(tree):
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Memory(TorchDispatchMode):
    """Counts the numbers in memory that is taken while it is on: the largest piece, and the most at a time."""

    def __init__(self):
        super().__init__()
        self.largest = self.held = self.most = 0
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.update(storages((args, kwargs)))
        result = func(*args, **(kwargs or {}))
        for storage in storages(result):
            if storage not in self.seen:
                self.seen.add(storage)
                size = storage.nbytes() // 4
                self.largest = max(self.largest, size)
                self.held += size
                self.most = max(self.most, self.held)
                weakref.finalize(storage, self.release, size)
        return result

    def release(self, size):
        self.held -= size


@pytest.mark.parametrize("positions", [8, 256])  # by closed forms, and explicitly
def test_memory(positions):
    tasks, layers, width = 20, 12, 128
    model = mlp(*[width] * (layers + 1)).float()
    z, leaves = model(torch.randn(positions, width)), list(model.parameters())
    cotangents = [torch.randn(tasks, *z.shape)]
    with Memory() as memory:
        gramian_by_layers([get_gradient_edge(z)], cotangents, leaves)
    layer, outputs = tasks * width**2, tasks * positions * width
    assert sum(leaf.numel() for leaf in leaves) * tasks > 12 * layer
    if positions == 8:  # at no time the gradients of one layer
        assert memory.most < layer
    else:
        assert memory.largest <= 2.1 * layer  # with its bias, in float64
        assert memory.most < 3 * layer + 3 * outputs


def saves(model, positions, tasks):
    z = model(doubles(positions, model[0].in_features))
    return layers_save([get_gradient_edge(z)], list(model.parameters()), tasks)


def test_layers_save_where_they_hold_less_for_hardly_more_work():
    deep = mlp(*[64] * 41)
    assert saves(deep, 8, 26)
    assert saves(deep, 64, 26)
    assert not saves(deep, 64, 2)  # a third backward pass beside two
    assert not saves(deep, 4096, 26)  # outputs are larger than layers
    wide = mlp(512, 512)  # one layer is all there is
    assert saves(wide, 8, 26)  # but its gradients are not needed
    assert not saves(wide, 400, 26)


@tells_packing
def test_layers_do_not_save_what_activation_checkpointing_has_packed():
    wide, x = mlp(512, 512), doubles(8, 512)
    z = checkpoint(wide, x, use_reentrant=False)
    assert not layers_save([get_gradient_edge(z)], list(wide.parameters()), 26)
    deep, x = mlp(*[64] * 41), doubles(8, 64)
    z = checkpoint(deep, x, use_reentrant=False)
    assert layers_save([get_gradient_edge(z)], list(deep.parameters()), 26)  # a layer's rows at a time
