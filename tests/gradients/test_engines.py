"""Whichever way a step takes through the graphs, its numbers are those of one backward pass a task."""

from __future__ import annotations

import copy
import pickle
from functools import cache

import pytest
import torch
from architectures import ARCHITECTURES, TASKS, make
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import equipoise as eq

WITHIN = {torch.float64: 1e-10, torch.float32: 1e-5}
METHODS = {
    "pcgrad": eq.PCGrad,
    "mgda": eq.MGDA,
    "cagrad": eq.CAGrad,
    "nash-mtl": eq.NashMTL,
    "imtl-g": eq.IMTLG,
    "gradnorm": eq.GradNorm,
}
WAYS = {
    "layers": {"engine": "layers"},
    "rows, 3 at once": {"engine": "rows", "chunk_size": 3},
    "rows, all at once": {"engine": "rows", "chunk_size": len(TASKS)},
}
ONE_BY_ONE = {"engine": "rows", "chunk_size": 1}


def tensors(tree, path=""):
    """All tensors of nested mappings and sequences, by path; numbers as tensors, too."""
    if isinstance(tree, Tensor):
        return {path: tree.detach().clone()}
    if isinstance(tree, dict):
        tree = list(tree.items())
    elif isinstance(tree, list | tuple):
        tree = list(enumerate(tree))
    elif isinstance(tree, float):
        return {path: torch.tensor(tree)}
    else:
        return {}
    return {name: tensor for key, value in tree for name, tensor in tensors(value, f"{path}/{key}").items()}


def assert_close(found, expected, within):
    """Every tensor, measured by the largest entry of all of its kind: some gradients are 0 but for rounding."""
    assert list(found) == list(expected)
    scales: dict[str, float] = {}
    for name, tensor in expected.items():
        kind = name.split("/")[1]
        scales[kind] = max(scales.get(kind, 0.0), tensor.double().abs().max().item())
    for name, tensor in expected.items():
        off = (found[name].double() - tensor.double()).abs().max().item()
        assert off <= within * scales[name.split("/")[1]], f"{name} is off by {off}"


class Recording:
    """Keeps the Gramian that an aggregator is given."""

    def __init__(self, aggregator):
        self.gramians = []
        self._solved = aggregator.solved
        aggregator.solved = self

    def __call__(self, gramian, *arguments):
        self.gramians.append(gramian.clone())
        return self._solved(gramian, *arguments)


def shared_gramian(model, losses):
    """The Gramian from a backward pass a task, on the leaves that two or more reach."""
    parameters = list(model.parameters())
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses.values()]
    columns = [column for column in zip(*rows, strict=True) if sum(g is not None for g in column) > 1]
    matrix = torch.stack(
        [
            torch.cat(
                [
                    (torch.zeros_like(next(g for g in column if g is not None)) if column[k] is None else column[k])
                    .flatten()
                    .double()
                    for column in columns
                ]
            )
            for k in range(len(rows))
        ]
    )
    return matrix @ matrix.T


def trained(architecture, method, dtype, **options):
    """What two steps come to: gradients, weights, state; the Gramians, and what they are by hand; and the ways."""
    model = make(architecture, dtype)
    balancer = eq.Balancer(TASKS, aggregator=METHODS[method](), **options)
    recording = Recording(balancer.aggregator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found, by_hand, ways = {}, [], set()
    for step in range(2):
        torch.manual_seed(step)
        losses = model.losses(step)
        if options == ONE_BY_ONE:
            by_hand.append(shared_gramian(model, losses))
        optimizer.zero_grad()
        weights = balancer.backward(losses)
        ways.add(balancer.way)
        found |= tensors({f"gradients {step}": gradients_of(model), f"weights {step}": weights})
        optimizer.step()
    state = balancer.state_dict()
    state.pop("_extra_state")
    return found | tensors({"model": dict(model.state_dict()), "state": dict(state)}), recording.gramians, by_hand, ways


@cache
def one_by_one(architecture, method, dtype):
    found, gramians, by_hand, ways = trained(architecture, method, dtype, **ONE_BY_ONE)
    assert ways == {"rows: chunk_size=1"}
    assert_gramians(gramians, by_hand, WITHIN[dtype])
    return found, by_hand


def assert_gramians(found, expected, within):
    for gramian, by_hand in zip(found, expected, strict=True):
        assert (gramian - by_hand).abs().max() <= within * by_hand.abs().max()


EVERY = [(way, dtype) for way in WAYS for dtype in WITHIN if way != "rows, 3 at once" or dtype == torch.float64]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("way", "dtype"), EVERY)
def test_numbers_are_those_of_a_backward_pass_a_task(way, dtype, architecture, method):
    found, gramians, _, ways = trained(architecture, method, dtype, **WAYS[way])
    if architecture == "forward a task":
        asked = ", not layers (the tasks' graphs merge at parameters alone)" if way == "layers" else ""
        why = "on a CPU more gain nothing" if way == "layers" else "no two tasks share a part of the graph"
        assert ways == {f"rows{asked}: one after the other: {why}"}
    elif way == "layers":
        assert ways == {"layers"}
    else:
        assert ways == {f"rows: chunk_size={WAYS[way]['chunk_size']}"}
    expected, by_hand = one_by_one(architecture, method, dtype)
    assert_gramians(gramians, by_hand, WITHIN[dtype])
    assert_close(found, expected, WITHIN[dtype])


def moved_by_mao(architecture, dtype, chunk_size):
    model = make(architecture, dtype)
    optimizer = eq.MAO(model.parameters(), TASKS, lr=0.01, eps=1e-2, chunk_size=chunk_size)
    for step in range(2):
        torch.manual_seed(step)
        optimizer.backward(model.losses(step))
        optimizer.step()
        optimizer.zero_grad()
    moments = {
        name: {key: value for key, value in optimizer.state[p].items() if "avg" in key}
        for name, p in model.named_parameters()
    }
    return tensors({"model": dict(model.state_dict()), "state": moments})


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("chunk_size", [3, len(TASKS)])
def test_mao_moves_by_the_same(chunk_size, architecture, dtype):
    assert_close(moved_by_mao(architecture, dtype, chunk_size), moved_by_mao(architecture, dtype, 1), WITHIN[dtype])


class NeedsValues(torch.autograd.Function):
    """Its backward pass looks at a number."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (2 if gradient.sum().item() > 1e9 else 3)


class Doubled(torch.autograd.Function):
    """Has no rule for `torch.vmap`."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class CallsAnother(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        return Doubled.apply(gradient)


class WritesInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return 3 * x

    @staticmethod
    def backward(ctx, gradient):
        result = torch.empty(ctx.shape, dtype=gradient.dtype)
        return result.copy_(gradient).mul_(3)


def with_function(function):
    def change(model):
        model.trunk.register_forward_hook(lambda module, args, output: function.apply(output))

    return change


def sparse(model):
    embedding = nn.Embedding(7, 4, sparse=True)
    nn.init.constant_(embedding.weight, 0.3)
    model.trunk.insert(0, embedding.double())
    model.inputs = lambda step: torch.tensor([[1], [3], [1], [6], [2]]) % (5 - step)
    model.features = lambda x: dict.fromkeys(TASKS, model.trunk(x[:, 0]))


def tied(model):
    def features(x):
        z = model.trunk(x)
        return {task: z + model.trunk[0].weight[:6].sum(1) for task in TASKS}

    model.features = features


def compiled(model):
    model.trunk = torch.compile(model.trunk, backend="aot_eager")


def checkpointed(model):
    inner = nn.Sequential(model.trunk, nn.Dropout(0.5), nn.Linear(6, 6).double())
    model.trunk = nn.Sequential(inner[2])
    model.inner = inner
    model.features = lambda x: dict.fromkeys(TASKS, checkpoint(inner, x, use_reentrant=False))


def run(change, make_step, steps=2):
    torch.manual_seed(2)
    model = make("mlp")
    change(model)
    step, found = make_step(model), {}
    for index in range(steps):
        torch.manual_seed(index)
        found |= {f"/{index}{name}": tensor for name, tensor in step(index).items()}
    return found


def gradients_of(model):
    return {name: p.grad.to_dense() for name, p in model.named_parameters() if p.grad is not None}


def balanced(ways=None, aggregator=eq.MGDA, **options):
    """Makes a step that gives gradients."""

    def make_step(model):
        balancer = eq.Balancer(TASKS, aggregator=aggregator(), **options)

        def step(index):
            model.zero_grad()
            weights = balancer.backward(model.losses(index))
            if ways is not None:
                ways.append(balancer.way)
            return tensors({"gradients": gradients_of(model), "weights": weights})

        return step

    return make_step


def moved(**options):
    """Makes a step of MAO."""

    def make_step(model):
        optimizer = eq.MAO(model.parameters(), TASKS, lr=0.01, eps=1e-2, **options)

        def step(index):
            optimizer.zero_grad()
            optimizer.backward(model.losses(index))
            optimizer.step()
            return tensors({"model": dict(model.state_dict())})

        return step

    return make_step


class Batches:
    """Counts how often several tasks are taken through a graph together."""

    def __init__(self, monkeypatch):
        self.count, self._vmap = 0, torch.vmap
        monkeypatch.setattr(torch, "vmap", self)

    def __call__(self, *arguments, **options):
        self.count += 1
        return self._vmap(*arguments, **options)


@pytest.fixture
def batches(monkeypatch):
    return Batches(monkeypatch)


UNBATCHABLE = {
    "a number": with_function(NeedsValues),
    "a function without a rule": with_function(CallsAnother),
    "writing in place": with_function(WritesInPlace),
    "sparse": sparse,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", UNBATCHABLE)
def test_what_cannot_be_batched_goes_one_by_one_and_is_not_tried_again(case, way, batches):
    expected = run(UNBATCHABLE[case], balanced(**ONE_BY_ONE))
    assert batches.count == 0
    ways = []
    found = run(UNBATCHABLE[case], balanced(ways, **WAYS[way]), steps=2)
    assert_close(found, expected, 1e-10)
    assert batches.count == 1
    first, second = ways
    if way == "layers":
        assert first.startswith("rows, not layers (The tasks cannot go through the graph together: ")
        assert second.startswith(first.removesuffix(")"))
    else:
        assert first.startswith("rows: one after the other: ")
        assert second == first


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", UNBATCHABLE)
def test_mao_takes_what_cannot_be_batched_one_by_one(case, batches):
    expected = run(UNBATCHABLE[case], moved(chunk_size=1))
    assert_close(run(UNBATCHABLE[case], moved(chunk_size=4)), expected, 1e-10)
    assert batches.count == 1


@pytest.mark.filterwarnings("error:equipoise")
def test_compiled_graphs_go_one_by_one(batches):
    torch._dynamo.reset()
    expected = run(lambda model: None, balanced(**ONE_BY_ONE))
    for name, options in WAYS.items():
        ways = []
        assert_close(renamed(run(compiled, balanced(ways, **options))), expected, 1e-10)
        asked = ", not layers (torch.compile made the graph)" if name == "layers" else ""
        why = "on a CPU more gain nothing" if name == "layers" else "torch.compile made the graph"
        assert ways == [f"rows{asked}: one after the other: {why}"] * 2
    assert batches.count == 0


def renamed(found):
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in found.items()}


@pytest.mark.parametrize("way", WAYS)
def test_where_tasks_do_not_part_above_what_they_share(way, batches):
    expected, ways = run(tied, balanced(**ONE_BY_ONE)), []
    assert_close(run(tied, balanced(ways, **WAYS[way])), expected, 1e-10)
    if way == "layers":
        assert ways == ["layers"] * 2
    else:
        assert ways[0].startswith("rows: one after the other: a task's graph is not apart above")
        assert batches.count == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("way", WAYS)
def test_activation_checkpointing_with_dropout(way):
    assert_close(run(checkpointed, balanced(**WAYS[way])), run(checkpointed, balanced(**ONE_BY_ONE)), 1e-10)


@pytest.mark.parametrize("options", [{"engine": "layers"}, {"engine": "rows", "chunk_size": 4}])
def test_a_part_that_cannot_be_batched_may_come_into_play_later(options):
    """Say with a task that had no label before, or where depth is random."""

    def change(model):
        model.trunk.register_forward_hook(
            lambda module, args, output: NeedsValues.apply(output) if args[0].sum() > 0 else output
        )
        model.inputs = lambda step: torch.full((5, 4), float(2 * (step > 1) - 1), dtype=torch.float64)

    ways = []
    found = run(change, balanced(ways, **options), steps=4)
    assert_close(found, run(change, balanced(**ONE_BY_ONE), steps=4), 1e-10)
    assert ways[1] in ("layers", "rows: chunk_size=4")
    assert "together" in ways[2] or "one after the other" in ways[2]


def missing(model, balancer, index):
    every = model.losses(index)
    return balancer.backward({task: every[task] for task in ("bd" if index == 0 else TASKS)})


def not_positive(model, balancer, index):
    losses = model.losses(index)
    losses["b"] = losses["b"] - 100
    return balancer.backward(losses)


def scaled(model, balancer, index):
    return balancer.backward(model.losses(index), scaler=torch.amp.GradScaler("cpu", init_scale=8.0))


def retained(model, balancer, index):
    losses = model.losses(index)
    balancer.backward(losses, retain_graph=True)
    return balancer.backward(losses)


def untrained_inputs(model, balancer, index):
    x = model.inputs(index).requires_grad_()
    model.inputs = lambda step: x
    weights = balancer.backward(model.losses(index))
    del model.inputs
    return weights | {"inputs": x.grad}


def frozen(model, balancer, index):
    model.trunk[0].weight.requires_grad_(False)
    return balancer.backward(model.losses(index))


def gradients_there(model, balancer, index):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return balancer.backward(model.losses(index))


def hooks(model, balancer, index):
    called = []
    changed = [
        model.trunk[0].weight.register_hook(lambda g: -2 * g),
        model.trunk[2].bias.register_hook(lambda g: None),
        model.trunk[2].register_full_backward_hook(lambda _, into, __: tuple(2 * g for g in into)),
        model.trunk[0].bias.register_post_accumulate_grad_hook(called.append),
    ]
    weights = balancer.backward(model.losses(index))
    for handle in changed:
        handle.remove()
    assert called == [model.trunk[0].bias]
    return weights


def hook_at_the_cut(model, balancer, index):
    handle = model.trunk.register_forward_hook(lambda _, __, output: output.register_hook(lambda g: -3 * g) and None)
    weights = balancer.backward(model.losses(index))
    handle.remove()
    return weights


def micro_batches(model, balancer, index):
    balancer.backward(model.losses(index + 5), accumulate=True)
    return balancer.backward(model.losses(index))


def micro_batches_counted(model, balancer, index):
    balancer.backward(model.losses(index + 5), accumulate=True, counts={"a": 1, "b": 2, "c": 0, "d": 4})
    return balancer.backward(model.losses(index), counts=dict.fromkeys(TASKS, 2))


SITUATIONS = [
    missing,
    not_positive,
    scaled,
    retained,
    untrained_inputs,
    frozen,
    gradients_there,
    hooks,
    hook_at_the_cut,
    micro_batches,
    micro_batches_counted,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.filterwarnings("ignore:equipoise")
def test_in_every_situation(situation, way):
    def steps(options):
        model = make("partly shared")
        balancer = eq.Balancer(TASKS, eq.EMA(), eq.CAGrad(), **options)
        found = {}
        for index in range(2):
            model.zero_grad()
            weights = situation(model, balancer, index)
            found |= tensors({f"gradients {index}": gradients_of(model), f"weights {index}": weights})
        return found | tensors({"state": {n: v for n, v in balancer.state_dict().items() if isinstance(v, Tensor)}})

    assert_close(steps(WAYS[way]), steps(ONE_BY_ONE), 1e-10)


@pytest.mark.parametrize("case", ["mlp", "tied", "partly shared"])
@pytest.mark.parametrize("chunk_size", [1, 3, 4])
def test_the_graph_is_released(chunk_size, case):
    """In the first step, which does not know yet whether tasks can go together, as in later ones."""
    model, balancer = make(case), eq.Balancer(TASKS, aggregator=eq.MGDA(), engine="rows", chunk_size=chunk_size)
    for step in range(2):
        losses = model.losses(step)
        balancer.backward(losses)
        for loss in losses.values():
            with pytest.raises(RuntimeError, match="a second time"):
                loss.backward(retain_graph=True)


def test_hooks_that_are_not_linear_see_every_row():
    def clipped(model):
        model.trunk[0].weight.register_hook(lambda g: g.clamp(-0.01, 0.01))
        model.trunk[1].register_full_backward_hook(lambda _, into, __: tuple(g / g.norm() for g in into))

    expected = run(clipped, balanced(**ONE_BY_ONE))
    assert_close(run(clipped, balanced(engine="rows", chunk_size=4)), expected, 1e-10)


@pytest.mark.parametrize(
    ("little", "save", "hint"), [(0, True, "; engine='layers' would hold less"), (0, False, ""), (1 << 20, True, "")]
)
def test_layers_are_not_chosen_but_named_where_they_save(monkeypatch, little, save, hint):
    """Hooks in the trunk, which cannot be seen, would be given tensors of `torch.vmap`'s."""
    monkeypatch.setattr("equipoise._collect.layers_save", lambda *arguments: save)
    monkeypatch.setattr("equipoise._collect.LITTLE", little)
    model, balancer = make("mlp"), eq.Balancer(TASKS, aggregator=eq.MGDA())
    for _ in range(2):
        balancer.backward(model.losses(0))
        assert balancer.way == f"rows: one after the other: on a CPU more gain nothing{hint}"


def test_where_layers_are_asked_for_and_cannot_be(monkeypatch):
    model, balancer = make("mlp"), eq.Balancer(TASKS, aggregator=eq.MGDA(), engine="layers")
    balancer.backward(model.losses(0), accumulate=True)
    assert balancer.way.startswith("rows, not layers (there are micro-batches): ")
    balancer.backward(model.losses(0))
    assert balancer.way.startswith("rows, not layers (there are micro-batches): ")
    balancer.backward({"a": model.losses(0)["a"]})
    assert balancer.way == "rows, not layers (there is one task): one task"
    monkeypatch.setattr(type(balancer.ranks), "active", True)
    balancer.backward(model.losses(0))
    assert balancer.way.startswith("rows, not layers (there are several ranks): ")
    monkeypatch.undo()
    balancer.backward(model.losses(0))
    assert balancer.way == "layers"
    assert "way='layers'" in repr(balancer)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"engine": "columns"}, "'columns'"),
        ({"engine": "layers"}, "no aggregator"),
        ({"engine": "layers", "aggregator": eq.GradDrop()}, "GradDrop"),
        ({"engine": "layers", "aggregator": eq.MGDA(), "probe": nn.Linear(1, 1)}, "a probe"),
    ],
)
def test_engine_that_does_not_fit(options, found):
    with pytest.raises(ValueError, match=f"(?s)engine.*{found}"):
        eq.Balancer(TASKS, **options)


class Kept(torch.autograd.Function):
    """`x`, whose second input's gradient is a tensor that somebody else holds."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, kept):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx, gradient):
        return gradient, ctx.saved_tensors[0], None


def keeping(model):
    model.kept, model.weight = torch.full((3,), 2.0, dtype=torch.float64), nn.Parameter(torch.zeros(3).double())
    model.trunk.register_forward_hook(lambda module, args, output: Kept.apply(output, model.weight, model.kept))


def waiting_rows(model, chunk_size, kind):
    """The rows that wait after a micro-batch, and what goes on with them."""
    if kind == "mao":
        optimizer = eq.MAO(model.parameters(), TASKS, chunk_size=chunk_size)
        optimizer.backward(model.losses(0))
        return optimizer._pending.rows, optimizer.step
    balancer = eq.Balancer(TASKS, aggregator=eq.MGDA(), chunk_size=chunk_size)
    balancer.backward(model.losses(0), accumulate=True)
    return balancer._rows.waiting.micro_batches.rows, lambda: balancer.backward(model.losses(1))


@pytest.mark.parametrize("kind", ["balancer", "mao"])
@pytest.mark.parametrize("chunk_size", [1, 3, 4])
def test_what_waits_is_nobody_elses_and_no_larger_than_it_has_to_be(chunk_size, kind):
    model = make("mlp")
    keeping(model)
    rows, _ = waiting_rows(model, chunk_size, kind)
    every = [gradient for row in rows.values() for gradient in row.values()]
    places = {gradient.untyped_storage().data_ptr() for gradient in every}
    assert len(places) == len(every)
    assert model.kept.untyped_storage().data_ptr() not in places
    assert all(gradient.untyped_storage().nbytes() == gradient.nbytes for gradient in every)
    assert all((row[model.weight] == 2).all() for row in rows.values())


@pytest.mark.parametrize("way", [*WAYS, None])
def test_grad_is_nobody_elses(way):
    model = make("mlp")
    keeping(model)
    eq.Balancer(TASKS, aggregator=eq.CAGrad(), **(WAYS[way] if way else {})).backward(model.losses(0))
    places = [p.grad.untyped_storage().data_ptr() for p in model.parameters()]
    assert len(set(places)) == len(places)
    assert model.kept.untyped_storage().data_ptr() not in places
    assert all(p.grad.untyped_storage().nbytes() == p.grad.nbytes for p in model.parameters())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_methods_are_made_with_them_and_copies_keep_them(again):
    model = make("mlp")
    method = eq.make_method("mgda", model, TASKS, engine="layers", chunk_size=3)
    model, method = again((model, method))
    method.backward(model.losses(0))
    assert method.balancer.way == "layers"
    method.zero_grad()
    method.backward(model.losses(0), accumulate=True)
    assert method.balancer.way.endswith(": chunk_size=3")
    mao = again(eq.make_method("mao", model, TASKS, chunk_size=3)).optimizer
    assert mao._batching.chunk_size == 3
    assert mao._reader._batching is mao._batching


@pytest.mark.parametrize("name", ["mao", "single:a", "uw", "graddrop"])
def test_methods_without_a_gramian_have_no_layers(name):
    with pytest.raises(ValueError, match="engine"):
        eq.make_method(name, make("mlp"), TASKS, engine="layers")
    eq.make_method(name, make("mlp"), TASKS, engine="rows", chunk_size=2)
    with pytest.raises(ValueError, match="chunk_size"):
        eq.make_method(name, make("mlp"), TASKS, chunk_size=0)
    with pytest.raises(ValueError, match="engine"):
        eq.make_method(name, make("mlp"), TASKS, engine="columns")
