"""What a person names in a file or a module: `my_file.py:Name`, `package.module:Name`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType


def import_place(place: str, anew: bool = True) -> ModuleType:
    """Imports a file, which ends in `.py`, or a module; a file's neighbours can be imported by it, as when it is run.

    Args:
        place: the file or module.
        anew: run the file's code also where it has been imported and is as it was. Its classes are others then, and
            objects of the former ones can no longer be pickled.

    Raises:
        ModuleNotFoundError: a module, or one that it needs, is not installed.
        ImportError: there is no such file, or it raises; the message says where.
    """
    if not place.endswith(".py"):
        return importlib.import_module(place)
    path = Path(place).resolve()
    if not path.is_file():
        raise ImportError(f"There is no file {place}.")
    name = f"equipoise_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    stamp = (path.stat().st_mtime_ns, path.stat().st_size)
    if not anew and getattr(sys.modules.get(name), "equipoise_stamp", None) == stamp:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{place} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    vars(module)["equipoise_stamp"] = stamp
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        said, where = _said_and_where(error)
        raise ImportError(f"{place} cannot be imported: {type(error).__name__}: {said} ({where}).") from error
    return module


def _said_and_where(error: Exception) -> tuple[str, str]:
    """What an error says, and the file and line; a file that cannot be parsed is named by the error alone."""
    if isinstance(error, SyntaxError):
        return error.msg, f"{error.filename}, line {error.lineno}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return str(error), f"{frame.filename}, line {frame.lineno}"
