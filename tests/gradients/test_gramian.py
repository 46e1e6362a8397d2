import importlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from equipoise.gradients.gramian import combine, gramian

module = importlib.import_module("equipoise.gradients.gramian")

SHAPES = [(3,), (7, 5), (), (2, 3, 4, 5), (0,), (50,)]


def rows_of(count, dtype=torch.float64, shapes=SHAPES, holes=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = [[torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes] for _ in range(count)]
    if holes and count > 1:
        for parameter in range(len(shapes)):  # a task that does not reach each parameter
            rows[parameter % count][parameter] = None
    return rows


def flat(rows):
    sizes = [next(row[p].numel() for row in rows if row[p] is not None) for p in range(len(rows[0]))]
    return torch.stack(
        [
            torch.cat(
                [
                    torch.zeros(size, dtype=torch.float64) if gradient is None else gradient.double().flatten()
                    for gradient, size in zip(row, sizes, strict=True)
                ]
            )
            for row in rows
        ]
    )


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 17])
@pytest.mark.parametrize("count", [1, 2, 3, 26])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_equals_the_product_of_the_flat_jacobian(dtype, count, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    rows = rows_of(count, dtype)
    jacobian = flat(rows)
    result = gramian(rows)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, jacobian @ jacobian.T, rtol=1e-13, atol=1e-12)


def test_parameter_larger_than_a_block():
    rows = rows_of(3, torch.float32, [(module.BLOCK + 11,), (5,), (2, module.BLOCK)])
    jacobian = flat(rows)
    torch.testing.assert_close(gramian(rows), jacobian @ jacobian.T, rtol=1e-12, atol=1e-8)


def test_exact_for_float32_gradients_that_nearly_cancel():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(300_000, generator=generator)
    other = -base * (1 + 2**-10)
    jacobian = torch.stack((base, other)).double()
    result = gramian([[base], [other]])
    combination = torch.tensor([1.0, 1.0]).double()
    expected = (combination @ jacobian).square().sum()
    # the float64 products themselves leave 1e-16 of the 3e5 that cancel to 0.3
    torch.testing.assert_close(combination @ result @ combination, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_float32_gradients_whose_squares_leave_its_range(scale):
    rows = [[torch.tensor([3.0, 4.0]) * scale], [torch.tensor([0.0, 1.0]) * scale]]
    expected = torch.tensor([[25.0, 4.0], [4.0, 1.0]]).double()
    torch.testing.assert_close(gramian(rows) / scale**2, expected, rtol=1e-6, atol=0)


def test_rows_in_different_memory_formats():
    image = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows = [[image[0]], [image[1].contiguous(memory_format=torch.channels_last)]]
    expanded = torch.ones((), dtype=torch.float64).expand(4, 3, 5, 5)
    rows.append([expanded])
    jacobian = flat(rows)
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        result = gramian([rows[index] for index in order])
        torch.testing.assert_close(result, jacobian[order] @ jacobian[order].T)


class Allocations(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        inputs = {
            tensor.untyped_storage().data_ptr()
            for tensor in tree_leaves((args, kwargs))
            if isinstance(tensor, torch.Tensor)
        }
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in inputs:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_never_holds_more_than_a_block(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 100)
    monkeypatch.setattr(module, "SMALL", 0)
    rows = rows_of(4, torch.float32, [(30, 20), (10, 5, 8, 8), (3,)])
    for row in rows:
        if row[1] is not None:
            row[1] = row[1].contiguous(memory_format=torch.channels_last)
    jacobian = flat(rows)
    with Allocations() as allocations:
        result = gramian(rows)
    torch.testing.assert_close(result, jacobian @ jacobian.T)
    assert 0 < allocations.largest <= 4 * 100


def test_under_autocast_nothing_is_rounded():
    rows = rows_of(3, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = gramian(rows)
        combined = combine(rows, torch.tensor([0.3, -2.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(result, gramian(rows), rtol=0, atol=0)
    assert all(total.dtype == torch.float32 for total in combined)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 3, 26])
def test_combine_is_the_weighted_sum(dtype, count):
    rows = rows_of(count, dtype)
    kept = [[None if gradient is None else gradient.clone() for gradient in row] for row in rows]
    weights = torch.linspace(-1, 2, count, dtype=torch.float64)
    combined = combine(rows, weights)
    expected = weights @ flat(rows)
    epsilon = {torch.bfloat16: 2**-8, torch.float32: 2**-22, torch.float64: 2**-50}[dtype]
    for index, (total, part) in enumerate(
        zip(combined, expected.split([total.numel() for total in combined]), strict=True)
    ):
        assert total.dtype == dtype
        assert total.shape == SHAPES[index]
        atol = (2**-21 if dtype != torch.float64 else 2**-49) * count * 4
        torch.testing.assert_close(total.double().flatten(), part, rtol=epsilon, atol=atol)
    for row, before in zip(rows, kept, strict=True):
        for gradient, same in zip(row, before, strict=True):
            assert gradient is same is None or torch.equal(gradient, same)


def test_combine_keeps_bfloat16_sums_that_cancel():
    """Weights that cancel, rounded to bfloat16 first, would leave an error of 2⁻⁸ of each."""
    row = torch.full((8,), 1.0, dtype=torch.bfloat16)
    combined = combine([[row], [row.clone()]], torch.tensor([100.3, -99.3], dtype=torch.float64))
    torch.testing.assert_close(combined[0].double(), torch.ones(8).double(), rtol=2**-8, atol=0)
