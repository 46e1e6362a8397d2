"""equipoise: balanced multi-task training in PyTorch.

The public names are those of `equipoise._public`. They, and PyTorch with them, are imported when the first is asked
for, so that the command line answers `--help` and a typing error without waiting for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise._public import *
    from equipoise._public import __all__

    __version__: str


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("equipoise")
    if name == "__all__" or not name.startswith("_"):
        public = import_module("equipoise._public")
        if name == "__all__" or name in public.__all__:
            return getattr(public, name)
        if name in globals():  # a part of the package, imported meanwhile
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{_nearest(name, public.__all__)}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _nearest(name: str, names: list[str]) -> str:
    """Which name was meant, as a question, if one is near in any case of letters."""
    lowered = {known.lower(): known for known in names}
    near = import_module("difflib").get_close_matches(name.lower(), lowered, n=1)
    return f" Did you mean {lowered[near[0]]!r}?" if near else ""


def __dir__() -> list[str]:
    return sorted({*globals(), *import_module("equipoise._public").__all__, "__version__"})
