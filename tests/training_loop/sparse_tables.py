"""Networks with embedding tables, whose gradients are sparse or dense, and what a step on them costs."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TASKS = ("a", "b", "c")
TABLES = ("users", "tags", "words", "items")
INDICES = {
    "users": [[[1, 3, 3, 8], [2, 3, 0, 1], [5, 5, 5, 9]], 10],
    "tags": [[[[1, 1], [0, 4], [6, 2], [7, 7]], [[2, 1], [1, 4], [4, 2], [0, 3]], [[5, 6], [6, 5], [2, 2], [3, 0]]], 8],
}


class Tables(nn.Module):
    """All tasks use `users` and `tags` through the trunk, a alone `words`; a and b look up `items` past the trunk."""

    def __init__(self, sparse, dtype=torch.float64):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.users = nn.Embedding(10, 3, sparse=sparse)
            self.tags = nn.EmbeddingBag(8, 3, mode="mean", sparse=sparse)
            self.words = nn.Embedding(9, 2, sparse=sparse)
            self.items = nn.Embedding(7, 2, sparse=sparse)
            self.trunk = nn.Linear(6, 5)
            self.heads = nn.ModuleDict({task: nn.Linear(5, 2) for task in TASKS})
        self.to(dtype)

    def representation(self, step):
        users, tags = (torch.tensor(INDICES[name][0][step % 3]) for name in ("users", "tags"))
        return self.trunk(torch.cat([self.users(users), self.tags(tags)], 1)).tanh()

    def losses(self, step, tasks=TASKS, representation=None):
        z = self.representation(step) if representation is None else representation
        looked_up = torch.tensor([[1, 4, 4, 0], [5, 2, 2, 1], [6, 6, 6, 6]][step % 3])
        y = {task: head(z) for task, head in self.heads.items()}
        every = {
            "a": lambda: (y["a"] * self.words(looked_up) + self.items(looked_up) - 1).square().mean(),
            "b": lambda: 20 * (y["b"] - self.items(6 - looked_up)).square().mean() + 0.1,
            "c": lambda: 0.1 * y["c"].exp().mean(),
        }
        return {task: every[task]() for task in tasks}

    def tables(self):
        return [getattr(self, name).weight for name in TABLES]

    def others(self):
        tables = set(self.tables())
        return [parameter for parameter in self.parameters() if parameter not in tables]


def dense(gradient):
    return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient


def assert_same_gradients(sparse, model, rtol=1e-10, atol=1e-13):
    """Asserts that a model of sparse tables has the gradients of one of dense tables, and those of tables sparse."""
    for (name, one), other in zip(sparse.named_parameters(), model.parameters(), strict=True):
        if name.split(".")[0] in TABLES and one.grad is not None:
            assert one.grad.is_sparse, name
        if other.grad is not None:
            found = torch.zeros_like(other) if one.grad is None else dense(one.grad)
            torch.testing.assert_close(found, other.grad, rtol=rtol, atol=atol, msg=name)
        else:
            assert one.grad is None, name


ROWS, WIDTH = 2_000_000, 16


class Elements(TorchDispatchMode):
    """Counts the elements of dense tensors that operators make, or write to; views make none."""

    def __init__(self):
        super().__init__()
        self.made = 0
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in [] if func.is_view else tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                written = tensor
                if func is torch.ops.aten.index_put_.default:
                    written = args[2]
                elif func is torch.ops.aten.add_.Tensor and isinstance(args[1], torch.Tensor) and args[1].is_sparse:
                    written = args[1]
                count = (written._values() if written.is_sparse else written).numel()
                self.made += count
                self.largest = max(self.largest, count)
        return result


class Large(nn.Module):
    """A table of two million rows that both tasks use, and one that the first uses alone."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Embedding(ROWS, WIDTH, sparse=True, _weight=torch.zeros(1).expand(ROWS, WIDTH).clone())
        self.own = nn.Embedding(ROWS, WIDTH, sparse=True, _weight=torch.zeros(1).expand(ROWS, WIDTH).clone())
        self.trunk = nn.Linear(WIDTH, 8)
        self.heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in "ab"})

    def losses(self):
        rows = torch.randint(ROWS, (32,))
        z = self.trunk(self.shared(rows)).tanh()
        a = (self.heads["a"](z) + self.own(rows).sum(1, keepdim=True) - 1).square().mean()
        return {"a": a, "b": (self.heads["b"](z) + 1).square().mean()}
