"""The bench: problems, networks and metrics, and the comparison of balancing methods on them.

It needs more than PyTorch (`pip install "equipoise[bench]"`), so `import equipoise` leaves it alone. Its parts:

- `equipoise.bench.compare`: methods compared over seeds, from Python; what it returns is an `equipoise.bench.Outcome`;
- `equipoise.bench.problems`: what is trained, and the classes that a problem of one's own is made of;
- `equipoise.bench.models`: networks with several heads;
- `equipoise.bench.metrics`: how well a task does;
- `equipoise.bench.experiment`: what carries a comparison out, with statistics and a report;
- `equipoise.bench.cli`: the command `equipoise`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.bench.comparing import compare
    from equipoise.bench.outcome import Outcome

__all__ = ["Outcome", "compare"]

_PLACES = {"compare": "equipoise.bench.comparing", "Outcome": "equipoise.bench.outcome"}


def __getattr__(name: str) -> Any:
    """Imports what takes seconds when it is first asked for."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
