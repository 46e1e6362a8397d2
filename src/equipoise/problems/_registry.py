"""Problems by name, and a person's own from a file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from equipoise.problems._base import Problem

PROBLEMS = {
    "digits": "equipoise.problems.digits:Digits",
    "digit-attributes": "equipoise.problems.digit_attributes:DigitAttributes",
    "rooms": "equipoise.problems.rooms:Rooms",
    "rooms-mtan": "equipoise.problems.rooms:RoomsMTAN",
    "rooms-partial": "equipoise.problems.rooms_partial:RoomsPartial",
    "rooms-efficientdet": "equipoise.problems.rooms_partial:RoomsEfficientDet",
}
"""Name → where its class stands; imported only when asked for."""


class ProblemError(Exception):
    """A problem cannot be had; the message says why and what to do."""


def load_problem(name: str) -> Problem:
    """Returns the problem of that name, or the one a file holds.

    Args:
        name: a name in `PROBLEMS`, or `FILE.py:ATTRIBUTE` (or `MODULE:ATTRIBUTE`), where the attribute is a
            Problem, or a class or function without arguments that gives one.

    Raises:
        ProblemError: there is none; or what is there is no Problem.
    """
    place, colon, attribute = PROBLEMS.get(name, name).rpartition(":")
    if not colon or not place or not attribute:
        raise ProblemError(
            f"Unknown problem {name!r}: take one of {', '.join(PROBLEMS)}, or a file of your own as "
            "my_problem.py:problem."
        )
    module = _import(place)
    if not hasattr(module, attribute):
        names = [key for key, value in vars(module).items() if isinstance(value, Problem)]
        hint = f"; it has {', '.join(f'{place}:{found}' for found in names)}" if names else ""
        raise ProblemError(f"{place} has nothing named {attribute!r}{hint}.")
    value = getattr(module, attribute)
    try:
        problem = value() if callable(value) and not isinstance(value, Problem) else value
    except Exception as error:
        raise ProblemError(f"{name} cannot be made: {type(error).__name__}: {error}.") from error
    if not isinstance(problem, Problem):
        raise ProblemError(
            f"{name} is of type {type(problem).__name__}, expected an equipoise.problems.Problem "
            "(see examples/tabular.py)."
        )
    return problem


def _import(place: str) -> ModuleType:
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ProblemError(f"{place} cannot be imported: {error}.") from error
    path = Path(place).resolve()
    if not path.is_file():
        raise ProblemError(f"There is no file {place}.")
    name = f"equipoise_problem_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ProblemError(f"{place} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:  # the file's neighbours can be imported, as when it is run
        sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise ProblemError(
            f"{place} cannot be imported: {type(error).__name__}: {error} ({where.filename}, line {where.lineno})."
        ) from error
    return module
