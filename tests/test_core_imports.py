"""The library depends on PyTorch alone, and its imports go one way."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import equipoise

PACKAGE = Path(equipoise.__file__).parent

LAYERS = (
    (
        "_checks",
        "_importing",
        "search_space",
        "_active",
        "_kept",
        "_state",
        "_state_step",
        "_adam",
        "_notices",
        "labels",
        "loaders",
        "rewards",
        "_passes",
    ),
    ("gradients",),
    ("objectives", "aggregators"),
    (
        "balancer",
        "per_sample",
        "_balancing",
        "_between_steps",
        "_saved",
        "_saving",
        "_intersection",
        "_cadence",
        "_held",
        "_parts",
        "_weigh",
        "_collect",
        "_outcome",
        "_scalar",
        "_sharing",
        "optim",
    ),
    ("methods", "registry", "_method", "monitor", "integrations"),
    ("testing",),
    ("_public", "__init__"),
    ("bench",),
    ("__main__",),
)
"""What the package is made of, from the bottom to the top: each imports from its own layer and from those below."""

HEIGHTS = {part: height for height, layer in enumerate(LAYERS) for part in layer}

EXCEPTIONS: set[str] = set()
"""Imports of a higher layer that are there all the same."""

USE_THE_CORE = """
import sys
import torch

def top_level(names):
    return {name.partition(".")[0] for name in names}

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if not top_level([name]) <= allowed:
            raise ModuleNotFoundError(f"the core imports {name}", name=name)

# PyTorch imports a part of its own requirements only when it first trains.
layer = torch.nn.Linear(3, 2)
adam = torch.optim.Adam(layer.parameters())
layer(torch.ones(1, 3)).sum().backward()
adam.step()
allowed = {"equipoise"} | top_level(sys.modules) | set(sys.stdlib_module_names)
assert not any(name.startswith("equipoise") for name in sys.modules)
sys.meta_path.insert(0, Refusal())

import equipoise as eq

x, trunk = torch.ones(4, 3), torch.nn.Linear(3, 5)
heads = torch.nn.ModuleDict({"a": torch.nn.Linear(5, 1), "b": torch.nn.Linear(5, 2)})
parameters = [*trunk.parameters(), *heads.parameters()]
mao = eq.MAO(parameters, heads)
for method, optimizer in (
    (eq.Balancer(heads, objective=eq.EMA()), torch.optim.SGD(parameters, lr=0.1)),
    (eq.Balancer(heads, aggregator=eq.NashMTL()), torch.optim.SGD(parameters, lr=0.1)),
    (mao, mao),
):
    method.backward({task: head(trunk(x).tanh()).square().mean() for task, head in heads.items()})
    optimizer.step()
    optimizer.zero_grad()
assert "mao" in eq.list_methods()

for name, module in sorted(sys.modules.items()):
    if name.startswith("equipoise"):
        print(module.__file__)
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)


def imports(node: ast.AST, at_once: bool = True) -> Iterator[tuple[str, bool]]:
    """The modules that a source imports, each with whether at once or in a function; not those for type checkers.

    `from equipoise import x` is `equipoise.x`, which may be a module.
    """
    if isinstance(node, ast.Import):
        yield from ((alias.name, at_once) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: imports are absolute here"
        modules = [f"equipoise.{alias.name}" for alias in node.names] if node.module == "equipoise" else [node.module]
        yield from ((str(module), at_once) for module in modules)
    for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    in_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
    for child in node.orelse if for_types else ast.iter_child_nodes(node):
        yield from imports(child, at_once and not in_function)


def imports_of(file: Path) -> list[tuple[str, bool]]:
    return list(imports(ast.parse(file.read_text(encoding="utf-8"))))


def height_of(module: str) -> int:
    """The layer of `equipoise.x.y`: that of x, or of the package itself where x is a name that it exports."""
    return HEIGHTS.get([*module.split("."), ""][1], HEIGHTS["__init__"])


def test_the_core_needs_pytorch_alone_and_nothing_of_the_bench():
    done = run(USE_THE_CORE)
    assert done.returncode == 0, done.stderr
    files = [Path(line) for line in done.stdout.splitlines()]
    assert PACKAGE / "balancer.py" in files
    assert not [file for file in files if file.is_relative_to(PACKAGE / "bench")]
    known = {"equipoise", "torch", *sys.stdlib_module_names}  # not NumPy either, though PyTorch imports it
    foreign = {
        (file.name, module)
        for file in files
        for module, at_once in imports_of(file)
        if at_once and module.partition(".")[0] not in known
    }
    assert foreign == set()


def test_what_the_core_must_not_import_would_be_refused():
    before, _ = USE_THE_CORE.split("import equipoise as eq")
    for package in ("matplotlib", "torchmetrics"):
        done = run(before + f"import {package}")
        assert f"the core imports {package}" in done.stderr


def test_imports_go_one_way():
    upwards = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE)
        part = name.parts[0].removesuffix(".py")
        assert part in HEIGHTS, f"{part} has no place in LAYERS yet"
        for module, _ in imports_of(file):
            if module.partition(".")[0] == "equipoise" and height_of(module) > HEIGHTS[part]:
                upwards.add(f"{name.as_posix()} imports {module}")
    assert upwards == EXCEPTIONS


def test_imports_are_found_wherever_they_are():
    source = """
import a.b
from c import d
from equipoise import bench, MAO
if TYPE_CHECKING:
    import for_types
else:
    import otherwise
class Some:
    import in_class
    def method(self):
        from in_function import name
try:
    import attempted
except ImportError:
    pass
"""
    assert list(imports(ast.parse(source))) == [
        ("a.b", True),
        ("c", True),
        ("equipoise.bench", True),
        ("equipoise.MAO", True),
        ("otherwise", True),
        ("in_class", True),
        ("in_function", False),
        ("attempted", True),
    ]
