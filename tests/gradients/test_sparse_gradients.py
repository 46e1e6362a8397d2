import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from equipoise.gradients import combine, gramian
from equipoise.gradients.sparse import accumulate_gradient, added, coalesced, compact, touched, values_of

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def sparse(entries, shape=(9, 3), dtype=torch.float64, seed=0):
    """Random values at the entries: rows, or pairs of row and column."""
    indices = torch.tensor(entries, dtype=torch.long).reshape(len(entries), -1 if entries else 1).T
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(entries), *shape[len(indices) :], generator=generator, dtype=torch.float64)
    return torch.sparse_coo_tensor(indices, values.to(dtype), shape, check_invariants=True)


def gradients_of(layer, *inputs):
    """One task's gradient an input; a None in its place is a task that does not use the layer."""
    found = []
    for index, given in enumerate(inputs):
        if given is None:
            found.append(None)
            continue
        loss = (layer(given) * (1.0 + index)).exp().sum()
        found.append(torch.autograd.grad(loss, layer.weight)[0])
    return found


def embedding():
    torch.manual_seed(0)
    layer = nn.Embedding(9, 3, sparse=True, dtype=torch.float64)
    return gradients_of(layer, torch.tensor([[7, 2], [7, 7]]), torch.tensor([5, 2]), None)


def padded_embedding():
    torch.manual_seed(0)
    layer = nn.Embedding(9, 3, sparse=True, padding_idx=2, dtype=torch.float64)
    return gradients_of(layer, torch.tensor([2, 4, 4]), torch.tensor([2]))


def bag(mode):
    torch.manual_seed(0)
    layer = nn.EmbeddingBag(9, 3, sparse=True, mode=mode, dtype=torch.float64)
    return gradients_of(layer, torch.tensor([[7, 7], [1, 2]]), None, torch.tensor([[1, 8]]))


def gathered():
    """Sparse in both dimensions."""
    leaf = torch.linspace(-1, 1, 27, dtype=torch.float64).reshape(9, 3).requires_grad_()
    places = [torch.tensor([[0, 1, 0], [0, 2, 2]]), torch.tensor([[5, 1, 0]])]
    losses = [torch.gather(leaf, 0, place, sparse_grad=True).exp().sum() for place in places]
    return [torch.autograd.grad(loss, leaf)[0] for loss in losses]


COLUMNS = {
    "embedding": embedding(),
    "padding": padded_embedding(),
    "bag-sum": bag("sum"),
    "bag-mean": bag("mean"),
    "gathered": gathered(),
    "one task alone": [None, sparse([4, 4, 0]), None],
    "an empty one": [sparse([]), sparse([3, 1, 3], seed=1)],
    "all empty": [sparse([]), sparse([])],
    "no overlap": [sparse([1, 0]), sparse([8], seed=1), sparse([5, 5], seed=2)],
    "coalesced": [sparse([1, 0]).coalesce(), sparse([1, 1], seed=1)],
    "two sparse dimensions and one dense": [
        sparse([(1, 4), (0, 2), (1, 4)], (3, 5, 2)),
        sparse([(1, 4), (2, 4)], (3, 5, 2), seed=1),
    ],
    "three sparse dimensions": [sparse([(1, 4, 0), (1, 4, 0)], (3, 5, 2)), sparse([(2, 4, 1)], (3, 5, 2), seed=1)],
    "a vector": [sparse([3, 3, 0], (5,)), sparse([4], (5,), seed=1)],
}


def dense(gradient):
    return None if gradient is None else gradient.to_dense()


@pytest.fixture(params=COLUMNS, ids=COLUMNS.keys())
def column(request):
    column = COLUMNS[request.param]
    assert all(gradient is None or gradient.layout == torch.sparse_coo for gradient in column)
    return column


def test_compact_gradients_are_the_rows_that_any_task_touches(column):
    some = next(g for g in column if g is not None)
    kept = sorted({place for g in column if g is not None for place in zip(*g._indices().tolist(), strict=True)})
    found, restored = compact(column)
    for whole, part in zip(column, found, strict=True):
        assert (part is None) == (whole is None)
        if part is not None:
            assert part.layout == torch.strided
            expected = [whole.to_dense()[place] for place in kept]
            assert part.shape == (len(kept), *some.shape[some.sparse_dim() :])
            if expected:
                torch.testing.assert_close(part, torch.stack(expected))
            back = restored(part)
            assert back.is_coalesced()
            assert back.shape == whole.shape
            assert list(zip(*back.indices().tolist(), strict=True)) == kept
            torch.testing.assert_close(back.to_dense(), whole.to_dense())


def test_restored_gradients_pass_the_checks_of_pytorch(column):
    found, restored = compact(column)
    back = restored(next(part for part in found if part is not None))
    with torch.sparse.check_sparse_tensor_invariants():
        torch.sparse_coo_tensor(back._indices(), back._values(), back.shape, is_coalesced=True)


def test_gramian_and_combination_are_those_of_the_dense_gradients(column):
    weights = torch.linspace(-1, 2, len(column), dtype=torch.float64)
    found, restored = compact(column)
    flat = torch.stack([torch.zeros(27) if g is None else g.to_dense().flatten() for g in pad(column)])
    torch.testing.assert_close(gramian([[part] for part in found]), flat @ flat.T, rtol=1e-12, atol=1e-12)
    combined = restored(combine([[part] for part in found], weights)[0]).to_dense()
    torch.testing.assert_close(combined, (weights @ flat).reshape(combined.shape), rtol=1e-12, atol=1e-12)


def pad(column):
    """The column, with zeros of the right shape where a task does not reach the leaf."""
    some = next(g for g in column if g is not None)
    return [torch.zeros_like(some) if g is None else g for g in column]


def test_what_is_not_linear_in_the_gradients_is_that_of_the_dense_ones(column):
    found, restored = compact(pad(column))
    median = torch.stack(list(found)).sort(dim=0).values[0]
    torch.testing.assert_close(
        restored(median).to_dense(), torch.stack([g.to_dense() for g in pad(column)]).sort(dim=0).values[0]
    )


def test_compact_gradients_can_be_changed_by_themselves():
    column = [sparse([1, 0]).coalesce(), None, sparse([1], seed=1).coalesce()]
    before = [dense(gradient) for gradient in column]
    (first, _, second), _ = compact(column)
    kept = second.clone()
    first.zero_()
    torch.testing.assert_close(second, kept, rtol=0, atol=0)
    second.zero_()
    assert all(torch.equal(g.to_dense(), b) for g, b in zip(column, before, strict=True) if g is not None)


@pytest.mark.parametrize("dtype", DTYPES)
def test_compact_gradients_keep_their_dtype_and_add_up_in_float32(dtype):
    ones = torch.sparse_coo_tensor(torch.zeros(1, 4096, dtype=torch.long), torch.ones(4096, 2, dtype=dtype), (3, 2))
    found, restored = compact([ones, sparse([2], (3, 2), dtype)])
    assert found[0].dtype == dtype
    assert restored(found[0]).dtype == dtype
    assert found[0].tolist() == [[4096, 4096], [0, 0]]  # bfloat16 stops at 256, float16 at 2048
    assert coalesced(ones).to_dense()[0].tolist() == [4096, 4096]


def test_dense_gradients_are_returned_as_they_are():
    class NoOperation(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            raise AssertionError(function)

    column = [torch.ones(3, 2), None, torch.ones(3, 2)]
    combined = torch.ones(3, 2)
    with NoOperation():
        found, restored = compact(column)
        assert found is column
        assert restored(combined) is combined


@pytest.mark.parametrize(
    "column",
    [
        [sparse([1, 1, 4]), torch.arange(27.0, dtype=torch.float64).reshape(9, 3)],
        [None, torch.ones(9, 3, dtype=torch.float64), sparse([])],
        [sparse([1, 1]), sparse([(1, 2), (1, 2), (0, 1)], seed=1)],
    ],
    ids=["dense second", "dense first", "sparse in unlike dimensions"],
)
def test_gradients_that_are_not_sparse_alike_become_dense(column):
    found, restored = compact(column)
    for whole, part in zip(column, found, strict=True):
        assert (part is None) == (whole is None)
        if part is not None:
            torch.testing.assert_close(part, whole.to_dense())
            assert restored(part) is part


class Elements(TorchDispatchMode):
    """The elements of the largest tensor made, of a sparse one those that it stores."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for made in tree_leaves(result):
            if isinstance(made, torch.Tensor):
                stored = [made._indices(), made._values()] if made.is_sparse else [made]
                self.largest = max(self.largest, *(tensor.numel() for tensor in stored), 0)
        return result


def test_cost_is_that_of_the_touched_rows():
    rows, width, tasks = 100_000, 16, 3
    layer = nn.Embedding(rows, width, sparse=True)
    column = gradients_of(layer, *[torch.randint(rows, (64,)) for _ in range(tasks)])
    with Elements() as elements:
        found, restored = compact(column)
        restored(found[0])
        gramian([[part] for part in found])
        added(column[0], column[1])
        coalesced(column[0])
        touched(column)
    assert 64 * width <= elements.largest <= (tasks * 64) * width * tasks


@pytest.mark.parametrize("dtype", DTYPES)
def test_scaling_the_values_scales_the_gradients(dtype):
    gradients = [sparse([1, 1, 4], dtype=dtype), torch.ones(3, dtype=dtype), sparse([], dtype=dtype)]
    before = [gradient.to_dense().clone() for gradient in gradients]
    torch._foreach_mul_(values_of(gradients), torch.tensor(0.5, dtype=torch.float64))
    for gradient, old in zip(gradients, before, strict=True):
        torch.testing.assert_close(gradient.to_dense(), old * 0.5)


def test_norm_is_that_of_the_coalesced_values():
    gradients = [sparse([1, 1, 1, 4]), torch.ones(3, dtype=torch.float64), sparse([])]
    expected = torch.cat([gradient.to_dense().flatten() for gradient in gradients]).norm()
    found = torch.nn.utils.get_total_norm(values_of(coalesced(gradient) for gradient in gradients))
    torch.testing.assert_close(found, expected)
    uncoalesced = torch.nn.utils.get_total_norm(values_of(gradients))
    assert (uncoalesced - expected).abs() > 0.1  # the example can tell


def test_entries_that_overflow_together_are_not_finite():
    large = torch.full((2, 1), 4e4, dtype=torch.float16)
    gradient = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), large, (3, 1))
    assert values_of([gradient])[0].isfinite().all()
    assert not values_of([coalesced(gradient)])[0].isfinite().all()


KINDS = {
    "sparse": lambda dtype, seed: sparse([1, 1, 4], dtype=dtype, seed=seed),
    "dense": lambda dtype, seed: sparse([0, 1, 5], dtype=dtype, seed=seed).to_dense(),
    "empty": lambda dtype, seed: sparse([], dtype=dtype),
    "unlike": lambda dtype, seed: sparse([(1, 2), (1, 2), (0, 1)], dtype=dtype, seed=seed),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("new", KINDS)
@pytest.mark.parametrize("old", KINDS)
def test_adding_gradients(old, new, dtype):
    first, second = KINDS[old](dtype, 0), KINDS[new](dtype, 1)
    expected = first.to_dense() + second.to_dense()
    before = first.to_dense().clone(), second.to_dense().clone()
    result = added(first, second)
    both_sparse = first.is_sparse and second.is_sparse and first.sparse_dim() == second.sparse_dim()
    assert result.is_sparse == both_sparse
    assert result.dtype == dtype
    torch.testing.assert_close(result.to_dense(), expected)
    values_of([result])[0].zero_()
    assert torch.equal(first.to_dense(), before[0])
    assert torch.equal(second.to_dense(), before[1])


@pytest.mark.parametrize("new", ["sparse", "dense", "empty"])
@pytest.mark.parametrize("old", [None, "sparse", "dense", "empty"])
def test_accumulates_as_autograd_does(old, new):
    def leaf():
        made = nn.Parameter(torch.zeros(9, 3, dtype=torch.float64))
        made.grad = None if old is None else KINDS[old](torch.float64, 0)
        return made

    class Given(torch.autograd.Function):
        @staticmethod
        def forward(ctx, whole):
            return whole.sum()

        @staticmethod
        def backward(ctx, outer):
            return KINDS[new](torch.float64, 1)

    own, autograd = leaf(), leaf()
    before = own.grad
    accumulate_gradient(own, KINDS[new](torch.float64, 1))
    Given.apply(autograd).backward()
    assert own.grad.layout == autograd.grad.layout
    torch.testing.assert_close(own.grad.to_dense(), autograd.grad.to_dense())
    if old == "dense":
        assert own.grad is before


@pytest.mark.parametrize("dtype", DTYPES)
def test_accumulates_over_micro_batches_as_a_sparse_gradient(dtype):
    leaf = nn.Parameter(torch.zeros(9, 3, dtype=dtype))
    parts = [sparse([1, 1, 4], dtype=dtype, seed=seed) for seed in range(3)]
    for part in parts:
        accumulate_gradient(leaf, part)
    assert leaf.grad.is_sparse
    expected = sum(part.double().to_dense() for part in parts)
    torch.testing.assert_close(coalesced(leaf.grad).to_dense(), expected.to(dtype))


def test_touched_places_index_the_leaf():
    (rows,) = touched([sparse([7, 1, 7]), sparse([]), sparse([1, 3])])
    assert rows.tolist() == [7, 1, 7, 1, 3]
    places = touched([sparse([(1, 2), (1, 2)]), sparse([(0, 1)])])
    assert [place.tolist() for place in places] == [[1, 1, 0], [2, 2, 1]]
